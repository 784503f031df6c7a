//! The network namespaces that backends were seen in, and those in which the lookup program is being attached.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
};

use crate::{ids::NetnsCookie, netns::Netns};

/// Network namespaces, by their cookie. `W` waits until a namespace is attached.
#[derive(Debug)]
pub struct Namespaces<W> {
    seen: HashMap<NetnsCookie, Seen>,
    attaching: HashMap<NetnsCookie, Vec<W>>,
}

/// A namespace that was seen.
#[derive(Debug)]
struct Seen {
    netns: Netns,
    /// Held open until the program is attached, and no longer, so that the namespace can end.
    file: Option<File>,
}

impl<W> Default for Namespaces<W> {
    fn default() -> Self {
        Self { seen: HashMap::new(), attaching: HashMap::new() }
    }
}

impl<W> Namespaces<W> {
    /// A namespace was seen. `file` is kept until it is attached; `None` if it is already.
    pub fn see(&mut self, netns: Netns, file: Option<File>) {
        self.seen.insert(netns.cookie, Seen { netns, file });
    }

    /// A namespace that was seen.
    pub fn get(&self, cookie: NetnsCookie) -> Option<Netns> {
        self.seen.get(&cookie).map(|seen| seen.netns)
    }

    /// Whether a file of a namespace is held open, to attach by it.
    pub fn is_open(&self, cookie: NetnsCookie) -> bool {
        self.seen.get(&cookie).is_some_and(|seen| seen.file.is_some())
    }

    /// Takes the file by which a namespace is to be attached, if there is one.
    pub fn take_file(&mut self, cookie: NetnsCookie) -> Option<(Netns, File)> {
        let seen = self.seen.get_mut(&cookie)?;
        Some((seen.netns, seen.file.take()?))
    }

    /// The inode of each namespace that was seen.
    pub fn inodes(&self) -> BTreeMap<NetnsCookie, u64> {
        self.seen.iter().map(|(cookie, seen)| (*cookie, seen.netns.inode)).collect()
    }

    /// Nothing is steered in a namespace any more. Returns it if it was seen.
    pub fn forget(&mut self, cookie: NetnsCookie) -> Option<Netns> {
        self.seen.remove(&cookie).map(|seen| seen.netns)
    }

    /// Forgets the namespaces of which this is false.
    pub fn retain(&mut self, stays: impl Fn(NetnsCookie) -> bool) {
        self.seen.retain(|cookie, _| stays(*cookie));
    }

    /// The program is being attached in a namespace.
    pub fn begin_attach(&mut self, cookie: NetnsCookie) {
        self.attaching.entry(cookie).or_default();
    }

    /// Whether the program is being attached in a namespace.
    pub fn is_attaching(&self, cookie: NetnsCookie) -> bool {
        self.attaching.contains_key(&cookie)
    }

    /// The namespaces in which the program is being attached.
    pub fn attaching(&self) -> impl Iterator<Item = NetnsCookie> {
        self.attaching.keys().copied()
    }

    /// Waits until the program is attached. Gives `waiting` back if it is not being attached.
    pub fn wait(&mut self, cookie: NetnsCookie, waiting: W) -> Option<W> {
        match self.attaching.get_mut(&cookie) {
            Some(all) => {
                all.push(waiting);
                None
            }
            None => Some(waiting),
        }
    }

    /// The program is attached, or cannot be. Returns all that have waited.
    pub fn end_attach(&mut self, cookie: NetnsCookie) -> Vec<W> {
        self.attaching.remove(&cookie).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: NetnsCookie = NetnsCookie(1);
    const TWO: NetnsCookie = NetnsCookie(2);

    fn netns(cookie: NetnsCookie) -> Netns {
        Netns { dev: 4, inode: 1000 + cookie.0, cookie }
    }

    #[test]
    fn a_file_is_held_until_it_is_taken() {
        let mut namespaces = Namespaces::<()>::default();
        namespaces.see(netns(ONE), File::open("/dev/null").ok());
        assert!(namespaces.is_open(ONE) && namespaces.take_file(ONE).is_some());
        assert!(!namespaces.is_open(ONE) && namespaces.take_file(ONE).is_none());
        assert_eq!((namespaces.get(ONE), namespaces.inodes().get(&ONE)), (Some(netns(ONE)), Some(&1001)));
        namespaces.see(netns(TWO), None);
        namespaces.retain(|cookie| cookie == TWO);
        assert_eq!((namespaces.forget(ONE), namespaces.forget(TWO)), (None, Some(netns(TWO))));
    }

    #[test]
    fn those_that_wait_hear_of_the_attachment_once() {
        let mut namespaces = Namespaces::default();
        assert_eq!(namespaces.wait(ONE, "early"), Some("early"));
        namespaces.begin_attach(ONE);
        assert_eq!((namespaces.wait(ONE, "a"), namespaces.wait(ONE, "b")), (None, None));
        // A second attempt drops none that waits.
        namespaces.begin_attach(ONE);
        assert!(namespaces.is_attaching(ONE) && namespaces.attaching().eq([ONE]));
        assert_eq!((namespaces.end_attach(ONE), namespaces.end_attach(ONE)), (vec!["a", "b"], vec![]));
    }
}
