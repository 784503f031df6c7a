//! `pod-steer sockets`: the listening sockets of backends. `text` and `connections` write them, `pinned` finds them without a daemon.

mod connections;
mod pinned;
mod text;

use super::{Failure, Outcome, args::sockets::SocketsArgs, block_on, print, terminal};
use crate::api::{
    client::{self, ClientError},
    sockets::Sockets,
};

/// Prints the daemon's answer, or the pinned sockets if no daemon runs.
pub(super) fn sockets(args: &SocketsArgs) -> Outcome {
    let named = [("service", &args.service), ("backend", &args.backend)];
    let named =
        named.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", client::encoded(value.as_ref()?))));
    let parts: Vec<String> = named.chain(args.live.then(|| "live=true".to_owned())).collect();
    let path = format!("/v1/sockets?{}", parts.join("&"));
    let found = match block_on(async { Ok(client::get::<Sockets>(&args.socket.socket, &path).await) })? {
        Ok(found) => found,
        Err(error @ ClientError::NoDaemon { .. }) => {
            let found = pinned::sockets(args)?;
            let nothing = format!("{error} There are no sockets to read below `{}` either.", args.bpffs.display());
            let found = found.ok_or(Failure::Input(nothing))?;
            let socket = args.socket.socket.display();
            terminal::warn(&format!(
                "no daemon answers at `{socket}`: these are the pinned sockets; states of backends are not known"
            ));
            found
        }
        Err(error) => return Err(error.into()),
    };
    if args.json {
        return print(&format!("{}\n", serde_json::to_string_pretty(&found)?));
    }
    print(&text::of(&found, terminal::colours(&std::io::stdout()), terminal::columns()))
}
