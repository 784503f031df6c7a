//! What the configuration allows a service: ports, images and users.

use std::collections::BTreeMap;

use super::{Backend, Kind, Socket, World};
use crate::{
    condition::{Condition, Reason},
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    ports::Port,
    settings::names::table_name,
};

impl World {
    /// Whether a service may claim a port.
    pub fn may_claim(&self, service: &str, port: Port) -> bool {
        self.policy.allows(port) && self.configured.may_claim(service, port)
    }

    /// Why the service of a backend does not accept its image. The image of a container that an earlier version stored
    /// is not known before its engine has described it.
    pub fn image_fault(&self, backend: &Backend) -> Option<Condition> {
        let service = &backend.spec.service;
        match (&backend.kind, &backend.image) {
            (Kind::Container { .. }, None) => None,
            (Kind::Container { .. }, Some(image)) => self.configured.image_fault(service, image),
            _ => self.configured.process_fault(service),
        }
    }

    /// The sockets that get no clients because of the user that owns them, by cookie: the index of the backend, and the
    /// condition; none while the user is unknown.
    pub(super) fn refused_sockets(&self) -> BTreeMap<SocketCookie, (BackendIndex, Option<Condition>)> {
        let restricted = self.restricted_sockets().filter_map(|(cookie, socket, backend)| {
            let service = &backend.spec.service;
            let (table, users) = self.configured.users(service)?;
            let uid = match socket.uid {
                Some(uid) if users.contains(&uid) => return None,
                uid => uid,
            };
            let condition = uid.map(|uid| {
                let (port, table) = (socket.port, table_name(table));
                let message = format!(
                    "its socket on port {port} belongs to user {uid}, which is not allowed for the service `{service}` by \
                     `allow-users` in {table}"
                );
                Condition::new(Reason::UserNotAllowed, message, "add the user there, or run the server as another")
            });
            Some((cookie, (backend.index, condition)))
        });
        restricted.collect()
    }

    /// Cookies of the sockets that get no clients until their user is known, each with the cookie of its namespace.
    pub fn sockets_of_unknown_users(&self) -> Vec<(SocketCookie, NetnsCookie)> {
        let unknown = self.restricted_sockets().filter(|(_, socket, _)| socket.uid.is_none());
        unknown.map(|(cookie, socket, _)| (cookie, socket.netns_cookie)).collect()
    }

    /// The sockets of services that restrict users, and the backend of each.
    fn restricted_sockets(&self) -> impl Iterator<Item = (SocketCookie, &Socket, &Backend)> {
        let some = self.configured.restricts_users();
        let restricted = |backend: &&Backend| some && self.configured.users(&backend.spec.service).is_some();
        let backends: BTreeMap<BackendIndex, &Backend> =
            self.backends.values().filter(restricted).map(|backend| (backend.index, backend)).collect();
        let sockets = self.sockets.iter().take_while(move |_| some);
        sockets.filter_map(move |(cookie, socket)| {
            let backend = backends.get(&socket.backend).filter(|backend| backend.serves_by(socket))?;
            Some((*cookie, socket, *backend))
        })
    }
}

#[cfg(test)]
mod tests {
    use pod_steer_ebpf::FAMILY_V4;

    use crate::{
        condition::Reason,
        ids::{BackendIndex, SocketCookie},
        settings::{Allowed, Image, ImagePattern, Settings},
        world::{
            Backend, Kind, Socket, State, World,
            tests::{HOST, backend, key, members, reasons, socket, world},
        },
    };

    fn container(index: u32, image: Option<Image>) -> Backend {
        let kind = Kind::Container { engine: "unix:///engine".to_owned() };
        Backend { kind, image, ..backend(index, "web", "80:8080") }
    }

