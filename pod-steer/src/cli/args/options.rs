//! Flags for the options of a service, one for each declared option.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::settings::{
    GivenOptions,
    options::{KEYS, declarations},
};

/// The options that flags of `exec` or `register` give.
#[derive(Clone, Copy, Debug, Default)]
pub struct OptionArgs(pub GivenOptions);

impl Args for OptionArgs {
    fn augment_args(command: Command) -> Command {
        declarations().into_iter().fold(command, |command, declared| {
            let help = format!(
                "{} Values: {} [default: as configured, else {}]",
                declared.doc,
                declared.values,
                declared.default.trim_matches('`')
            );
            let key = declared.key;
            let arg = Arg::new(key).long(key.replace('.', "-")).value_name("VALUE").help(help.replace('`', ""));
            command.arg(arg.allow_hyphen_values(true).value_parser(move |text: &str| checked(key, text)))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OptionArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let text = |key: &&'static str| Some((*key, matches.get_one::<String>(key)?.as_str()));
        let texts = KEYS.iter().filter_map(text).collect();
        // Each value has been checked.
        Ok(Self(GivenOptions::read(&texts, |_, _, _| {})))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0 = Self::from_arg_matches(matches)?.0.or(&self.0);
        Ok(())
    }
}

/// Checks a value. Returns the text, or the error.
fn checked(key: &'static str, text: &str) -> Result<String, String> {
    let mut refused = None;
    GivenOptions::read(&BTreeMap::from([(key, text)]), |_, _, wrong| refused = Some(wrong));
    refused.map_or_else(|| Ok(text.to_owned()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Fallback, options::Affinity};

    fn read(args: &[&str]) -> Result<GivenOptions, String> {
        let command = OptionArgs::augment_args(Command::new("exec"));
        let matches = command.try_get_matches_from([&["exec"], args].concat()).map_err(|error| error.to_string())?;
        Ok(OptionArgs::from_arg_matches(&matches).unwrap().0)
    }

    #[test]
    fn flags_are_read_as_labels_are() {
        assert_eq!(read(&[]), Ok(GivenOptions::default()));
        let given = GivenOptions {
            fallback: Some(Fallback::Pass),
            slow_start_ms: Some(30_000),
            affinity: Some(Affinity::Client { bits_v4: 24, bits_v6: 128 }),
            ..GivenOptions::default()
        };
        assert_eq!(read(&["--fallback", "pass", "--slow-start=30s", "--affinity=client/24"]), Ok(given));
        for (args, said) in [
            (["--fallback", "drop"], "use refuse (when no backend is left"),
            (["--slow-start", "-1s"], "it is negative"),
            (["--affinity", "client/0"], "as in client/24, client/64"),
        ] {
            let error = read(&args).unwrap_err();
            assert!(error.contains(args[0]) && error.contains(said), "{error}");
        }
    }
}
