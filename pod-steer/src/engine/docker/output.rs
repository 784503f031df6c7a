//! The output of a command in a container.

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::http::broken;
use crate::engine::EngineError;

/// Maximum number of bytes that are kept.
const LAST_BYTES: usize = 200;

/// The end of a command's output.
pub async fn last_output(mut body: Incoming) -> Result<Vec<u8>, EngineError> {
    let mut output = Output::default();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(broken)?.into_data() {
            output.take(data);
        }
    }
    Ok(output.last)
}

/// Parses the output of a command as an engine sends it: chunks of standard output and standard error, each after a header of eight bytes
/// with its length.
#[derive(Default)]
struct Output {
    head: Vec<u8>,
    /// Bytes of the part that are still to come.
    left: usize,
    last: Vec<u8>,
}

impl Output {
    fn take(&mut self, mut data: Bytes) {
        const HEAD: usize = 8;
        while data.has_remaining() {
            if self.left == 0 {
                let more = data.split_to(data.len().min(HEAD - self.head.len()));
                self.head.extend_from_slice(&more);
                if let [.., a, b, c, d] = *self.head
                    && self.head.len() == HEAD
                {
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.head.clear();
                }
                continue;
            }
            let part = data.split_to(data.len().min(self.left));
            self.left -= part.len();
            self.last.extend_from_slice(&part[part.len().saturating_sub(LAST_BYTES)..]);
            self.last.drain(..self.last.len().saturating_sub(LAST_BYTES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_output_is_kept_however_it_is_split() {
        let part = |text: &str| [&[1, 0, 0, 0][..], &(text.len() as u32).to_be_bytes(), text.as_bytes()].concat();
        let sent = [part("first\n"), part(""), part(&"x".repeat(1000)), part("\nlast\n")].concat();
        for size in [1, 3, 8, 100, sent.len()] {
            let mut output = Output::default();
            sent.chunks(size).for_each(|chunk| output.take(Bytes::copy_from_slice(chunk)));
            assert_eq!(output.last.len(), LAST_BYTES);
            assert!(output.last.ends_with(b"xx\nlast\n"), "{size}");
        }
        // A chunk of huge announced length takes no more memory.
        let mut output = Output::default();
        output.take(Bytes::from_static(&[1, 0, 0, 0, 255, 255, 255, 255]));
        (0..1000).for_each(|_| output.take(Bytes::from(vec![b'x'; 4096])));
        assert_eq!(output.last.len(), LAST_BYTES);
    }
}
