//! The sockets without a daemon: the kernel keeps their descriptions and their tables. Only this process's own network namespace is looked at,
//! which is that of most backends. The queues, processes and connections of other namespaces are not known.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
};

use pod_steer_ebpf::NOTE_BACKEND;

use super::super::{
    Failure,
    args::sockets::SocketsArgs,
    pinned::{Noted, parsed},
};
use crate::{
    api::sockets::Sockets,
    daemon::descriptions::described,
    ids::{BackendIndex, SocketCookie},
    kernel::{self, KernelError, Notes, check_readable},
    near, netns,
    ports::PortMap,
    sockets::{self, BackendFacts, Facts, Holders, LOOK_MAX, Limits},
    world::Socket,
};

/// The sockets that are pinned; `None` if nothing is.
pub(super) fn sockets(args: &SocketsArgs) -> Result<Option<Sockets>, Failure> {
    let unreadable = |error: KernelError| Failure::Input(format!("no daemon runs, and {}", crate::chain(&error)));
    let dir = &args.bpffs;
    if !check_readable(dir).map_err(unreadable)? {
        return Ok(None);
    }
    let mut by_backend: BTreeMap<BackendIndex, Vec<(SocketCookie, Socket)>> = BTreeMap::new();
    let (listening, descriptions) = kernel::described(dir).map_err(unreadable)?;
    for (cookie, info) in descriptions {
        let socket = described(&info);
        by_backend.entry(socket.backend).or_default().push((cookie, socket));
    }
    let notes = Notes::open(dir).map_err(unreadable)?;
    let tables = kernel::pinned_tables(dir).map_err(unreadable)?;
    let forwarded = tables.iter().flat_map(|(table, _)| table.forwarded());
    let forwarded: BTreeSet<BackendIndex> = forwarded.map(|member| member.backend).collect();
    let noted = parsed::<Noted>(&notes, NOTE_BACKEND).into_iter();
    let backends: Vec<BackendFacts> = noted
        .map(|(index, Noted { id, name, spec, .. })| BackendFacts {
            id,
            name,
            service_ports: spec.ports.iter().map(PortMap::service_port).collect(),
            target_ports: spec.ports.iter().map(PortMap::target_port).collect(),
            service: spec.service,
            version: spec.version,
            forwarded: forwarded.contains(&BackendIndex(index)),
            sockets: by_backend.remove(&BackendIndex(index)).unwrap_or_default(),
            ..BackendFacts::default()
        })
        .collect();
    let backends = selected(args, backends).map_err(Failure::Input)?;
    let ns = File::open("/proc/self/ns/net")?;
    let own = netns::identify(&ns)?;
    let all = backends.iter().flat_map(|backend| &backend.sockets);
    let elsewhere = all.filter(|(_, socket)| socket.netns_cookie != own.cookie).count();
    let mut unseen = Vec::new();
    if elsewhere > 0 {
        let line = "sockets are in other network namespaces than this command; only a daemon looks there";
        unseen.push(format!("{elsewhere} {line}"));
    }
    let facts = Facts {
        backends,
        registered: listening.into_iter().collect(),
        roles: tables.into(),
        places: vec![(own, Vec::new())],
        holders: Holders::Anywhere,
        live: args.live,
        unseen,
    };
    Ok(Some(sockets::look(&facts, &Limits::new(LOOK_MAX, &|| false))))
}

/// Those of the backends that the arguments select.
fn selected(args: &SocketsArgs, mut all: Vec<BackendFacts>) -> Result<Vec<BackendFacts>, String> {
    if let Some(service) = &args.service {
        let known: Vec<String> = all.iter().map(|backend| backend.service.clone()).collect();
        all.retain(|backend| backend.service == *service);
        if all.is_empty() {
            let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
            return Err(near::no_service(service, &known.into_iter().collect::<Vec<_>>()));
        }
    }
    if let Some(named) = &args.backend {
        let names: Vec<(&str, &str)> = all.iter().map(|backend| (backend.id.as_str(), backend.name.as_str())).collect();
        let found = near::backends_named(named, &names)?;
        let mut number = 0..;
        all.retain(|_| number.next().is_some_and(|number| found.contains(&number)));
    }
    all.retain(|backend| !backend.sockets.is_empty());
    Ok(all)
}
