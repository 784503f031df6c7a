//! A Compose file that amends a service, and the proof that it changes nothing but labels. Pure.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::containers::Container;

/// The label by which the next `up` compares a container whose labels were amended: the hash that Compose gave it without the amendment.
pub(super) const CONFIG_HASH: &str = "pod-steer-up.config-hash";
/// The label with the files that Compose has read.
const FILES: &str = "com.docker.compose.project.config_files";

/// Labels that the containers get beside those of the files.
#[derive(Clone, Debug)]
pub(super) struct Amendment {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Their version.
    pub version: String,
    /// The hash of their configuration without these labels.
    pub hash: String,
}

impl Amendment {
    /// A Compose file that adds them. JSON is YAML.
    pub fn text(&self, service: &str) -> String {
        let labels = json!({ "pod-steer.version": self.version, CONFIG_HASH: self.hash });
        json!({ "services": { service: { "labels": labels } } }).to_string()
    }
}

/// The files that Compose has made a container of. It alone knows which are its default ones.
pub(super) fn files(made: &Container) -> Result<Vec<PathBuf>> {
    let label = made.labels.get(FILES).filter(|label| !label.is_empty());
    let label = label.with_context(|| format!("Compose does not tell of which files it has made {}", made.name))?;
    let files: Vec<PathBuf> = label.split(',').map(PathBuf::from).collect();
    let missing = files.iter().find(|file| !Path::new(file).exists());
    ensure!(
        missing.is_none(),
        "the new containers need a version of their own, and Compose cannot be given its files again: {label}; set the label \
         pod-steer.version to a new name"
    );
    Ok(files)
}

/// Fails if containers differ in more than their labels.
pub(super) fn ensure_same(plain: &Container, amended: &Container) -> Result<()> {
    let (before, after) = (comparable(plain), comparable(amended));
    match difference(&before, &after, "") {
        None => Ok(()),
        Some(place) => Err(anyhow::anyhow!(
            "{} was made with other settings than without the version of its own ({place}); set the label pod-steer.version to a new name",
            amended.name
        )),
    }
}

/// What a container is made of, without its labels, its own name and id, and the order of lists that have none.
fn comparable(of: &Container) -> Value {
    let mut made = of.made_of.clone();
    if let Some(config) = made.get_mut("Config").and_then(Value::as_object_mut) {
        config.remove("Labels");
        // By default, it is the beginning of the id.
        if config.get("Hostname").and_then(Value::as_str).is_some_and(|name| of.id.starts_with(name)) {
            config.remove("Hostname");
        }
    }
    normal(&mut made, "", of);
    made
}

fn normal(value: &mut Value, key: &str, of: &Container) {
    match value {
        Value::String(text) => *text = text.replace(&of.id, "ID").replace(&of.name, "NAME"),
        Value::Array(items) => {
            items.iter_mut().for_each(|item| normal(item, "", of));
            if !matches!(key, "Cmd" | "Entrypoint" | "Test") {
                items.sort_by_key(Value::to_string);
            }
        }
        Value::Object(fields) => fields.iter_mut().for_each(|(key, field)| normal(field, key, of)),
        _ => {}
    }
}

/// The first place at which values differ.
fn difference(one: &Value, other: &Value, place: &str) -> Option<String> {
    let (Value::Object(one_fields), Value::Object(other_fields)) = (one, other) else {
        return (one != other).then(|| place.to_owned());
    };
    let keys = one_fields.keys().chain(other_fields.keys().filter(|key| !one_fields.contains_key(*key)));
    keys.into_iter().find_map(|key| {
        let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
        let of = |fields: &serde_json::Map<String, Value>| fields.get(key).cloned().unwrap_or_default();
        difference(&of(one_fields), &of(other_fields), &place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(id: &str, name: &str, env: &[&str], cmd: &[&str]) -> Container {
        let config = json!({ "Hostname": &id[..2], "Labels": { "n": id }, "Env": env, "Cmd": cmd });
        let made_of = json!({ "Config": config, "HostConfig": { "Links": [format!("/db:/{name}/db")] } });
        Container { id: id.to_owned(), name: name.to_owned(), made_of, ..Container::default() }
    }

    #[test]
    fn an_amendment_is_quoted() {
        let added = Amendment { files: Vec::new(), version: "2-1a".to_owned(), hash: "h".to_owned() };
        let read: Value = serde_json::from_str(&added.text("we\"b")).unwrap();
        assert_eq!(read["services"]["we\"b"]["labels"]["pod-steer.version"], "2-1a");
    }

    #[test]
    fn only_other_settings_differ() {
        let plain = made("abcd", "p_web_2", &["A=1", "B=2"], &["a", "b"]);
        assert!(ensure_same(&plain, &made("bcde", "p_web_3", &["B=2", "A=1"], &["a", "b"])).is_ok());
        let said = |other: &Container| ensure_same(&plain, other).unwrap_err().to_string();
        assert!(said(&made("bcde", "p_web_3", &["A=1"], &["a", "b"])).contains("(Config.Env)"));
        assert!(said(&made("bcde", "p_web_3", &["A=1", "B=2"], &["b", "a"])).contains("(Config.Cmd)"));
        assert!(ensure_same(&plain, &Container::default()).is_err());
    }

    #[test]
    fn the_files_are_those_that_compose_has_read() {
        let mut one = made("abcd", "p_web_2", &[], &[]);
        assert!(files(&one).unwrap_err().to_string().contains("does not tell"));
        let own = std::env::current_exe().unwrap();
        one.labels.insert(FILES.to_owned(), format!("{0},{0}", own.display()));
        assert_eq!(files(&one).unwrap(), [own.clone(), own]);
        one.labels.insert(FILES.to_owned(), "/a/missing.yaml".to_owned());
        assert!(files(&one).unwrap_err().to_string().contains("pod-steer.version"));
    }
}
