//! A connection whose client must read answers within a time limit. Otherwise it would hold a slot, a descriptor and the answer.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    time::{Sleep, sleep},
};

/// Whether a client follows events. Such a client may read slowly, and is told how many events it has missed.
#[derive(Clone, Debug, Default)]
pub(super) struct Follows(Arc<AtomicBool>);

impl Follows {
    /// Marks the client as one that follows events.
    pub fn begin(&self) {
        self.0.store(true, Relaxed);
    }
}

/// A connection with a time limit for writing an answer.
pub(super) struct Answering {
    stream: UnixStream,
    max: Duration,
    follows: Follows,
    /// When a write first had to wait.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Answering {
    pub fn new(stream: UnixStream, max: Duration, follows: Follows) -> Self {
        Self { stream, max, follows, waiting: None }
    }

    /// An error if the time limit has passed.
    fn bounded<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() || self.follows.0.load(Relaxed) {
            return written;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(self.max)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Answering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Answering {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.bounded(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper calls this when everything has been written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waiting = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    const MAX: Duration = Duration::from_millis(20);

    /// Writes until a write would block.
    async fn fill(mut connection: Answering) -> io::Error {
        let bytes = [0; 1 << 16];
        loop {
            if let Err(error) = poll_fn(|context| Pin::new(&mut connection).poll_write(context, &bytes)).await {
                return error;
            }
        }
    }

    #[test]
    fn an_answer_has_to_be_taken_and_events_may_wait() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (stream, _client) = UnixStream::pair().unwrap();
            let error = fill(Answering::new(stream, MAX, Follows::default())).await;
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);

            let (stream, _follower) = UnixStream::pair().unwrap();
            let follows = Follows::default();
            follows.begin();
            assert!(timeout(MAX * 10, fill(Answering::new(stream, MAX, follows))).await.is_err(), "it waits");
        });
    }
}
