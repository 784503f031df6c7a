//! Deserializes answers of the Docker API, which Podman speaks too. Only the fields that are used are kept.

use std::{collections::BTreeMap, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{engine::CONTAINERS_MAX, labels};

/// `GET /containers/ID/json`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Details {
    pub id: Option<String>,
    pub name: Option<String>,
    pub created: Option<String>,
    pub image: Option<String>,
    pub config: Option<Config>,
    pub state: Option<State>,
    pub host_config: Option<HostConfig>,
}

/// The configuration of a container or an image.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    pub labels: Option<OurLabels>,
    pub image: Option<String>,
    pub stop_signal: Option<String>,
    pub stop_timeout: Option<i64>,
}

/// The state of a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct State {
    pub status: Option<String>,
    pub running: Option<bool>,
    pub pid: Option<i64>,
    pub started_at: Option<String>,
    pub health: Option<Checks>,
}

/// A container's own health check.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Checks {
    pub status: Option<String>,
    pub log: Option<Last<CheckResult>>,
}

/// One result of it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CheckResult {
    pub exit_code: Option<i64>,
    pub output: Option<String>,
}

/// How a container is run.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HostConfig {
    pub network_mode: Option<String>,
    pub cgroup_parent: Option<String>,
    pub auto_remove: Option<bool>,
}

/// `GET /images/NAME/json`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageDetails {
    pub config: Option<Config>,
}

/// One line of `GET /events`
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Event {
    #[serde(rename = "Type")]
    pub kind: Option<String>,
    #[serde(rename = "Action")]
    pub action: Option<String>,
    #[serde(rename = "Actor")]
    pub actor: Option<Actor>,
    #[serde(rename = "timeNano")]
    pub time_nano: Option<i64>,
}

/// The subject of an event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Actor {
    #[serde(rename = "ID")]
    pub id: Option<String>,
    #[serde(rename = "Attributes")]
    pub attributes: Option<BTreeMap<String, String>>,
}

/// `GET /info`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Info {
    pub system_time: Option<String>,
}

/// `GET /version`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Version {
    pub components: Option<Vec<Component>>,
}

/// A part of an engine.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Component {
    pub name: String,
}

/// `POST /containers/ID/exec`
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ExecMade {
    pub id: String,
}

/// `GET /exec/ID/json`
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecState {
    pub running: Option<bool>,
    pub exit_code: Option<i64>,
}

/// The labels that begin with `pod-steer.`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OurLabels(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for OurLabels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ours;
        impl<'de> Visitor<'de> for Ours {
            type Value = OurLabels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<OurLabels, A::Error> {
                let mut ours = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if key.starts_with(labels::PREFIX) {
                        ours.insert(key, map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(OurLabels(ours))
            }
        }
        deserializer.deserialize_map(Ours)
    }
}

/// The last item of a list.
#[derive(Debug, Default)]
pub struct Last<T>(pub Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Last<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut last = None;
        deserializer.deserialize_seq(Each(|item| last = Some(item), PhantomData))?;
        Ok(Self(last))
    }
}

/// `GET /containers/json`: the ids of containers with pod-steer labels.
#[derive(Debug, Default)]
pub struct Listed {
    pub ids: Vec<String>,
    /// True if the list was cut off.
    pub too_many: bool,
}

impl<'de> Deserialize<'de> for Listed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Item {
            id: Option<String>,
            labels: Option<OurLabels>,
        }
        let mut listed = Self::default();
        deserializer.deserialize_seq(Each(
            |item: Item| {
                let is_ours = item.labels.is_some_and(|labels| !labels.0.is_empty());
                let id = item.id.filter(|id| is_ours && super::convert::is_id(id));
                listed.too_many |= id.is_some() && listed.ids.len() == CONTAINERS_MAX;
                if !listed.too_many {
                    listed.ids.extend(id);
                }
            },
            PhantomData,
        ))?;
        Ok(listed)
    }
}

/// Passes each item of a list on, so that no list is kept in memory.
struct Each<F, T>(F, PhantomData<T>);

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Each<F, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element()? {
            (self.0)(item);
        }
        Ok(())
    }
}
