//! What the kernel programs of a judgement (`judge.rs`) count of one version, and the histogram's buckets.

/// Buckets of a power of two: a bucket is at most a sixteenth wider than the bucket below it is long.
const STEPS_BITS: u32 = 4;
const STEPS: u32 = 1 << STEPS_BITS;
/// A time is counted in units of 1,024 ns.
const UNIT_BITS: u32 = 10;
/// The longest time that is told from longer ones: 2^26 units, or 69 s.
const UNITS_BITS: u32 = 26;
/// Number of buckets.
pub const FIRST_BYTE_BUCKETS: usize = ((UNITS_BITS - STEPS_BITS + 1) * STEPS) as usize;

/// A request belongs to the generation in which it was made: a time whose length the daemon chooses, counted modulo this power of two.
pub const GENERATIONS: usize = 32;

/// Sums of one version, of the connections that its clients opened while it was observed, and that the sample has.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Connections.
    pub opened: u64,
    /// Those that have ended.
    pub ended: u64,
    /// Those that the server reset.
    pub reset: u64,
    /// Those that the server closed first and without an answer: without having sent a byte, or after a request where answers are by HTTP/1. One
    /// on which nothing was sent counts only if it was closed within a second.
    pub empty: u64,
    /// Those whose client left without an answer: after it had sent something and got nothing, or after a request where answers are by HTTP/1.
    pub left: u64,
    /// Segments that were sent again on those that have ended.
    pub retransmitted: u64,
    /// Requests: data of a client, up to the answer. Requests that are pipelined count as one. A server that speaks first answers one, too.
    pub asked: u64,
    /// Those whose answer has begun.
    pub answered: u64,
    /// Answers whose first line is that of HTTP/1.0 or HTTP/1.1, by the first digit of their status, less two: 2xx to 5xx. 101 is among the
    /// first.
    pub classes: [u64; 4],
    /// Answers that begin otherwise: TLS, HTTP/2, another protocol.
    pub unread: u64,
    /// Connections with an answer by HTTP/1.
    pub spoken: u64,
    /// Those of them with an answer of 5xx.
    pub failing: u64,
    /// Connections whose client waits for an answer, to its first request or where answers are by HTTP/1, by the generation of the request.
    pub waiting: [u64; GENERATIONS],
    /// Answers by the time from their request, or from the handshake if the server speaks first, to their first byte. Of one connection the
    /// first, the second, the fourth answer and so on count: a client with many requests counts little more than one with few.
    pub first_byte: [u64; FIRST_BYTE_BUCKETS],
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            opened: 0,
            ended: 0,
            reset: 0,
            empty: 0,
            left: 0,
            retransmitted: 0,
            asked: 0,
            answered: 0,
            classes: [0; 4],
            unread: 0,
            spoken: 0,
            failing: 0,
            waiting: [0; GENERATIONS],
            first_byte: [0; FIRST_BYTE_BUCKETS],
        }
    }
}

impl Observed {
    /// The sums of both. Each may have taken away what the other one has added.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = *self;
        for (own, other) in [
            (&mut sum.opened, other.opened),
            (&mut sum.ended, other.ended),
            (&mut sum.reset, other.reset),
            (&mut sum.empty, other.empty),
            (&mut sum.left, other.left),
            (&mut sum.retransmitted, other.retransmitted),
            (&mut sum.asked, other.asked),
            (&mut sum.answered, other.answered),
            (&mut sum.unread, other.unread),
            (&mut sum.spoken, other.spoken),
            (&mut sum.failing, other.failing),
        ] {
            *own = own.wrapping_add(other);
        }
        let arrays: [(&mut [u64], &[u64]); 3] = [
            (&mut sum.classes, &other.classes),
            (&mut sum.waiting, &other.waiting),
            (&mut sum.first_byte, &other.first_byte),
        ];
        for (own, other) in arrays {
            own.iter_mut().zip(other).for_each(|(own, other)| *own = own.wrapping_add(*other));
        }
        sum
    }
}

/// The bucket of a time.
#[inline(always)]
pub fn first_byte_bucket(ns: u64) -> usize {
    let most = (1u64 << UNITS_BITS) - 1;
    let units = ns >> UNIT_BITS;
    let units = if units > most { most as u32 } else { units as u32 };
    if units < STEPS {
        return units as usize;
    }
    let octave = units.ilog2() - STEPS_BITS;
    ((octave + 1) * STEPS + (units >> octave & (STEPS - 1))) as usize
}

/// The time that is longer than those in this bucket, in nanoseconds.
pub const fn first_byte_end_ns(bucket: usize) -> u64 {
    let (octave, step) = (bucket as u32 / STEPS, bucket as u32 % STEPS);
    let units = match octave {
        0 => step as u64 + 1,
        octave => ((STEPS + step) as u64 + 1) << (octave - 1),
    };
    units << UNIT_BITS
}
