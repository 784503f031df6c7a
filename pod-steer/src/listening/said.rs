//! What the kernel tells of one connection: since when nothing has been said on it.

/// Offsets of words in `struct tcp_info`.
const UNACKED: usize = 24;
const LAST_DATA_SENT: usize = 44;
const LAST_DATA_RECEIVED: usize = 52;
const LAST_ACK_RECEIVED: usize = 56;
const BYTES_RECEIVED: usize = 128;

/// What `tcp_info` tells of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Segments that the client has not acknowledged.
    pub unacked: u32,
    /// Milliseconds since data was last sent to the client.
    pub sent_ms: u32,
    /// Milliseconds since data last came from the client.
    pub received_ms: u32,
    /// Milliseconds since the client last acknowledged something.
    pub acked_ms: u32,
    /// Number of bytes that came from the client.
    pub received: u64,
}

impl Said {
    /// Reads a `struct tcp_info`; nothing of one that is too short.
    pub fn read(info: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            unacked: word(UNACKED)?,
            sent_ms: word(LAST_DATA_SENT)?,
            received_ms: word(LAST_DATA_RECEIVED)?,
            acked_ms: word(LAST_ACK_RECEIVED)?,
            received: u64::from_ne_bytes(info.get(BYTES_RECEIVED..BYTES_RECEIVED + 8)?.try_into().ok()?),
        })
    }

    /// Milliseconds since data last moved.
    pub fn idle_ms(&self) -> u32 {
        self.sent_ms.min(self.received_ms)
    }
}
