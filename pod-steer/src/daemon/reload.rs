//! The settings are read again when the daemon gets SIGHUP: what can change while it runs is in effect at once, the rest is named.
//! Settings that cannot be read or are wrong change nothing.

use std::collections::BTreeSet;

use tokio::sync::watch;
use tracing::{info, warn};

use super::{Event, control::Control};
use crate::{
    condition::{Condition, Reason},
    config::{Changes, RunConfig, args::RunArgs},
    ids::{BackendIndex, NetnsCookie},
    listening,
    ports::Port,
    process_set::open_netns,
};

/// Subject of conditions.
const SUBJECT: &str = "the settings";
/// Keys of what the state in the kernel was made with: a daemon that adopts it does not change them.
const AFTER_UNLOAD: [&str; 2] = ["bpffs", "max-backends"];
/// Event when the settings were read again.
const RELOADED: &str = "settings-read";

/// Sets the level of the log.
pub type SetLogLevel = Box<dyn Fn(&str) -> Result<(), String>>;

/// Where the settings come from, and what they are.
pub struct Reload {
    /// In effect.
    config: RunConfig,
    /// Flags and environment, which are stronger than the file.
    args: RunArgs,
    set_log_level: SetLogLevel,
    /// To the engines: whether labels of images count. At each message they describe all of their containers.
    engines: watch::Sender<bool>,
    /// The file is being read; and whether it is to be read once more.
    under_way: Option<bool>,
}

impl Reload {
    /// Settings as they are at the start.
    pub fn new(config: RunConfig, args: RunArgs, set_log_level: SetLogLevel) -> Self {
        let (engines, _) = watch::channel(config.trust_image_labels);
        Self { config, args, set_log_level, engines, under_way: None }
    }

    /// What is in effect.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// For an engine.
    pub fn trust_image_labels(&self) -> watch::Receiver<bool> {
        self.engines.subscribe()
    }
}

/// The conditions of keys that are not in effect, by reason.
fn not_in_effect(keys: &[&str]) -> [(Reason, Option<Condition>); 2] {
    let (after_unload, at_restart): (Vec<&str>, Vec<&str>) = keys.iter().partition(|key| AFTER_UNLOAD.contains(key));
    let differ = |reason: Reason, keys: &[&str], remedy: &str| {
        let verb = if keys.len() == 1 { "differs" } else { "differ" };
        let message = format!("{} {verb} from what is in effect", keys.join(", "));
        (reason, (!keys.is_empty()).then(|| Condition::new(reason, message, remedy)))
    };
    [
        differ(Reason::SettingsAfterRestart, &at_restart, "restart the daemon to apply, which loses no connection"),
        differ(
            Reason::SettingsAfterUnload,
            &after_unload,
            "run `pod-steer unload` and start the daemon again to apply, which ends steering meanwhile",
        ),
    ]
}

impl Control {
    /// Reads the settings again, beside the loop: the file may be on a disk that is slow.
    pub(super) fn reload(&mut self) {
        if let Some(again) = &mut self.reload.under_way {
            *again = true;
            return;
        }
        self.reload.under_way = Some(false);
        let mut args = self.reload.args.clone();
        // What was read once has to be there, also if it is the default file.
        args.config = args.config.or_else(|| self.reload.config.file.clone());
        let failed =
            Event::SettingsRead(Err("reading the settings panicked; the reason is on standard error".to_owned()));
        self.effects.run(failed, move || {
            Event::SettingsRead(RunConfig::resolve(args).map(Box::new).map_err(|error| crate::chain(&error)))
        });
    }

    /// The settings were read again.
    pub(super) fn settings_read(&mut self, read: Result<Box<RunConfig>, String>) {
        let again = self.reload.under_way.take().unwrap_or(false);
        match read {
            Ok(new) => self.follow_settings(*new),
            Err(error) => {
                let message = format!("{error}; nothing was changed");
                if self.conditions.holds(Reason::SettingsInvalid) {
                    warn!("the settings cannot be read again: {message}");
                }
                let condition = Condition::new(Reason::SettingsInvalid, message, "correct it and reload again");
                self.conditions.set(SUBJECT, condition);
            }
        }
        if again {
            self.reload();
        }
    }

    fn follow_settings(&mut self, new: RunConfig) {
        self.conditions.clear(Reason::SettingsInvalid, SUBJECT);
        let (policy_before, before) = (self.world.policy.clone(), self.world.configured.clone());
        let Changes { in_effect, at_restart, asks_engines } = self.reload.config.follow(new);
        let RunConfig { ports, services, log_level, trust_image_labels, .. } = &self.reload.config;
        self.world.policy = ports.clone();
        self.world.configured = services.clone();
        if let Err(error) = (self.reload.set_log_level)(log_level) {
            warn!(%error, "cannot set the log level");
        }
        if asks_engines {
            self.reload.engines.send_replace(*trust_image_labels);
        }
        self.drop_refused_images();
        self.learn_users();
        let could = |service: &str, port| policy_before.allows(port) && before.may_claim(service, port);
        self.enumerate_where_more_is_allowed(could);
        // A check may be for a port on which a server listens that was of no interest before.
        let others = self.world.backends.values().filter(|backend| {
            before.listening_ports(&backend.spec) != self.world.configured.listening_ports(&backend.spec)
        });
        let others: Vec<BackendIndex> = others.map(|backend| backend.index).collect();
        others.into_iter().for_each(|index| self.look_for_sockets(index));

        let changed = if in_effect.is_empty() { "nothing has changed".to_owned() } else { in_effect.join(", ") };
        info!(changed = %changed, "the settings were read again");
        self.tell("", SUBJECT, RELOADED, &changed);
        for (reason, condition) in not_in_effect(&at_restart) {
            match condition {
                Some(condition) => self.conditions.set(SUBJECT, condition),
                None => self.conditions.clear(reason, SUBJECT),
            }
        }
        self.touch();
    }

    /// Finds out who listens in each namespace where a backend may claim a port that it could not claim before. A namespace that was
    /// left, since nothing was claimed there, is opened by that as well.
    fn enumerate_where_more_is_allowed(&mut self, could: impl Fn(&str, Port) -> bool) {
        let mut namespaces = self.namespaces();
        let more = self.world.backends.values().filter(|backend| {
            let service = &backend.spec.service;
            let may = |port| self.world.may_claim(service, port) && !could(service, port);
            backend.spec.ports.iter().any(|map| may(map.service_port()))
        });
        let more: BTreeSet<NetnsCookie> = more.filter_map(|backend| Some(backend.netns?.cookie)).collect();
        namespaces.retain(|cookie, _| more.contains(cookie));
        for (cookie, (netns, sets)) in namespaces {
            let opened = open_netns(netns, &sets).and_then(|ns| Ok((listening::listeners(&ns, cookie)?, ns)));
            match opened {
                Ok((listeners, ns)) => {
                    self.note_listeners(cookie, listeners);
                    self.namespace_seen(netns, ns);
                }
                // The next resync tries again.
                Err(error) => warn!(%netns, %error, "the listeners of a namespace cannot be enumerated"),
            }
        }
    }
}
