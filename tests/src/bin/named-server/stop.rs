//! SIGTERM and SIGINT: stop listening, finish what was accepted, exit. As process 1 of a container a process without a
//! handler is not even killed by SIGTERM.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// How often to look whether accepted connections have finished, and the time between two looks. The looks are counted, since the process
/// may not run for seconds on a busy machine.
const FINISH_LOOKS: u32 = 1_000;
const FINISH_STEP: Duration = Duration::from_millis(5);

pub struct Stop {
    told: AtomicBool,
    /// Readable once told, which wakes the accepting threads.
    wake: OwnedFd,
    connections: AtomicUsize,
}

impl Stop {
    /// Must be called before any other thread starts.
    pub fn on_sigterm(deaf: bool, delay: Duration) -> io::Result<Arc<Self>> {
        let stop = Arc::new(Self {
            told: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC)?,
            connections: AtomicUsize::new(0),
        });
        let signals = block_signals()?;
        let waiter = Arc::clone(&stop);
        thread::spawn(move || {
            let mut signal = 0;
            loop {
                // SAFETY: both point to live values of this thread.
                unsafe { libc::sigwait(&raw const signals, &raw mut signal) };
                if !deaf {
                    break;
                }
            }
            thread::sleep(delay);
            waiter.told.store(true, Ordering::Release);
            let _ = rustix::io::write(&waiter.wake, &1u64.to_ne_bytes());
        });
        Ok(stop)
    }

    pub fn told(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// Sleeps so long, or until it is told.
    pub fn sleep(&self, time: Duration) {
        let Ok(time) = Timespec::try_from(time) else { return };
        let _ = poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], Some(&time));
    }

    /// Counts a connection for as long as the guard lives.
    pub fn connection(self: &Arc<Self>) -> ConnectionGuard {
        self.connections.fetch_add(1, Ordering::Relaxed);
        ConnectionGuard(Arc::clone(self))
    }

    pub fn wait_for_connections(&self) {
        for _ in 0..FINISH_LOOKS {
            if self.connections.load(Ordering::Acquire) == 0 {
                return;
            }
            thread::sleep(FINISH_STEP);
        }
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

pub struct ConnectionGuard(Arc<Stop>);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Release);
    }
}

fn block_signals() -> io::Result<libc::sigset_t> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set; the calls after it only read and extend it; no old mask is asked for.
    let (set, failed) = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        (set.assume_init(), libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()))
    };
    if failed != 0 { Err(io::Error::from_raw_os_error(failed)) } else { Ok(set) }
}
