//! Functions of private modules for the fuzz targets in `tests/fuzz`: each parses untrusted bytes or values, without I/O.

use pod_steer_ebpf::{Event, SocketInfo};

use crate::{
    api::{orders, types::BackendRequest},
    daemon::{descriptions, processes, ring},
    engine::{
        Container, Happened, Sandbox,
        answers::{self, Details},
        convert,
    },
    labels::Spec,
    links,
    rollout::Order,
    world::{Bridge, Socket, Unreached},
};

/// The address of an engine that does not exist.
const ENGINE: &str = "unix:///run/engine.sock";

/// A container that joins as a backend, from an engine's answer to `GET /containers/ID/json`.
pub fn engine_container(answer: &[u8]) -> Option<Container> {
    convert::container(ENGINE, serde_json::from_slice::<Details>(answer).ok()?)
}

/// A container whose namespace others share, from the same answer.
pub fn engine_sandbox(answer: &[u8]) -> Option<Sandbox> {
    convert::sandbox(serde_json::from_slice::<Details>(answer).ok()?)
}

/// Ids of the containers with pod-steer labels, from an engine's answer to `GET /containers/json`.
pub fn engine_list(answer: &[u8]) -> Option<Vec<String>> {
    Some(serde_json::from_slice::<answers::Listed>(answer).ok()?.ids)
}

/// A line of an engine's answer to `GET /events`.
pub fn engine_event(line: &[u8]) -> Option<Happened> {
    convert::happened(ENGINE, serde_json::from_slice::<answers::Event>(line).ok()?)
}

/// The body of `POST /v1/services/SERVICE/orders`.
pub fn order(body: &[u8]) -> Result<Order, String> {
    let body = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let order = orders::parse(&body)?;
    let fault = order.names().find_map(|(kind, name)| kind.check(name).err());
    fault.map_or(Ok(order), Err)
}

/// The backend of a `POST /v1/exec` or `POST /v1/register`.
pub fn backend(request: &BackendRequest) -> Result<Spec, String> {
    processes::parse(request)
}

/// How a container is connected, from parts of answers of rtnetlink(7) in its network namespace and in the ingress namespace.
pub fn connection(inside: &[u8], outside: &[u8]) -> Option<Result<Bridge, Unreached>> {
    links::conclude(inside, outside)
}

/// A record of the ring that the kernel programs write.
pub fn ring_event(record: &[u8]) -> Option<Event> {
    ring::event(record)
}

/// A listening socket as the world has it, from the kernel programs' description.
pub fn socket(info: &SocketInfo) -> Socket {
    descriptions::described(info)
}

/// The reverse of [`socket`].
pub fn description(socket: &Socket) -> SocketInfo {
    descriptions::description(socket)
}
