//! Writes the files that packages have besides the program, from the declarations of its command line and of its settings: manual pages,
//! completions, and the configuration file. A program of its own, so that the daemon does not carry the generators.
#![forbid(unsafe_code)]

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use pod_steer::{cli::args::Cli, config::commented};

/// Manual pages of programs for system administration.
const SECTION: &str = "8";
/// The shells that complete commands.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

fn main() -> Result<()> {
    let dir = env::args_os().nth(1).context("usage: package-files DIR")?;
    let dir = Path::new(&dir);
    for made in ["man", "completions"] {
        fs::create_dir_all(dir.join(made)).with_context(|| format!("cannot make {}", dir.join(made).display()))?;
    }
    manual_pages(&command(), &dir.join("man"))?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut command(), "pod-steer", dir.join("completions"))?;
    }
    let settings = dir.join("pod-steer.toml");
    // The group's members may use the API; a package makes it, and it has none at first.
    fs::write(&settings, commented::page(&["group"])).with_context(|| format!("cannot write {}", settings.display()))
}

/// The command line. The commit would make the pages of the same version differ.
fn command() -> Command {
    let mut command = Cli::command().version(env!("CARGO_PKG_VERSION")).disable_help_subcommand(true);
    command.build();
    command
}

/// A page for each command that users see.
fn manual_pages(command: &Command, dir: &Path) -> Result<()> {
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        manual_pages(inner, dir)?;
    }
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = Man::new(command.clone())
        .section(SECTION)
        .manual("pod-steer")
        .source(concat!("pod-steer ", env!("CARGO_PKG_VERSION")));
    man.generate_to(dir).with_context(|| format!("cannot write the manual page of {name}"))?;
    Ok(())
}

#[cfg(test)]
mod scripts;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_is_completed() {
        let dir = env::temp_dir().join(format!("pod-steer-pages-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        manual_pages(&command(), &dir).unwrap();
        let completions = SHELLS.map(|shell| {
            let mut completions = Vec::new();
            clap_complete::generate(shell, &mut command(), "pod-steer", &mut completions);
            String::from_utf8(completions).unwrap()
        });
        let mut pages = 0;
        for inner in command().get_subcommands() {
            let page = dir.join(format!("pod-steer-{}.{SECTION}", inner.get_name()));
            assert_eq!(page.exists(), !inner.is_hide_set(), "{}", page.display());
            pages += usize::from(page.exists());
            let name = inner.get_name();
            assert!(inner.is_hide_set() || completions.iter().all(|text| text.contains(name)), "{name}");
        }
        assert!(pages > 15 && dir.join("pod-steer.8").exists() && dir.join("pod-steer-config-check.8").exists());
        let run = fs::read_to_string(dir.join("pod-steer-run.8")).unwrap();
        assert!(run.starts_with(".ie") && run.contains(".TH") && run.contains("trust\\-image\\-labels"), "{run}");
        fs::remove_dir_all(dir).unwrap();
    }
}
