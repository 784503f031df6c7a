//! Records of the ring that the kernel programs write, and the world that follows from them.

use arbitrary::{Result, Unstructured};
use pod_steer::{
    fuzzing,
    ids::{BackendIndex, SocketCookie},
    labels::{self, Spec},
    settings::GivenOptions,
    world::World,
};
use pod_steer_ebpf::{EVENT_CLOSED, EVENT_LEFT_OUT, EVENT_LISTENING, Event, FAMILY_V4, FAMILY_V6};

use crate::plan;

/// Most records of one input.
const RECORDS_MAX: usize = 24;
/// Services of the world, and the ports of each.
const SERVICES: [(&str, &str, &str); 4] = [
    ("web", "v1", "80:8080,443"),
    ("web", "v2", "80:8080,443"),
    ("ftp", "v1", "21:2121,30000-30009"),
    ("api", "v1", "[::1]:80:9090,127.0.0.1:80:9090"),
];
/// Ports on which those listen, and one that no label declares.
const PORTS: [u16; 7] = [80, 443, 2121, 8080, 9090, 30_000, 31_000];

pub fn run(input: &[u8]) {
    let mut world = plan::world(SERVICES.map(|(service, version, ports)| spec(service, version, ports)));
    world.sockets.clear();
    let mut input = Unstructured::new(input);
    for _ in 0..RECORDS_MAX {
        let Ok(step) = step(&mut input) else { break };
        match step {
            Step::Passes(ms) => world.now_ms += i64::from(ms),
            Step::Record(bytes) => {
                let event = fuzzing::ring_event(&bytes);
                assert_eq!(event.is_some(), bytes.len() == size_of::<Event>());
                event.iter().for_each(|event| happened(&mut world, event));
            }
        }
        plan::check(&mut world);
    }
}

fn spec(service: &str, version: &str, ports: &str) -> Spec {
    labels::spec_from_flags(service, ports, version, 1, GivenOptions::default()).expect("it is written here")
}

/// What the input says next.
enum Step {
    /// Time passes, in milliseconds.
    Passes(u16),
    /// The kernel programs have written this.
    Record(Vec<u8>),
}

fn step(input: &mut Unstructured<'_>) -> Result<Step> {
    if input.is_empty() {
        return Err(arbitrary::Error::NotEnoughData);
    }
    Ok(match input.int_in_range(0..=7)? {
        0 => Step::Passes(input.arbitrary()?),
        1 => {
            let len = input.int_in_range(0..=size_of::<Event>())?.min(input.len());
            Step::Record(input.bytes(len)?.to_vec())
        }
        2 => Step::Record(input.bytes(size_of::<Event>())?.to_vec()),
        _ => Step::Record(likely(input)?),
    })
}

/// A record as it may come: most of it is what the world knows.
fn likely(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let kind = input.int_in_range(EVENT_LISTENING..=EVENT_LEFT_OUT + 1)?;
    let cookie = u64::from(input.int_in_range(1..=12u8)?);
    let family = *input.choose(&[FAMILY_V4, FAMILY_V6])?;
    let mut addr = [0; 16];
    match input.int_in_range(0..=3)? {
        0 => addr[if family == FAMILY_V4 { 0 } else { 15 }] = 1,
        1 => input.fill_buffer(&mut addr)?,
        _ => {}
    }
    let port = *input.choose(&PORTS)?;
    let backend = u32::from(input.int_in_range(0..=4u8)?);
    let hidden_port: u16 = if input.ratio(1, 8u8)? { input.arbitrary()? } else { 0 };
    let v6only = u16::from(input.int_in_range(0..=3u8)?);
    let ifindex = u32::from(input.int_in_range(0..=2u8)?);
    let netns = if input.ratio(1, 8u8)? { input.arbitrary()? } else { plan::HOST.cookie.0 };
    let mut record = Vec::with_capacity(size_of::<Event>());
    // In the order of the fields of `Event` and its `SocketInfo`.
    record.extend(kind.to_ne_bytes());
    record.extend(0u32.to_ne_bytes());
    record.extend(cookie.to_ne_bytes());
    record.extend(netns.to_ne_bytes());
    record.extend(addr);
    record.extend(backend.to_ne_bytes());
    record.extend(u32::MAX.to_ne_bytes());
    record.extend(port.to_ne_bytes());
    record.extend([6, family]);
    record.extend(u32::MAX.to_ne_bytes());
    record.extend(hidden_port.to_ne_bytes());
    record.extend(v6only.to_ne_bytes());
    record.extend([0; 8]);
    record.extend(ifindex.to_ne_bytes());
    // What the compiler puts behind the last field.
    record.resize(size_of::<Event>(), 0);
    Ok(record)
}

/// Does with the world what the daemon does.
fn happened(world: &mut World, event: &Event) {
    let info = &event.socket;
    let socket = fuzzing::socket(info);
    assert_eq!(fuzzing::socket(&fuzzing::description(&socket)), socket, "described from {info:?}");
    let (own, any) = (info.own_listener(), info.any_listener());
    assert!(any.is_none() || own.is_some(), "{info:?}");
    let cookie = SocketCookie(event.cookie);
    let holder = world.sockets.get(&cookie).map_or(BackendIndex(info.backend), |socket| socket.backend);
    if world.by_index(holder).is_none() {
        return;
    }
    match event.kind {
        EVENT_LISTENING => {
            world.opened_ms.entry(cookie).or_insert(world.now_ms);
            world.sockets.insert(cookie, socket);
        }
        EVENT_CLOSED => drop(world.remove_socket(cookie, world.now_ms)),
        _ => drop(std::io::Error::from_raw_os_error(event.errno as i32).to_string()),
    }
}
