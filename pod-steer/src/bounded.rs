//! Reads bodies of HTTP messages up to a limit. Each part is copied: a part from hyper keeps the whole receive buffer alive, even if it is
//! one byte long.
#![forbid(unsafe_code)]

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Body;

/// Errors of reading a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Unread<E> {
    /// It is longer than the limit.
    TooLong,
    /// The connection broke off.
    Broken(E),
}

/// Reads the whole body, of at most `max` bytes.
pub async fn read<B: Body<Data = Bytes> + Unpin>(mut body: B, max: usize) -> Result<Vec<u8>, Unread<B::Error>> {
    if body.size_hint().lower() > max as u64 {
        return Err(Unread::TooLong);
    }
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Unread::Broken)?.into_data() else { continue };
        if bytes.len() + data.len() > max {
            return Err(Unread::TooLong);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;

    fn read_now<B: Body<Data = Bytes> + Unpin>(body: B, max: usize) -> Result<Vec<u8>, Unread<B::Error>> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(read(body, max))
    }

    #[test]
    fn the_limit_is_exact() {
        let parts = || {
            let parts =
                ["ab", "", "cde"].map(|part| Ok::<_, Infallible>(Frame::data(Bytes::from_static(part.as_bytes()))));
            StreamBody::new(futures_util::stream::iter(parts))
        };
        assert_eq!(read_now(parts(), 5), Ok(b"abcde".to_vec()));
        assert_eq!(read_now(parts(), 4), Err(Unread::TooLong));
        assert_eq!(read_now(Full::new(Bytes::from_static(b"abc")), 2), Err(Unread::TooLong), "its length says so");
    }
}
