//! Work that takes its time runs beside the loop, on the runtime's blocking threads, and its result comes back as an input.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use tokio::{runtime::Runtime, sync::mpsc, task::spawn_blocking};
use tracing::error;

use super::Input;

/// Most threads for such work. Each may hold copies of sockets, and more than there are processors are of use only while some wait.
const THREADS_MAX: usize = 32;

/// The runtime of the daemon: one thread for the loop and the API that feeds it, and threads for work beside them.
pub fn runtime() -> io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().max_blocking_threads(THREADS_MAX).thread_keep_alive(Duration::MAX).build()
}

/// Makes the first of these threads, which never ends. `spawn_blocking` panics if there is none and none can be made; while there
/// is one, a limit on threads only delays work. A thread inherits our capabilities and priority, so those are set before.
pub(super) async fn first_thread() -> io::Result<()> {
    spawn_blocking(|| ()).await.map_err(io::Error::other)
}

/// Runs `work` beside the loop and sends what it returns; `failed` if it panics. So the loop always hears that it has ended.
pub(super) fn beside(inputs: &mpsc::Sender<Input>, failed: Input, work: impl FnOnce() -> Input + Send + 'static) {
    beside_then(inputs, work, |done| done.unwrap_or(failed));
}

/// The same, where `then` makes the input: of what `work` returns, or of nothing if it panics.
pub(super) fn beside_then<T>(
    inputs: &mpsc::Sender<Input>,
    work: impl FnOnce() -> T + Send + 'static,
    then: impl FnOnce(Option<T>) -> Input + Send + 'static,
) {
    let inputs = inputs.clone();
    spawn_blocking(move || drop(inputs.blocking_send(then(caught(work)))));
}

/// Runs `work` beside the loop, which sends what it finds as it goes on. Nothing waits for its end.
pub(super) fn beside_and_on(inputs: &mpsc::Sender<Input>, work: impl FnOnce(&mpsc::Sender<Input>) + Send + 'static) {
    let inputs = inputs.clone();
    spawn_blocking(move || caught(|| work(&inputs)));
}

fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.inspect_err(|_| error!("work beside the loop panicked; the reason is on standard error")).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_loop_hears_of_work_that_panics() {
        let runtime = runtime().unwrap();
        let (inputs, mut queue) = mpsc::channel(1);
        let input = |netns_cookie| Input::Idle(vec![(netns_cookie, BTreeSet::new())]);
        let cookie = |input| if let Some(Input::Idle(idle)) = input { idle[0].0 } else { 0 };
        let _entered = runtime.enter();
        beside(&inputs, input(1), || panic!("as a test wants it"));
        assert_eq!(cookie(queue.blocking_recv()), 1);
        beside(&inputs, input(1), move || input(2));
        assert_eq!(cookie(queue.blocking_recv()), 2);
        beside_then(&inputs, || panic!("as a test wants it"), move |done: Option<u64>| input(done.unwrap_or(3)));
        assert_eq!(cookie(queue.blocking_recv()), 3);
    }
}
