//! What the Compose files say of a service, as `config` prints it. Pure.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// How an image is made new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// It is built.
    Build,
    /// It is pulled.
    Pull,
}

impl Renewal {
    /// That of a `pull_policy`. Compose itself knows when it has pulled an image; to look more often does no harm.
    fn of(policy: &str) -> Option<Self> {
        match policy {
            "build" => Some(Self::Build),
            "always" | "daily" | "weekly" => Some(Self::Pull),
            _ => policy.starts_with("every_").then_some(Self::Pull),
        }
    }
}

/// A service of the files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Definition {
    /// The hash of its configuration with the variables of its `env_file`, as the label of its containers has it. Not every Compose tells it.
    pub resolved_hash: Option<String>,
    /// The same without the services that it depends on. Compose 2.26 counts these, unless `--no-deps` is given, and 2.40 does not.
    pub alone_hash: Option<String>,
    /// The hash that `config --hash` prints. From Compose 2.22 on it leaves out those variables, and the label does not.
    pub plain_hash: String,
    /// Number of containers.
    pub replicas: usize,
    /// The files give its container a name.
    pub is_named: bool,
    /// How `up` gets the image each time, if it does.
    pub renewal: Option<Renewal>,
    /// Services that are started before it, in no order. All others with Compose 1, which does not tell them apart.
    pub dependencies: Vec<String>,
}

