//! Decides what `up` has to do for one service. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{containers::Container, definition::Definition};

/// What there is.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// The service's containers.
    pub containers: Vec<Container>,
    /// The share of new connections that each has, by its id; containers that the daemon does not know are missing.
    pub shares: BTreeMap<String, f64>,
    /// The version of each, by its id, as the daemon knows it.
    pub versions: BTreeMap<String, String>,
    /// What the files say of it.
    pub definition: Definition,
    /// The id of each image by its name, as it is now.
    pub images: BTreeMap<String, String>,
    /// The number of containers that is asked for.
    pub scale: Option<usize>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Nothing.
    UpToDate,
    /// Nothing but to remove containers of versions that get no traffic, as an interrupted `up` leaves them, and those that do not run.
    Clean {
        /// Those that run.
        unused: Vec<Container>,
        /// Those that do not run.
        stopped: Vec<Container>,
    },
    /// So many new containers serve instead of the old ones.
    Replace {
        /// Why.
        why: Why,
        /// Those that run: they are replaced.
        old: Vec<Container>,
        /// Those of them that the daemon does not know. They stay, since their connections are not counted.
        unsteered: Vec<Container>,
        /// Those that do not run.
        stopped: Vec<Container>,
        /// Number of new containers.
        count: usize,
        /// Number of containers before, with those that do not run any more.
        before: usize,
    },
}

/// Why containers are replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// None runs.
    NoneRuns,
    /// The configuration has changed.
    Configuration,
    /// The image has changed.
    Image,
    /// Another number is wanted.
    Number,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoneRuns => "none runs",
            Self::Configuration => "the configuration has changed",
            Self::Image => "the image has changed",
            Self::Number => "the number has changed",
        })
    }
}

/// Makes the plan.
pub(super) fn plan(found: Found) -> Plan {
    let Found { containers, shares, versions, definition, images, scale } = found;
    let (created, containers): (Vec<_>, Vec<_>) = containers.into_iter().partition(|one| one.is_new);
    let (up, mut stopped): (Vec<_>, Vec<_>) = containers.into_iter().partition(|one| one.is_up);
    let has_share = |one: &&Container| shares.get(&one.id).is_some_and(|share| *share > 0.0);
    let serving: BTreeSet<&String> = up.iter().filter(has_share).filter_map(|one| versions.get(&one.id)).collect();
    // One of a version that serves may be unhealthy for a moment. If none serves, the new ones may be the remedy.
    let is_used = |one: &Container| serving.is_empty() || versions.get(&one.id).is_some_and(|of| serving.contains(of));
    let (used, unused): (Vec<_>, Vec<_>) = up.iter().cloned().partition(is_used);
    let is_of = |one: &Container| one.is_made_of(&definition);
    let is_from = |one: &Container| images.get(&one.image).is_none_or(|id| *id == one.image_id);
    // Some may have crashed: the files know how many there are to be. More may have been started by an operator.
    let count = scale.unwrap_or(used.len().max(definition.replicas).max(1));
    let why = if used.is_empty() {
        Why::NoneRuns
    } else if !used.iter().all(is_of) {
        Why::Configuration
    } else if !used.iter().all(is_from) {
        Why::Image
    } else if used.len() != count {
        Why::Number
    } else {
        stopped.extend(created);
        return match unused.is_empty() && stopped.is_empty() {
            true => Plan::UpToDate,
            false => Plan::Clean { unused, stopped },
        };
    };
    let before = used.len() + stopped.len();
    stopped.extend(created);
    let unsteered = up.iter().filter(|one| !versions.contains_key(&one.id)).cloned().collect();
    Plan::Replace { why, old: up, unsteered, stopped, count, before }
}

impl Plan {
    /// For people: one line for each part.
    pub fn lines(&self, service: &str) -> Vec<String> {
        let names = |some: &[Container]| some.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
        let Self::Replace { why, old, unsteered, stopped, count, before } = self else {
            let mut lines = vec![format!("{service} is up to date")];
            if let Self::Clean { unused, stopped } = self {
                let left = names(&[&unused[..], &stopped[..]].concat());
                lines.push(format!("{service}: remove {left}, which gets no traffic"));
            }
            return lines;
        };
        let s = if *count == 1 { "" } else { "s" };
        let fewer = if count < before { format!(" (there were {before})") } else { String::new() };
        let mut lines = Vec::new();
        if !stopped.is_empty() {
            lines.push(format!("{service}: remove {}, which does not run", names(stopped)));
        }
        lines.push(match old.is_empty() {
            true => format!("{service}: {why}: start {count} container{s}{fewer}"),
            false => {
                let steered: Vec<Container> = old.iter().filter(|one| !unsteered.contains(one)).cloned().collect();
                let then =
                    if steered.is_empty() { String::new() } else { format!(", then remove {}", names(&steered)) };
                format!("{service}: {why}: start {count} new container{s}{fewer} beside {}{then}", names(old))
            }
        });
        if !unsteered.is_empty() {
            lines.push(format!("{service}: leave {}, which is not steered yet", names(unsteered)));
        }
        lines
    }
}

