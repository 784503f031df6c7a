//! Signals that end `up`: the first one has it put things back, a second one ends it at once.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Failure, terminal::note};

/// The exit code of shells for an interrupted command.
const INTERRUPTED: u8 = 130;
const LOOK: Duration = Duration::from_millis(50);

/// Whether a signal has come.
#[derive(Clone, Debug)]
pub(super) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Watches for SIGINT, SIGTERM and SIGHUP from now on.
    pub fn watch() -> io::Result<Self> {
        let interrupt = Self(Arc::default());
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let (mut signals, own) = (signal(kind)?, interrupt.clone());
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    if own.0.swap(true, Relaxed) {
                        note("ended at once; run the command again to remove what is left");
                        std::process::exit(i32::from(INTERRUPTED));
                    }
                    note("interrupted: puts things back");
                }
            });
        }
        Ok(interrupt)
    }

    /// Fails after a signal.
    pub fn check(&self) -> Result<(), Failure> {
        if self.0.load(Relaxed) { Err(Failure::Said(INTERRUPTED)) } else { Ok(()) }
    }

    /// Waits for a signal.
    pub async fn wait(&self) -> Failure {
        loop {
            if let Err(interrupted) = self.check() {
                return interrupted;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
