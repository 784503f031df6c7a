//! The threads of the daemon.

use std::{io, time::Duration};

use tokio::{runtime::Runtime, task::spawn_blocking};

/// Most threads for work that blocks. Each may hold copies of sockets, and more than there are processors are of use only while some
/// wait.
const THREADS_MAX: usize = 32;

/// The runtime of the daemon: one thread for the loop and the API that feeds it, and threads for work that blocks.
pub fn runtime() -> io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(THREADS_MAX).thread_keep_alive(Duration::MAX).build()
}

/// Makes the first of these threads, which never ends. `spawn_blocking` panics if there is none and none can be made; while there
/// is one, a limit on threads only delays work. A thread inherits our capabilities and priority, so those are set before.
pub(super) async fn first_thread() -> io::Result<()> {
    spawn_blocking(|| ()).await.map_err(io::Error::other)
}
