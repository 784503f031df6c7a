//! Which socket the kernel programs choose for a new connection, computed from their tables. `pod-steer explain` compares it with a dry run
//! of the programs, and takes the reasons from it. Pure.
#![forbid(unsafe_code)]

mod choice;
mod others;
mod rules;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use pod_steer_ebpf::{Destination, OwnListener, Rule, RuleKey, Slot, SocketInfo};

pub use choice::{Declined, Path, Role, Try, Verdict, Visited, path};
pub use others::{Standing, standing};
pub use rules::rule_for;

/// The tables of the kernel programs, in the form of the contract.
pub trait Tables {
    /// The secret seed of hashes.
    fn seed(&self) -> u64;
    /// Cookie of the network namespace.
    fn netns(&self) -> u64;
    /// The 16 bits of a port in the namespace's map of ports.
    fn port(&self, port: u16, family: u8) -> u16;
    /// The rule with this key.
    fn rule(&self, key: &RuleKey) -> Option<Rule>;
    /// The rule of a table.
    fn rule_of_table(&self, table: u32) -> Option<Rule>;
    /// The switch of a service.
    fn switch(&self, service: u32) -> u32;
    /// The longest network of a scope that the client is in: its number of bits, and its table.
    fn network(&self, scope: u32, client: &[u32; 4]) -> Option<(u32, u32)>;
    /// The entries of one side of a table.
    fn table(&self, index: u32) -> Rc<[Slot]>;
    /// Whether the socket map has this socket.
    fn is_listening(&self, cookie: u64) -> bool;
    /// The description of a socket.
    fn socket(&self, cookie: u64) -> Option<SocketInfo>;
    /// Whether clients come to this port of forwarded backends.
    fn is_forwarded(&self, port: u16) -> bool;
    /// Where the packets of a forwarded backend go.
    fn destination(&self, backend: u32) -> Option<Destination>;
    /// The newest listener of a backend.
    fn newest(&self, key: &OwnListener) -> Option<u64>;
}

/// The bytes of an address of the contract.
fn bytes(words: &[u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
