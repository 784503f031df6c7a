//! HTTP answers, read in parts.

use anyhow::{Context as _, Result, bail, ensure};

/// A longer head is an error.
const HEAD_MAX: usize = 16 << 10;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// The answer to one request, so far.
#[derive(Debug, Default)]
pub struct Answer {
    head: Vec<u8>,
    /// Missing bytes of the body, once the head is complete.
    missing: Option<u64>,
}

impl Answer {
    /// Reads the next part; true if the answer is complete. An error if it is invalid or no success.
    pub fn take(&mut self, bytes: &[u8]) -> Result<bool> {
        let (missing, body) = match self.missing {
            Some(missing) => (missing, bytes.len() as u64),
            None => {
                // The end of the head may be split between two parts.
                let known = self.head.len().saturating_sub(END_OF_HEAD.len() - 1);
                self.head.extend_from_slice(bytes);
                ensure!(self.head.len() - bytes.len() <= HEAD_MAX, "an endless head");
                let found = self.head[known..].windows(END_OF_HEAD.len()).position(|part| part == END_OF_HEAD);
                let Some(end) = found.map(|place| known + place + END_OF_HEAD.len()) else { return Ok(false) };
                let body = self.head.len() - end;
                self.head.truncate(end);
                (body_length(&self.head)?, body as u64)
            }
        };
        let missing = missing.checked_sub(body).context("more than the answer")?;
        self.missing = Some(missing);
        Ok(missing == 0)
    }

    /// Starts over, for the next answer on the same connection.
    pub fn clear(&mut self) {
        self.head.clear();
        self.missing = None;
    }
}

fn body_length(head: &[u8]) -> Result<u64> {
    let head = str::from_utf8(head)?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "the answer {:?}", head.lines().next());
    for (name, value) in head.lines().filter_map(|line| line.split_once(':')) {
        if name.eq_ignore_ascii_case("content-length") {
            return Ok(value.trim().parse()?);
        }
    }
    bail!("an answer without a length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx\r\ncontent-length: 4\r\n\r\nbody";

    #[test]
    fn an_answer_may_come_in_any_parts() {
        for cut in 1..WHOLE.len() {
            let mut answer = Answer::default();
            assert!(!answer.take(&WHOLE[..cut]).unwrap(), "{cut}");
            assert!(answer.take(&WHOLE[cut..]).unwrap(), "{cut}");
            answer.clear();
            assert!(answer.take(WHOLE).unwrap(), "{cut}");
        }
    }

    #[test]
    fn what_is_no_success_is_an_error() {
        let wrong: [&[u8]; 4] = [
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\ntoo long",
            b"\xff\r\n\r\n",
        ];
        for bytes in wrong {
            assert!(Answer::default().take(bytes).is_err(), "{bytes:?}");
        }
        let mut endless = Answer::default();
        assert!((0..3).map(|_| endless.take(&[b'x'; HEAD_MAX])).any(|taken| taken.is_err()));
    }
}
