//! Fuzz targets: each reads bytes as pod-steer reads what others have written, and checks what must hold of the result.
//!
//! `cargo xtask fuzz` runs them under libFuzzer; the unit tests below run every input that is kept in `corpus` and
//! `regressions`, and some that differ from them a little. A target fails by a panic.

mod api;
mod config;
mod engine;
mod labels;
mod ledger;
mod links;
#[cfg(test)]
mod mutate;
mod plan;
mod ports;
mod ring;
mod slots;

/// One kind of input.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of its directories, and for `cargo xtask fuzz --target`.
    pub name: &'static str,
    /// Reads an input and checks what follows from it.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target { name: "api", run: api::run },
    Target { name: "config", run: config::run },
    Target { name: "engine", run: engine::run },
    Target { name: "labels", run: labels::run },
    Target { name: "ledger", run: ledger::run },
    Target { name: "links", run: links::run },
    Target { name: "ports", run: ports::run },
    Target { name: "ring", run: ring::run },
    Target { name: "slots", run: slots::run },
];

/// A target by its name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

/// Fails if a message for people has control characters, line breaks among them.
fn assert_one_line(message: &str) {
    assert!(!message.chars().any(char::is_control), "no line for people: {message:?}");
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
    };

    use super::*;

    /// The files of a directory, which may be missing.
    fn inputs(directory: &Path) -> Vec<PathBuf> {
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    }

    /// Runs the kept inputs of a target, and so many that differ from them; a panic names the input.
    fn rerun(name: &str, changed: usize) {
        let target = target(name).expect("it is one of the targets");
        let top = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut corpus = inputs(&top.join("corpus").join(name));
        assert!(!corpus.is_empty(), "the corpus of {name} is empty");
        corpus.sort();
        let mut kept = Vec::new();
        for path in corpus.into_iter().chain(inputs(&top.join("regressions").join(name))) {
            let input = fs::read(&path).expect("it was listed a moment ago");
            let run = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(run.is_ok(), "{} fails", path.display());
            kept.push(input);
        }
        let words = mutate::words(include_str!("../words.dict"));
        let mut rng = fastrand::Rng::with_seed(1);
        for number in 0..changed {
            let input = mutate::changed(&mut rng, &kept[number % kept.len()], &kept, &words);
            let run = std::panic::catch_unwind(|| (target.run)(&input));
            assert!(run.is_ok(), "{name} fails with {}", input.escape_ascii());
        }
    }

    macro_rules! rerun {
        ($($name:ident $changed:literal),+) => {$(
            #[test]
            fn $name() {
                rerun(stringify!($name), $changed);
            }
        )+

            #[test]
            fn every_target_is_rerun() {
                assert_eq!(TARGETS.map(|target| target.name), [$(stringify!($name)),+]);
            }
        };
    }

    // In a second or two of a processor each.
    rerun!(api 500, config 2_000, engine 2_000, labels 2_000, ledger 50, links 2_000, ports 2_000, ring 100, slots 2_000);
}
