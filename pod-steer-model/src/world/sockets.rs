//! The sockets of each backend.

use std::{cell::OnceCell, collections::BTreeMap};

use super::{Socket, score::Bound};
use crate::{
    ids::{BackendIndex, NetnsCookie, SocketCookie},
    ports::Port,
};

/// Maximum number of addresses and devices on which a backend is served for one of its ports: each makes a rule of its
/// own in every plan.
pub(super) const WAYS_MAX: usize = 128;

/// All sockets, ordered by backend.
pub struct Sockets<'a> {
    /// By backend and cookie.
    all: Vec<(BackendIndex, SocketCookie, &'a Socket)>,
    /// By the index of a backend, which is a small number: where its sockets begin.
    starts: Vec<usize>,
    /// By backend, namespace and port. Built on first use.
    by_port: OnceCell<BTreeMap<(BackendIndex, NetnsCookie, Port), OfPort>>,
}

/// The sockets of a backend that listen on one port.
#[derive(Default)]
struct OfPort {
    ways: Vec<(Bound, Vec<SocketCookie>)>,
    overflows: bool,
}

impl OfPort {
    fn add(&mut self, bound: Bound, cookie: SocketCookie) {
        match self.ways.iter().rposition(|(other, _)| *other == bound) {
            Some(place) => self.ways[place].1.push(cookie),
            None if self.ways.len() < WAYS_MAX => self.ways.push((bound, vec![cookie])),
            None => self.overflows = true,
        }
    }
}

impl<'a> Sockets<'a> {
    /// Builds the index from sockets with their cookies.
    pub fn new(sockets: impl IntoIterator<Item = (&'a SocketCookie, &'a Socket)>) -> Self {
        let mut all: Vec<_> = sockets.into_iter().map(|(cookie, own)| (own.backend, *cookie, own)).collect();
        all.sort_unstable_by_key(|(backend, cookie, _)| (*backend, *cookie));
        let mut starts = Vec::new();
        for (at, (backend, ..)) in all.iter().enumerate() {
            if starts.len() <= backend.0 as usize {
                starts.resize(backend.0 as usize + 1, at);
            }
        }
        Self { all, starts, by_port: OnceCell::new() }
    }

    /// The distinct ways in which a backend's sockets on one port are bound, each with the cookies of its sockets. If
    /// there are more than [`WAYS_MAX`], those of the older sockets.
    pub(super) fn ways(
        &self,
        backend: BackendIndex,
        netns_cookie: NetnsCookie,
        port: Port,
    ) -> &[(Bound, Vec<SocketCookie>)] {
        self.by_port().get(&(backend, netns_cookie, port)).map_or(&[], |of_port| of_port.ways.as_slice())
    }

    /// The ports, with the index of their backend, whose sockets are bound in more than [`WAYS_MAX`] ways. The further
    /// ways serve no client.
    pub(super) fn overflowing(&self) -> impl Iterator<Item = (BackendIndex, Port)> {
        self.by_port().iter().filter(|(_, of_port)| of_port.overflows).map(|((backend, _, port), _)| (*backend, *port))
    }

    fn by_port(&self) -> &BTreeMap<(BackendIndex, NetnsCookie, Port), OfPort> {
        self.by_port.get_or_init(|| {
            let mut by_port: BTreeMap<_, OfPort> = BTreeMap::new();
            for (backend, cookie, socket) in &self.all {
                let own = by_port.entry((*backend, socket.netns_cookie, socket.port)).or_default();
                own.add(Bound::from(*socket), *cookie);
            }
            by_port
        })
    }

    /// The sockets of one backend, with their cookies.
    pub fn of(&self, backend: BackendIndex) -> impl Iterator<Item = (SocketCookie, &'a Socket)> + Clone {
        let start = self.starts.get(backend.0 as usize).copied().unwrap_or(self.all.len());
        self.all[start..]
            .iter()
            .take_while(move |(other, ..)| *other == backend)
            .map(|(_, cookie, own)| (*cookie, *own))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::tests::socket;

    #[test]
    fn sockets_are_found_by_backend() {
        let of = |backend| socket(backend, "0.0.0.0", 80);
        let sockets = [(9, of(3)), (7, of(0)), (8, of(3)), (5, of(6))].map(|(cookie, own)| (SocketCookie(cookie), own));
        let sockets = Sockets::new(sockets.iter().map(|(cookie, socket)| (cookie, socket)));
        let cookies = |backend| sockets.of(BackendIndex(backend)).map(|(cookie, _)| cookie.0).collect::<Vec<_>>();
        assert_eq!([0, 3, 6].map(cookies), [vec![7], vec![8, 9], vec![5]]);
        assert!([1, 2, 4, 5, 7, u32::MAX].iter().all(|backend| cookies(*backend).is_empty()));
        assert_eq!(Sockets::new([]).of(BackendIndex(0)).count(), 0);
    }

    #[test]
    fn a_backend_listens_at_a_limited_number_of_addresses() {
        let at = |number: usize| socket(0, &format!("127.1.{}.{}", number / 250, number % 250 + 1), 80);
        let mut sockets: Vec<(SocketCookie, Socket)> =
            (0..WAYS_MAX + 5).map(|number| (SocketCookie(number as u64), at(number))).collect();
        sockets.push((SocketCookie(900), at(3)));
        let all = Sockets::new(sockets.iter().map(|(cookie, socket)| (cookie, socket)));
        let ways = all.ways(BackendIndex(0), socket(0, "127.0.0.1", 80).netns_cookie, Port::tcp(80));
        assert_eq!((ways.len(), ways[3].1.as_slice()), (WAYS_MAX, [3, 900].map(SocketCookie).as_slice()));
        assert_eq!(all.overflowing().collect::<Vec<_>>(), [(BackendIndex(0), Port::tcp(80))]);
        let few = Sockets::new(sockets[5..].iter().map(|(cookie, socket)| (cookie, socket)));
        assert_eq!(few.overflowing().count(), 1, "another address of the last one");
    }
}
