//! A server that answers with its own name, so that a test can prove which backend served.
//!
//! It behaves as an ordinary server does: it binds, listens and accepts; it never asks for `SO_REUSEPORT`; on SIGTERM it
//! closes its listeners, finishes what it has accepted and exits with 0.

mod args;
mod ask;
mod connection;
mod journal;
mod listener;
mod stop;

use std::{fs::File, io, path::Path, process::ExitCode, sync::Arc, thread};

use args::Args;
use journal::Journal;
use rustix::fs::{FlockOperation, flock};
use stop::Stop;

fn main() -> ExitCode {
    let mut given = std::env::args().skip(1);
    if let (Some("--ask"), Some(address)) = (given.next().as_deref(), given.next()) {
        return match ask::ask(&address) {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => {
                eprintln!("{message}");
                ExitCode::FAILURE
            }
        };
    }
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("named-server: {message}\n{}", args::USAGE);
            return ExitCode::from(2);
        }
    };
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("named-server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Locks a file; an error if another process has done so.
fn lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).open(path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|errno| io::Error::new(errno.kind(), format!("another one runs: {}: {errno}", path.display())))?;
    Ok(file)
}

fn serve(args: Args) -> io::Result<()> {
    // Before any other thread: they inherit the mask, so that only the waiting thread ever sees the signal.
    let stop = Stop::on_sigterm(args.deaf, args.stop_delay)?;
    let args = Arc::new(args);
    let _lock = args.lock.as_deref().map(lock).transpose()?;
    stop.sleep(args.listen_delay);
    if stop.told() {
        return Ok(());
    }
    let journal = args.journal.as_deref().map(Journal::open).transpose()?.map(Arc::new);
    // Before other files are opened, which could take their numbers.
    let mut listeners = listener::inherited(args.fds)?;
    for wanted in args.listen.clone() {
        let listener = listener::open(&wanted, &args)?;
        listeners.push((wanted, listener));
    }
    let mut acceptors = Vec::new();
    for (wanted, listener) in listeners {
        let (args, journal, stop) = (Arc::clone(&args), journal.clone(), Arc::clone(&stop));
        acceptors
            .push(thread::spawn(move || listener::accept_all(listener, &wanted, &args, journal.as_deref(), &stop)));
    }
    for acceptor in acceptors {
        acceptor.join().map_err(|_| io::Error::other("an accepting thread panicked"))??;
    }
    stop.wait_for_connections();
    Ok(())
}
