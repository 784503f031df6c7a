//! `pod-steer web`: a page for a browser on this machine. This process is a client of the daemon's API like `top`: the daemon opens no TCP
//! port and reads no request of a browser, and the role of the user who started the page decides what it may do.
//!
//! `follow` asks the daemon and fills the `model`; `server` answers the browser, whom `access` knows; `page` and its parts are HTML from
//! values.

mod access;
mod chart;
mod follow;
mod forms;
mod model;
mod orders;
mod page;
mod parts;
mod server;
mod site;
mod tables;
mod traffic;
mod updates;

use std::{io, sync::Arc};

use anyhow::anyhow;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{
    Failure, Outcome,
    args::web::WebArgs,
    block_on,
    live::answers::ask,
    terminal::{note, print_if_read},
};
use access::Access;
use model::Model;
use site::Site;

/// See the module.
pub(super) fn web(args: &WebArgs) -> Outcome {
    if !args.listen.ip().is_loopback() {
        return Err(Failure::Input(format!(
            "--listen {} is refused: the page is for this machine only; give a loopback address, as in 127.0.0.1:9000, and use `ssh -L` \
             from another machine",
            args.listen
        )));
    }
    block_on(serve(args))
}

async fn serve(args: &WebArgs) -> Outcome {
    let ended = ended()?;
    let live = ask(&args.socket.socket).await?;
    let listening = |error: io::Error| anyhow!("cannot listen on {}: {error}", args.listen);
    let listener = TcpListener::bind(args.listen).await.map_err(listening)?;
    let access = Access::new(listener.local_addr().map_err(listening)?)?;
    print_if_read(&format!("{}\n", access.url()))?;
    let may = if args.allow_orders { "can give orders" } else { "can only be read (for orders: --allow-orders)" };
    note(&format!("Open this address in a browser; it is valid once. The page {may}. Ctrl-C ends it."));
    let site = Arc::new(Site::new(access, args.socket.socket.clone(), args.allow_orders, Model::new(live)));
    tokio::select! {
        () = server::serve(listener, Arc::clone(&site)) => {}
        () = follow::follow(site) => {}
        () = ended => {}
    }
    Ok(())
}

/// Resolves at the first signal that ends it. Ctrl-C is its ordinary end.
fn ended() -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}
