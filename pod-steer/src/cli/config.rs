//! `pod-steer config`

use super::{
    Failure, Outcome,
    args::ConfigCommand,
    terminal::{print, say},
};
use crate::config::{ConfigError, DEFAULT_FILE, RunConfig, args::RunArgs, commented};

pub(super) fn config(command: ConfigCommand) -> Outcome {
    let file = match command {
        ConfigCommand::Check { file } => file.unwrap_or_else(|| DEFAULT_FILE.into()),
        ConfigCommand::Example => return print(&commented::page(&[])),
    };
    let shown = file.display().to_string();
    match RunConfig::resolve(RunArgs { config: Some(file), ..RunArgs::default() }) {
        Ok(_) => print(&format!("ok: {shown}\n")),
        // A line for each.
        Err(ConfigError::Invalid { faults, .. }) => {
            faults.iter().for_each(|fault| say(&format!("`{shown}`, {fault}")));
            Err(Failure::Said(2))
        }
        Err(error) => Err(Failure::Input(crate::chain(&error))),
    }
}