/// A name for a version whose own name is in use: it ends as the image does, or, if that is the same, as the configuration.
pub(super) fn distinct(version: &str, new: &Container, old: &[Container], hash: &str, used: &BTreeSet<&str>) -> String {
    let is_same_image = old.iter().any(|one| one.image_id == new.image_id);
    let of = if is_same_image { hash } else { new.image_id.trim_start_matches("sha256:") };
    let name = format!("{version}-{}", of.chars().take(8).collect::<String>());
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    std::iter::once(name.clone()).chain(numbered).find(|name| !used.contains(name.as_str())).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::{
        super::{amendment::CONFIG_HASH, containers::COMPOSE_HASH},
        *,
    };

    fn one(name: &str, hash: &str, is_up: bool) -> Container {
        Container {
            id: name.to_owned(),
            name: name.to_owned(),
            is_up,
            image_id: "sha256:1234567890".to_owned(),
            image: "app:1".to_owned(),
            labels: BTreeMap::from([(COMPOSE_HASH.to_owned(), hash.to_owned())]),
            ..Container::default()
        }
    }

    fn found(containers: &[Container], serving: &[&str]) -> Found {
        Found {
            containers: containers.to_vec(),
            shares: serving.iter().map(|id| ((*id).to_owned(), 0.5)).collect(),
            // Each is of a version of its own.
            versions: containers.iter().map(|one| (one.id.clone(), one.id.clone())).collect(),
            definition: Definition { plain_hash: "new".to_owned(), replicas: 1, ..Definition::default() },
            images: BTreeMap::from([("app:1".to_owned(), "sha256:1234567890".to_owned())]),
            scale: None,
        }
    }

    fn counts(plan: &Plan) -> (String, usize, usize, usize) {
        match plan {
            Plan::UpToDate => (String::new(), 0, 0, 0),
            Plan::Clean { unused, stopped } => ("clean".to_owned(), unused.len(), stopped.len(), 0),
            Plan::Replace { why, old, stopped, count, .. } => (why.to_string(), old.len(), stopped.len(), *count),
        }
    }

    fn counted(why: &str, old: usize, stopped: usize, count: usize) -> (String, usize, usize, usize) {
        (why.to_owned(), old, stopped, count)
    }

    #[test]
    fn nothing_is_done_if_nothing_has_changed() {
        let same = found(&[one("a", "new", true)], &["a"]);
        assert_eq!(plan(same.clone()), Plan::UpToDate);
        let stopped = found(&[one("a", "new", true), one("gone", "old", false)], &["a"]);
        assert_eq!(counts(&plan(stopped)), counted("clean", 0, 1, 0), "an `up` was killed before it removed this one");
        let mut amended = same.clone();
        amended.containers[0].labels.insert(CONFIG_HASH.to_owned(), "new".to_owned());
        amended.containers[0].labels.insert(COMPOSE_HASH.to_owned(), "amended".to_owned());
        assert_eq!(plan(amended), Plan::UpToDate);
        assert_eq!(counts(&plan(Found { scale: Some(3), ..same })), counted("the number has changed", 1, 0, 3));
        // One of the serving version is unhealthy.
        let mut two = found(&[one("a", "new", true), one("b", "new", true)], &["a"]);
        two.versions.insert("b".to_owned(), "a".to_owned());
        assert_eq!(plan(two), Plan::UpToDate);
    }

    #[test]
    fn all_that_run_are_replaced() {
        let of = |containers: &[Container], serving: &[&str]| counts(&plan(found(containers, serving)));
        assert_eq!(of(&[], &[]), counted("none runs", 0, 0, 1));
        assert_eq!(of(&[one("a", "old", false)], &[]), counted("none runs", 0, 1, 1));
        let two = [one("a", "old", true), one("b", "old", true)];
        assert_eq!(of(&two, &["a", "b"]), counted("the configuration has changed", 2, 0, 2));
        assert_eq!(of(&two, &["a"]), counted("the configuration has changed", 2, 0, 1), "as many as serve");
        assert_eq!(of(&two, &[]), counted("the configuration has changed", 2, 0, 2), "none serves: both may be broken");
        let mut rebuilt = found(&[one("a", "new", true)], &["a"]);
        rebuilt.images.insert("app:1".to_owned(), "sha256:2".to_owned());
        assert_eq!(counts(&plan(rebuilt)), counted("the image has changed", 1, 0, 1));
    }

    #[test]
    fn the_number_is_that_of_the_files_or_greater() {
        let three = |containers: &[Container], serving: &[&str]| {
            let mut found = found(containers, serving);
            found.definition.replicas = 3;
            plan(found)
        };
        assert_eq!(counts(&three(&[], &[])), counted("none runs", 0, 0, 3));
        // Two of them have crashed.
        let left = [one("a", "new", true), one("b", "new", false), one("c", "new", false)];
        assert_eq!(counts(&three(&left, &["a"])), counted("the number has changed", 1, 2, 3));
        assert!(!three(&left, &["a"]).lines("web")[1].contains("there were"));
        let mut scaled = found(&left, &["a"]);
        scaled.scale = Some(2);
        let fewer = "web: the number has changed: start 2 new containers (there were 3) beside a, then remove a";
        assert_eq!(plan(scaled).lines("web")[1], fewer);
        // An operator has started a fourth one.
        let mut four: Vec<Container> = ["a", "b", "c", "d"].map(|name| one(name, "new", true)).to_vec();
        let versions: BTreeMap<String, String> = four.iter().map(|one| (one.id.clone(), "1".to_owned())).collect();
        let mut more = Found { versions, ..found(&four, &["a"]) };
        more.definition.replicas = 3;
        assert_eq!(plan(more.clone()), Plan::UpToDate);
        four[0].labels.insert(COMPOSE_HASH.to_owned(), "old".to_owned());
        more.containers = four;
        assert_eq!(counts(&plan(more)), counted("the configuration has changed", 4, 0, 4));
    }

    #[test]
    fn what_an_interrupted_run_has_left_is_removed() {
        let interrupted = [one("a", "new", true), one("b", "new", true)];
        assert_eq!(counts(&plan(found(&interrupted, &["a"]))), counted("clean", 1, 0, 0));
        let created = Container { is_new: true, ..one("b", "new", false) };
        let left = plan(found(&[one("a", "new", true), created.clone()], &["a"]));
        assert_eq!((counts(&left), left.lines("web").len()), (counted("clean", 0, 1, 0), 2));
        assert_eq!(
            counts(&plan(found(&[one("a", "old", true), created], &["a"]))),
            counted("the configuration has changed", 1, 1, 1)
        );
    }

    #[test]
    fn a_version_is_told_apart_by_its_image_or_its_configuration() {
        let (old, mut new) = ([one("a", "old", true)], one("b", "new", false));
        let name =
            |new: &Container, used: &[&str]| distinct("1", new, &old, "abcdef0123", &used.iter().copied().collect());
        assert_eq!(name(&new, &[]), "1-abcdef01");
        assert_eq!(name(&new, &["1-abcdef01", "1-abcdef01-2"]), "1-abcdef01-3");
        new.image_id = "sha256:fedcba9876".to_owned();
        assert_eq!(name(&new, &[]), "1-fedcba98");
    }

    #[test]
    fn a_plan_is_told_in_lines() {
        let lines =
            plan(found(&[one("p_web_1", "old", true), one("p_web_3", "old", false)], &["p_web_1"])).lines("web");
        assert_eq!(
            lines,
            [
                "web: remove p_web_3, which does not run",
                "web: the configuration has changed: start 1 new container (there were 2) beside p_web_1, then remove p_web_1"
            ]
        );
        assert_eq!(Plan::UpToDate.lines("web"), ["web is up to date"]);
        let mut unsteered = found(&[one("p_web_1", "old", true), one("p_web_2", "old", true)], &["p_web_1"]);
        unsteered.versions.remove("p_web_2");
        assert_eq!(
            plan(unsteered.clone()).lines("web"),
            [
                "web: the configuration has changed: start 1 new container beside p_web_1, p_web_2, then remove p_web_1",
                "web: leave p_web_2, which is not steered yet"
            ]
        );
        (unsteered.versions, unsteered.shares) = Default::default();
        assert!(plan(unsteered).lines("web")[0].ends_with("beside p_web_1, p_web_2"));
    }
}
