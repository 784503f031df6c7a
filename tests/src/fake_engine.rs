//! A container engine whose answers a test determines.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result};

/// The head of an answer that ends with the connection.
pub const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n";

/// It listens until this is dropped.
#[derive(Debug)]
pub struct FakeEngine {
    listener: UnixListener,
    thread: Option<JoinHandle<()>>,
}

impl FakeEngine {
    /// Listens on a socket. Each request is answered on a thread of its own, by its path with the query; the connection ends when
    /// `answer` returns.
    pub fn start(socket: &Path, answer: impl Fn(&str, &UnixStream) + Send + Sync + 'static) -> Result<Self> {
        let listener = UnixListener::bind(socket).with_context(|| format!("listening on {}", socket.display()))?;
        let (accepting, answer) = (listener.try_clone()?, Arc::new(answer));
        let thread = thread::spawn(move || {
            for stream in accepting.incoming().map_while(Result::ok) {
                let answer = Arc::clone(&answer);
                thread::spawn(move || {
                    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                    let request = lines.next().unwrap_or_default();
                    // GET requests have no body.
                    let _ = lines.find(|line| line.is_empty());
                    answer(request.split(' ').nth(1).unwrap_or_default(), &stream);
                });
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Writes this answer.
pub fn send(mut stream: &UnixStream, body: &str) {
    // The daemon may have closed the connection.
    let _ = stream.write_all(HEAD).and_then(|()| stream.write_all(body.as_bytes()));
}

/// Sends nothing more until the daemon closes the connection.
pub fn stay_silent(mut stream: &UnixStream) {
    let _ = stream.read(&mut [0]);
}