    #[test]
    fn only_allowed_images_serve() {
        let stored = serde_json::to_value(container(2, None)).unwrap();
        let mut of_earlier = stored.clone();
        of_earlier.as_object_mut().unwrap().remove("image").expect("it is stored");
        let unknown: Backend = serde_json::from_value(of_earlier).unwrap();
        let (good, bad) = (Some(Image::new("web:1", "")), Some(Image::new("api:1", "")));
        let backends = [container(0, good), container(1, bad), unknown, backend(3, "web", "80:8080")];
        let sockets = [0, 1, 2, 3].map(|index| socket(index, "0.0.0.0", 8080));
        let mut world = world(backends, sockets);
        assert!(world.plan().states.values().all(|state| *state == State::Ready));
        let images = Some(vec![ImagePattern::parse("web:*").unwrap()]);
        world.configured.others = Settings { allowed: Allowed { images, ..Allowed::default() }, ..Settings::default() };
        let plan = world.plan();
        let states = [0, 1, 2, 3].map(|index| plan.states[&BackendIndex(index)]);
        assert_eq!(states, [State::Ready, State::NotSteered, State::Ready, State::NotSteered]);
        assert_eq!([1, 3].map(|index| reasons(&plan, index)), [const { [Reason::ImageNotAllowed] }; 2]);
        let said = [1, 3].map(|index| plan.conditions[&BackendIndex(index)][0].message.as_str());
        assert!(said[0].contains("api:1") && said[1].contains("no image"), "{said:?}");
    }

    fn of_user(index: u32, uid: Option<u32>) -> Socket {
        Socket { uid, ..socket(index, "0.0.0.0", 8080) }
    }

    fn allow(world: &mut World, users: &[u32]) {
        let users = Some(users.iter().copied().collect());
        let settings = Settings { allowed: Allowed { users, ..Allowed::default() }, ..Settings::default() };
        world.configured.named.insert("web".to_owned(), settings);
    }

    #[test]
    fn only_sockets_of_allowed_users_get_clients() {
        let backends = [0, 1, 2].map(|index| backend(index, "web", "80:8080"));
        let mut world = world(backends, [of_user(0, Some(0)), of_user(1, Some(1000)), of_user(2, None)]);
        let key = key(FAMILY_V4, 80);
        assert_eq!(members(&world.plan(), key), [100, 101, 102]);
        allow(&mut world, &[1000, 1001]);
        let plan = world.plan();
        assert_eq!(members(&plan, key), [101]);
        // One whose user is not known yet waits for that.
        assert_eq!(
            [0, 1, 2].map(|index| plan.states[&BackendIndex(index)]),
            [State::NotSteered, State::Ready, State::Starting]
        );
        let said = &plan.conditions[&BackendIndex(0)][0].message;
        assert!(said.contains("user 0, which is not allowed") && said.contains("in [service.web]"), "{said}");
        assert_eq!((reasons(&plan, 0), plan.conditions.len()), (vec![Reason::UserNotAllowed], 1));
        assert_eq!(world.sockets_of_unknown_users(), [(SocketCookie(102), HOST.cookie)]);
        // The kernel program would give clients to the only backend's newest listener.
        world.backends.retain(|_, backend| backend.index == BackendIndex(1));
        assert_eq!(world.plan().rules[&key].only, None);
        allow(&mut world, &[1001]);
        let plan = world.plan();
        assert!(members(&plan, key).is_empty(), "the service keeps its port, and clients are refused");
    }

    #[test]
    fn a_refused_socket_is_withheld_beside_one_that_serves() {
        let mut both = world([backend(0, "web", "80:8080")], [of_user(0, Some(0)), of_user(0, Some(1000))]);
        both.sockets = (100..).map(SocketCookie).zip(both.sockets.into_values()).collect();
        allow(&mut both, &[0]);
        let plan = both.plan();
        let table = plan.rules[&key(FAMILY_V4, 80)].table.as_ref().unwrap();
        let cookies = |members: &[crate::slots::Member]| members.iter().map(|one| one.cookie.0).collect::<Vec<_>>();
        assert_eq!((cookies(&table.members), cookies(&table.withheld)), (vec![100], vec![101]));
        assert_eq!(plan.states[&BackendIndex(0)], State::Ready);
        assert!(plan.conditions[&BackendIndex(0)][0].message.contains("user 1000"));
    }
}
