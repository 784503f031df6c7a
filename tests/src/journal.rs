//! Reading a test server's record of what it accepted (written by `named-server --journal`).

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path};

use anyhow::{Context as _, Result};

/// What one server had accepted.
#[derive(Debug, Default)]
pub struct Journal {
    /// Peers of accepted connections.
    pub accepted: BTreeSet<SocketAddr>,
    /// The server died between `accept` and its record: of one connection nothing can be said.
    pub in_between: bool,
}

impl Journal {
    /// Reads the record of a server that has ended. A server that never got so far as to open it accepted nothing.
    pub fn read(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
        };
        let mut journal = Self { in_between: text.ends_with('?'), ..Self::default() };
        for peer in
            text.lines().filter_map(|line| line.strip_prefix('?')).filter(|peer| !peer.is_empty() && *peer != "-")
        {
            let peer = peer.parse().with_context(|| format!("record {peer:?} in {}", path.display()))?;
            journal.accepted.insert(peer);
        }
        Ok(journal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_accepted_from_unknown() {
        let path = std::env::temp_dir().join(format!("pod-steer-journal-{}", std::process::id()));
        fs::write(&path, "?10.0.0.2:5000\n?-\n?10.0.0.2:5001\n?").unwrap();
        let journal = Journal::read(&path);
        fs::remove_file(&path).unwrap();
        let journal = journal.unwrap();
        assert!(journal.in_between);
        let ports: Vec<u16> = journal.accepted.iter().map(SocketAddr::port).collect();
        assert_eq!(ports, [5000, 5001]);
    }
}