impl Definition {
    /// Reads what `config --format json SERVICE` prints: the service and those that it depends on.
    pub fn from_json(text: &str, service: &str) -> Result<Self> {
        let model: Value = serde_json::from_str(text).context("`config` gives an unknown answer")?;
        let services = model.get("services").and_then(Value::as_object).context("`config` gives no services")?;
        let own = services.get(service).with_context(|| format!("`config` gives no service {service}"))?;
        let number = |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|of| usize::try_from(of).ok());
        let replicas = number(own.get("scale")).or_else(|| number(own.pointer("/deploy/replicas"))).unwrap_or(1);
        let dependencies = services.keys().filter(|name| *name != service).cloned().collect();
        let is_named = own.get("container_name").is_some();
        let renewal = own.get("pull_policy").and_then(Value::as_str).and_then(Renewal::of);
        Ok(Self { replicas, dependencies, is_named, renewal, ..Self::default() })
    }

    /// The model without the services that it depends on. `None` if there are none.
    pub fn alone(text: &str, service: &str) -> Option<String> {
        let mut model: Value = serde_json::from_str(text).ok()?;
        model.get_mut("services")?.get_mut(service)?.as_object_mut()?.remove("depends_on")?;
        Some(model.to_string())
    }

    /// Reads what `config` of Compose 1 prints: YAML of one form, in which each level is indented by two more blanks.
    pub fn from_yaml(text: &str, service: &str) -> Self {
        let (mut top, mut of, mut part) = ("", "", "");
        let mut found = Self { replicas: 1, ..Self::default() };
        for line in text.lines() {
            let inner = line.trim_start_matches(' ');
            let (key, value) = inner.split_once(':').unwrap_or((inner, ""));
            match line.len() - inner.len() {
                0 => (top, of, part) = (key, "", ""),
                2 if top == "services" => {
                    (of, part) = (key.trim_matches(['\'', '"']), "");
                    if of != service {
                        found.dependencies.push(of.to_owned());
                    }
                }
                4 if top == "services" => part = key,
                _ => {}
            }
            if (line.len() - inner.len(), top, of) == (4, "services", service) {
                found.is_named |= key == "container_name";
            }
            let is_number = match line.len() - inner.len() {
                4 => key == "scale",
                6 => part == "deploy" && key == "replicas",
                _ => false,
            };
            if let (true, Ok(number)) = (is_number && top == "services" && of == service, value.trim().parse()) {
                found.replicas = number;
            }
        }
        found
    }

    /// Whether a container with this label of Compose is of this configuration.
    pub fn is_label(&self, label: &str) -> bool {
        self.hash() == label || self.plain_hash == label || self.is_label_alone(label)
    }

    /// Whether it is, and was made with `--no-deps`, which counts.
    pub fn is_label_alone(&self, label: &str) -> bool {
        self.counts_dependencies() && self.alone_hash.as_deref() == Some(label)
    }

    /// Whether this Compose counts the services that it depends on.
    pub fn counts_dependencies(&self) -> bool {
        self.alone_hash.as_ref().is_some_and(|alone| *alone != self.hash())
    }

    /// The hash that tells most.
    pub fn hash(&self) -> &str {
        self.resolved_hash.as_ref().unwrap_or(&self.plain_hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_compose_2_is_read() {
        let text = r#"{"name": "shop", "services": {"db": {}, "web": {"deploy": {"replicas": 3}, "image": "a"}}}"#;
        let web = Definition::from_json(text, "web").unwrap();
        assert_eq!((web.replicas, web.dependencies), (3, vec!["db".to_owned()]));
        assert_eq!(Definition::from_json(r#"{"services": {"a": {"scale": 0}}}"#, "a").unwrap().replicas, 0);
        assert_eq!(Definition::from_json(text, "db").unwrap().replicas, 1);
        let policy = |policy: &str| {
            let text = format!(r#"{{"services": {{"a": {{"container_name": "b", "pull_policy": "{policy}"}}}}}}"#);
            let read = Definition::from_json(&text, "a").unwrap();
            (read.is_named, read.renewal)
        };
        assert_eq!(policy("always"), (true, Some(Renewal::Pull)));
        assert_eq!(policy("every_12h"), (true, Some(Renewal::Pull)));
        assert_eq!(policy("build"), (true, Some(Renewal::Build)));
        assert_eq!(policy("missing"), (true, None));
        assert_eq!(Definition::alone(text, "web"), None);
        let alone = Definition::alone(r#"{"services": {"web": {"image": "a", "depends_on": {"db": {}}}}}"#, "web");
        assert_eq!(alone.unwrap(), r#"{"services":{"web":{"image":"a"}}}"#);
        assert!(Definition::from_json(text, "other").is_err() && Definition::from_json("services:", "db").is_err());
    }

    #[test]
    fn the_yaml_of_compose_1_is_read() {
        let text = "networks:\n  web:\n    scale: 9\nservices:\n  db:\n    deploy:\n      replicas: 4\n    scale: 7\n  web:\n    \
                    command: \"a\n      replicas: 5\"\n    deploy:\n      replicas: 3\n    labels:\n      replicas: '6'\n    image: a\nversion: '3.8'\n";
        let web = Definition::from_yaml(text, "web");
        assert_eq!((web.replicas, web.dependencies, web.is_named), (3, vec!["db".to_owned()], false));
        assert_eq!(Definition::from_yaml(text, "db").replicas, 7);
        assert!(Definition::from_yaml("services:\n  web:\n    container_name: a\n", "web").is_named);
        assert_eq!(Definition::from_yaml("services:\n  web:\n    image: a\n", "web").replicas, 1);
    }

    #[test]
    fn a_label_is_compared_with_what_it_was_made_of() {
        let mut of = Definition { plain_hash: "plain".to_owned(), ..Definition::default() };
        assert!(of.is_label("plain") && of.hash() == "plain" && !of.is_label("resolved"));
        of.resolved_hash = Some("resolved".to_owned());
        assert!(of.is_label("plain") && of.is_label("resolved") && of.hash() == "resolved");
        of.alone_hash = of.resolved_hash.clone();
        assert!(!of.counts_dependencies() && !of.is_label_alone("resolved") && !of.is_label("alone"));
        of.alone_hash = Some("alone".to_owned());
        assert!(of.counts_dependencies() && of.is_label_alone("alone") && of.is_label("alone") && of.hash() != "alone");
    }
}
