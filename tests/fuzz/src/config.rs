//! The configuration file.

use std::{fs, path::PathBuf, process};

use pod_steer::{
    config::{RunConfig, args::RunArgs},
    labels,
    settings::GivenOptions,
};

use crate::assert_one_line;

pub fn run(input: &[u8]) {
    let path = file();
    fs::write(&path, input).expect("the directory of temporary files can be written");
    let args = RunArgs { config: Some(path.clone()), ..RunArgs::default() };
    let resolved = RunConfig::resolve(args);
    let _ = fs::remove_file(&path);
    match resolved {
        Ok(config) => check(&config),
        Err(error) => assert_one_line(&pod_steer::chain(&error)),
    }
}

/// A file of this thread's own.
fn file() -> PathBuf {
    std::env::temp_dir().join(format!("pod-steer-fuzz-{}-{:?}.toml", process::id(), std::thread::current().id()))
}

fn check(config: &RunConfig) {
    assert!(config.backends_max > 0);
    assert!(config.engines.iter().all(|engine| engine.starts_with("unix:///")));
    for (service, settings) in &config.services.named {
        let spec =
            labels::spec_from_flags(service, "80", "v1", 1, GivenOptions::default()).expect("its name was accepted");
        let options = config.services.options(service, &GivenOptions::default());
        assert!(options.panic_percent <= 100);
        assert!(settings.options.rollout.is_none_or(|rollout| rollout == options.rollout));
        assert!(!config.services.listening_ports(&spec).is_empty());
    }
}
