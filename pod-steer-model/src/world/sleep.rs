//! Whether a service can be put to sleep: its containers are stopped until a client comes, and started by their engine.

use super::{Backend, Kind, Network, Phase, World};
use crate::condition::{Condition, Reason};

impl World {
    /// Why a service cannot be put to sleep; nothing if it can. `own_uid` is the user that listeners which hold clients belong to.
    pub fn cannot_sleep(&self, service: &str, own_uid: u32) -> Option<Condition> {
        let is_up = |backend: &&Backend| !matches!(backend.phase, Phase::Created | Phase::Exited);
        let pods = self.pods();
        let of_backend = self.of_service(service).filter(is_up).find_map(|backend| {
            let name = &backend.name;
            let (why, remedy) = match &backend.kind {
                Kind::Exec | Kind::Registered { .. } => (
                    format!("no engine has started {name}, so it could not be started again"),
                    "run it in a container, or set `pod-steer.idle=0s`",
                ),
                Kind::Container { .. } if backend.is_transient => (
                    format!("{name} is removed by its engine when it ends (--rm), so it could not be started again"),
                    "create it without --rm",
                ),
                Kind::Container { .. } if backend.forwarded().is_some() || is_own(backend) => (
                    format!(
                        "the network namespace of {name} ends with the container, so no client could be held there"
                    ),
                    "run it on the host's network, or set `pod-steer.idle=0s`",
                ),
                Kind::Container { .. } if pods.has(backend) => (
                    format!(
                        "the network namespace of {name} may end with its containers, so no client could be held there"
                    ),
                    "run it on the host's network, or set `pod-steer.idle=0s`",
                ),
                Kind::Container { .. } if backend.has_uncounted_connections() => (
                    format!("not all connections of {name} are counted: it listened before its programs were attached"),
                    "restart it",
                ),
                Kind::Container { .. } => return None,
            };
            Some(Condition::new(Reason::CannotSleep, told(why), remedy))
        });
        of_backend.or_else(|| {
            let mut groups = self.groups(service, own_uid).into_values();
            let why = groups.find_map(|group| group.refused)?;
            Some(Condition::without_remedy(Reason::CannotSleep, told(format!("its clients could not be held: {why}"))))
        })
    }
}

fn is_own(backend: &Backend) -> bool {
    backend.network == Network::Own
}

fn told(why: String) -> String {
    format!("it is not stopped when it is idle: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tests::{POD, backend, socket, world};

    /// A container on the host's network that serves.
    fn sleeper() -> World {
        let mut own = backend(0, "web", "80:8080");
        own.kind = Kind::Container { engine: "unix:///run/docker.sock".to_owned() };
        world([own], [socket(0, "0.0.0.0", 8080)])
    }

    fn why(change: impl FnOnce(&mut World)) -> String {
        let mut world = sleeper();
        change(&mut world);
        world.cannot_sleep("web", 0).map(|condition| condition.to_string()).unwrap_or_default()
    }

    fn of(world: &mut World) -> &mut Backend {
        world.backends.get_mut("id0").unwrap()
    }

    #[test]
    fn only_a_container_that_can_be_started_again_sleeps() {
        assert_eq!(why(|_| {}), "");
        assert!(why(|world| of(world).kind = Kind::Exec).contains("no engine has started name0"));
        assert!(why(|world| of(world).is_transient = true).contains("create it without --rm"));
        let exited = |world: &mut World| {
            of(world).is_transient = true;
            of(world).phase = Phase::Exited;
        };
        assert_eq!(why(exited), "", "one that does not run does not have to be stopped");
    }

    #[test]
    fn its_clients_must_be_counted_and_held() {
        assert!(why(|world| of(world).counts_incomplete = true).ends_with("restart it"));
        let own = |world: &mut World| (of(world).network, of(world).netns) = (Network::Own, Some(POD));
        assert!(why(own).contains("ends with the container"));
        let other_user = |world: &mut World| world.sockets.values_mut().for_each(|socket| socket.uid = Some(33));
        assert!(why(other_user).contains("user 33"));
    }
}
