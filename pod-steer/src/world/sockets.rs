//! The sockets of each backend.

use std::{cell::OnceCell, collections::HashMap};

use super::{Socket, score::Bound};

/// All sockets, those of one backend beside each other.
pub struct Sockets<'a> {
    /// By backend and cookie.
    all: Vec<(u32, u64, &'a Socket)>,
    /// By the index of a backend, which is a small number: where its own begin.
    starts: Vec<usize>,
    /// By backend, namespace and port: how its sockets are bound, each way once. Made when it is first asked for.
    bounds: OnceCell<HashMap<(u32, u64, u16), Vec<Bound>>>,
}

impl<'a> Sockets<'a> {
    /// Of sockets with their cookies.
    pub fn new(sockets: impl IntoIterator<Item = (&'a u64, &'a Socket)>) -> Self {
        let mut all: Vec<_> = sockets.into_iter().map(|(cookie, own)| (own.backend, *cookie, own)).collect();
        all.sort_unstable_by_key(|(backend, cookie, _)| (*backend, *cookie));
        let mut starts = Vec::new();
        for (at, (backend, ..)) in all.iter().enumerate() {
            if starts.len() <= *backend as usize {
                starts.resize(*backend as usize + 1, at);
            }
        }
        Self { all, starts, bounds: OnceCell::new() }
    }

    /// The ways in which the sockets of a backend are bound that listen on a port, each once.
    pub(super) fn bounds(&self, backend: u32, netns_cookie: u64, port: u16) -> &[Bound] {
        let bounds = self.bounds.get_or_init(|| {
            let mut bounds: HashMap<_, Vec<Bound>> = HashMap::new();
            for (backend, _, socket) in &self.all {
                let own = bounds.entry((*backend, socket.netns_cookie, socket.port)).or_default();
                let bound = Bound::from(*socket);
                if own.last() != Some(&bound) && !own.contains(&bound) {
                    own.push(bound);
                }
            }
            bounds
        });
        bounds.get(&(backend, netns_cookie, port)).map_or(&[], Vec::as_slice)
    }

    /// Those of one backend, with their cookies.
    pub fn of(&self, backend: u32) -> impl Iterator<Item = (u64, &'a Socket)> + Clone {
        let start = self.starts.get(backend as usize).copied().unwrap_or(self.all.len());
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
    fn each_backend_has_its_own() {
        let of = |backend| socket(backend, "0.0.0.0", 80);
        let sockets = [(9, of(3)), (7, of(0)), (8, of(3)), (5, of(6))];
        let sockets = Sockets::new(sockets.iter().map(|(cookie, socket)| (cookie, socket)));
        let cookies = |backend| sockets.of(backend).map(|(cookie, _)| cookie).collect::<Vec<_>>();
        assert_eq!([0, 3, 6].map(cookies), [vec![7], vec![8, 9], vec![5]]);
        assert!([1, 2, 4, 5, 7, u32::MAX].iter().all(|backend| cookies(*backend).is_empty()));
        assert_eq!(Sockets::new([]).of(0).count(), 0);
    }
}
