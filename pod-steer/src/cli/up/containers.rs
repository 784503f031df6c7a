//! The containers of a service, by `docker`, which finds the engine as `docker compose` does.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{amendment::CONFIG_HASH, definition::Definition, programs::run};

/// The labels of Compose: the project and the service of a container, and whether `docker compose run` has made it.
const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
const ONE_OFF: &str = "com.docker.compose.oneoff";
/// The label with the hash of the configuration that Compose made a container of.
pub(super) const COMPOSE_HASH: &str = "com.docker.compose.config-hash";

/// A container, as far as `up` looks at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Container {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// It runs, or is paused.
    pub is_up: bool,
    /// It is paused.
    pub is_paused: bool,
    /// It has never run.
    pub is_new: bool,
    /// Id of its image.
    pub image_id: String,
    /// The name by which it was made from its image.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Ports of the host that it publishes.
    pub publishes: Vec<String>,
    /// All that it is made of, in the engine's own form.
    pub made_of: Value,
}

impl Container {
    /// Its service in the Compose file.
    pub fn service(&self) -> Option<&str> {
        self.labels.get(SERVICE).map(String::as_str)
    }

    /// Whether it is one of a service's.
    pub fn is_of(&self, service: &str) -> bool {
        self.service() == Some(service)
    }

    /// Its project.
    pub fn project(&self) -> Option<&str> {
        self.labels.get(PROJECT).map(String::as_str)
    }

    /// The hash of the configuration that it was made of, without labels that `up` added.
    pub fn hash(&self) -> Option<&String> {
        self.labels.get(CONFIG_HASH).or_else(|| self.labels.get(COMPOSE_HASH))
    }

    /// Whether it was made of this configuration.
    pub fn is_made_of(&self, definition: &Definition) -> bool {
        match (self.labels.get(CONFIG_HASH), self.labels.get(COMPOSE_HASH)) {
            (Some(own), _) => definition.hash() == own,
            (None, Some(label)) => definition.is_label(label),
            (None, None) => false,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: String,
    name: String,
    image: String,
    state: InspectedState,
    config: InspectedConfig,
    host_config: InspectedHost,
    #[serde(default)]
    network_settings: InspectedNetworks,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedState {
    running: bool,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    status: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedNetworks {
    #[serde(default)]
    networks: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    image: String,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedHost {
    #[serde(default)]
    port_bindings: Option<BTreeMap<String, Option<Vec<Binding>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Binding {
    #[serde(default)]
    host_port: String,
}

fn container(line: &str) -> Result<Container> {
    let unknown = "`docker inspect` gives an unknown answer";
    let inspected: Inspected = serde_json::from_str(line).context(unknown)?;
    let mut all: Value = serde_json::from_str(line).context(unknown)?;
    let mut part = |name: &str| all.get_mut(name).map(Value::take);
    let networks: Vec<String> = inspected.network_settings.networks.unwrap_or_default().into_keys().collect();
    let made_of = json!({ "Config": part("Config"), "HostConfig": part("HostConfig"), "Networks": networks });
    let bindings = inspected.host_config.port_bindings.unwrap_or_default();
    let ports = bindings.into_values().flatten().flatten().map(|binding| binding.host_port);
    Ok(Container {
        id: inspected.id,
        name: inspected.name.trim_start_matches('/').to_owned(),
        is_up: inspected.state.running,
        is_paused: inspected.state.paused,
        is_new: inspected.state.status == "created",
        image_id: inspected.image,
        image: inspected.config.image,
        labels: inspected.config.labels.unwrap_or_default(),
        publishes: ports.filter(|port| !port.is_empty() && port != "0").collect(),
        made_of,
    })
}

async fn docker(what: &'static str, arguments: &[&str], ids: &[String]) -> Result<String> {
    let words = ["docker", what].into_iter().chain(arguments.iter().copied()).map(str::to_owned);
    run(words.chain(ids.iter().cloned()).collect(), what).await
}

/// Looks at containers. Those of `docker compose run` are left out.
pub(super) async fn inspect(ids: &[String]) -> Result<Vec<Container>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let answer = docker("inspect", &["--type", "container", "--format", "{{json .}}"], ids).await?;
    let mut found = answer.lines().filter(|line| !line.is_empty()).map(container).collect::<Result<Vec<_>>>()?;
    found.retain(|one| !one.labels.get(ONE_OFF).is_some_and(|is| is.eq_ignore_ascii_case("true")));
    Ok(found)
}

/// The ids of all containers of a project, in any state.
pub(super) async fn of_project(project: &str) -> Result<Vec<String>> {
    let label = format!("label={PROJECT}={project}");
    let answer = docker("ps", &["--all", "--quiet", "--no-trunc", "--filter", &label], &[]).await?;
    Ok(answer.lines().map(str::to_owned).collect())
}

/// The id of the image that a name stands for now; `None` if there is none.
pub(super) async fn image_id(name: &str) -> Option<String> {
    let answer = docker("image", &["inspect", "--format", "{{.Id}}"], &[name.to_owned()]).await.ok()?;
    Some(answer.trim().to_owned()).filter(|id| !id.is_empty())
}

/// Starts a container again that was stopped; false if it runs, or is gone.
pub(super) async fn start_again(id: &str) -> Result<bool> {
    let id = [id.to_owned()];
    match inspect(&id).await {
        Ok(found) if found.iter().any(|one| !one.is_up) => docker("start", &[], &id).await.map(|_| true),
        _ => Ok(false),
    }
}

/// Stops containers, as `docker stop` does.
pub(super) async fn stop(ids: &[String]) -> Result<()> {
    if ids.is_empty() { Ok(()) } else { docker("stop", &[], ids).await.map(drop) }
}

/// The same, and removes them. `volumes`: also the volumes that have no name.
pub(super) async fn remove(ids: &[String], volumes: bool) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    stop(ids).await?;
    docker("rm", if volumes { &["--volumes"] } else { &[] }, ids).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_of_docker_is_read() {
        let line = r#"{"Id": "abc", "Name": "/p_web_1", "Image": "sha256:1", "State": {"Running": true, "Pid": 3},
            "Config": {"Image": "app:1", "Labels": {"pod-steer.service": "web"}},
            "HostConfig": {"PortBindings": {"80/tcp": [{"HostIp": "", "HostPort": "80"}, {"HostPort": ""}], "81/tcp": null}}}"#;
        let read = container(line).unwrap();
        assert_eq!((read.name.as_str(), read.is_up, read.publishes.clone()), ("p_web_1", true, vec!["80".to_owned()]));
        assert_eq!(read.made_of["HostConfig"]["PortBindings"]["81/tcp"], Value::Null);
        assert_eq!(read.made_of["Config"]["Image"], "app:1");
        let bare = r#"{"Id":"a","Name":"/b","Image":"c","State":{"Running":false},"Config":{"Image":"d","Labels":null},"HostConfig":{}}"#;
        assert!(container(bare).unwrap().labels.is_empty());
        assert!(container("{}").is_err());
    }
}
