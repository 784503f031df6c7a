//! The commented configuration file: every key with its meaning and a value. The flags of `run` and the declarations of the options of
//! services have both, so that there is no second list. Pure.
#![forbid(unsafe_code)]

use clap::{Args as _, builder::PossibleValue};
use serde_json::Value;

use super::{
    DEFAULT_BPFFS, DEFAULT_ENGINE, DEFAULT_RUNTIME_DIR, DEFAULT_SOCKET, DEFAULT_STATE_DIR,
    args::{LogFormat, RunArgs},
    file::File,
};
use crate::settings::commented::{paragraph, tables};
use pod_steer_ebpf::BACKENDS_MAX_DEFAULT;

/// The group of operators that packages make.
pub const PACKAGED_GROUP: &str = "pod-steer";

/// A value of every key: the default, or an example.
fn values() -> File {
    File {
        engine: Some(vec![DEFAULT_ENGINE.to_owned()]),
        runtime_dir: Some(DEFAULT_RUNTIME_DIR.into()),
        state_dir: Some(DEFAULT_STATE_DIR.into()),
        bpffs: Some(DEFAULT_BPFFS.into()),
        socket: Some(DEFAULT_SOCKET.into()),
        metrics: Some("127.0.0.1:9464".to_owned()),
        group: Some(PACKAGED_GROUP.to_owned()),
        viewers: Some("adm".to_owned()),
        max_backends: Some(BACKENDS_MAX_DEFAULT),
        log_decisions: Some(false),
        log_level: Some("info".to_owned()),
        log_format: Some(LogFormat::default()),
        allow_ports: Some("80,443,8000-8999".to_owned()),
        trust_image_labels: Some(false),
        service: Default::default(),
    }
}

/// The file. Every key is a comment, but those that are `set`.
pub fn page(set: &[&str]) -> String {
    // JSON and TOML write strings, numbers, booleans and lists alike.
    let values = serde_json::to_value(values()).unwrap_or_default();
    let flags = RunArgs::augment_args(clap::Command::new("run"));
    let keys = flags.get_arguments().filter_map(|flag| {
        let key = flag.get_long()?;
        let value = values.get(key)?;
        let hash = if set.contains(&key) { "" } else { "#" };
        Some(format!("{}{hash}{key} = {value}\n\n", paragraph(&meaning(flag, value))))
    });
    let head = [
        paragraph(
            "The settings of pod-steer. Each key stands here as a comment, with its default or an example: to set it, remove the # \
             before it.",
        ),
        "#\n".to_owned(),
        paragraph(
            "`pod-steer config check` checks this file. `systemctl reload pod-steer` applies it; `pod-steer status` names the keys that \
             wait for a restart. A flag of `pod-steer run` or its variable overrides a key.",
        ),
        "\n".to_owned(),
    ];
    let page = head.into_iter().chain(keys).chain([tables()]).collect::<String>();
    page.trim_end().to_owned() + "\n"
}

/// The help of a flag as sentences.
fn meaning(flag: &clap::Arg, value: &Value) -> String {
    let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
    let (text, default) = match help.split_once("[default: ") {
        Some((text, default)) => (text, default.trim_end_matches(']').to_owned()),
        None => (help.as_str(), value.to_string()),
    };
    let names = flag.get_possible_values();
    let names: Vec<&str> = names.iter().map(PossibleValue::get_name).collect();
    let is_named = !names.is_empty() && !value.is_boolean();
    let names = if is_named { format!(" Values: {}.", names.join(", ")) } else { String::new() };
    format!("{}.{names} Default: {default}.", text.trim_end().trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::config::services;

    /// The file with every key set.
    fn set(page: &str) -> String {
        let line = |line: &str| line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).map(str::to_owned);
        page.lines().map(|text| line(text).unwrap_or_else(|| text.to_owned()) + "\n").collect()
    }

    #[test]
    fn every_flag_but_the_path_of_the_file_is_a_key() {
        let page = page(&[]);
        let flags = RunArgs::augment_args(clap::Command::new("run"));
        for flag in flags.get_arguments().filter_map(clap::Arg::get_long).filter(|flag| *flag != "config") {
            assert_eq!(
                page.matches(&format!("\n#{flag} = ")).count(),
                if flag == "allow-ports" { 2 } else { 1 },
                "{flag}"
            );
        }
    }

    #[test]
    fn the_file_changes_nothing_and_every_key_in_it_is_valid() {
        let page = page(&[]);
        assert_eq!(toml::from_str::<File>(&page).unwrap(), File::default());
        let mut file: File = toml::from_str(&set(&page)).unwrap();
        let tables = services::read(&std::mem::take(&mut file.service), &|_| Some(33)).unwrap();
        assert_eq!(file, values());
        assert!(tables.others.check.is_some() && tables.named["worker"].check.is_some());
        assert_eq!(toml::from_str::<File>(&super::page(&["group"])).unwrap().group.as_deref(), Some(PACKAGED_GROUP));
    }

    #[test]
    fn the_committed_file_is_this_one() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/pod-steer.toml");
        let committed = fs::read_to_string(file).unwrap_or_default();
        assert!(
            committed == page(&[]),
            "`cargo run -p pod-steer -- config example > examples/pod-steer.toml` writes it anew"
        );
    }
}
