//! Inputs that differ a little from kept ones: what each test run tries, in the same order each time. `cargo xtask fuzz` searches for more.

use fastrand::Rng;

/// Longest input, as libFuzzer's.
const BYTES_MAX: usize = 4096;
/// The most changes of one input.
const CHANGES_MAX: usize = 4;
/// Bytes at which readers often decide.
const TELLING: [u8; 8] = [0, 1, 0x7f, 0x80, 0xff, b'\n', b'"', b'-'];

/// The words of a dictionary of libFuzzer: one in quotes on each line.
pub fn words(dictionary: &str) -> Vec<&[u8]> {
    dictionary.lines().filter_map(|line| Some(line.strip_prefix('"')?.strip_suffix('"')?.as_bytes())).collect()
}

/// One with a few changes.
pub fn changed(rng: &mut Rng, input: &[u8], others: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut input = input.to_vec();
    for _ in 0..rng.usize(1..=CHANGES_MAX) {
        let from = rng.usize(0..=input.len());
        let to = rng.usize(from..=input.len());
        match rng.u8(0..6) {
            0 if from < input.len() => input[from] ^= 1 << rng.u8(0..8),
            1 if from < input.len() => input[from] = *rng.choice(&TELLING).unwrap_or(&0),
            2 => drop(input.drain(from..to)),
            3 => {
                let again = input[from..to].to_vec();
                drop(input.splice(to..to, again));
            }
            4 => {
                let word = rng.choice(words).copied().unwrap_or_default();
                drop(input.splice(from..from, word.iter().copied()));
            }
            _ => {
                // The end of another one.
                let other = rng.choice(others).map(Vec::as_slice).unwrap_or_default();
                input.truncate(from);
                input.extend_from_slice(&other[rng.usize(0..=other.len())..]);
            }
        }
        input.truncate(BYTES_MAX);
    }
    input
}
