//! Dry runs of the programs that choose, for `pod-steer explain`. The same programs as the attached ones are loaded once more, with the
//! pinned tables; every map that they could write to is one of the dry run's own. So a run counts nothing, remembers nothing and reaches
//! no client. `packet` builds what they are run on, and `view` reads the tables.

mod packet;
mod view;

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    path::Path,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData, PerCpuArray},
};
use pod_steer_ebpf::{FAMILY_V4, FLOW_LOCAL, Flow, ServiceCounters, Tuple};

use super::{
    KernelError, Result,
    attach::LOOKUP,
    bpf,
    build_id::Build,
    clsact,
    counters::sum_service,
    destinations::{self, FORWARD},
    devices, migration,
    object::{self, Constants, LOG_DECISIONS, LOG_NOTHING, MapPins, map},
    ports,
};
use crate::{
    ids::{NetnsCookie, ServiceIndex},
    procs::{address_bytes, address_from_bytes},
};

pub use view::View;

/// The program of devices that is run. The one of devices without Ethernet headers makes the same choices.
const DEVICE_PROGRAM: &str = "from_wire";
/// The result of a program that drops a packet: `TC_ACT_SHOT`, `SK_DROP`.
const TC_ACT_SHOT: u32 = 2;
const SK_DROP: u32 = 0;

/// How packets of a client come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Index of the device.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address on the link layer.
    pub layer_address: [u8; 6],
    /// Index of the device that the kernel compares with a listener's: that of the VRF, if the device belongs to one; and for a packet of
    /// this machine to itself, the one that has the destination's address.
    pub lookup_index: u32,
}

/// A client's packet that begins a connection, and how it comes in.
#[derive(Clone, Debug)]
pub struct Syn {
    /// The client.
    pub source: SocketAddr,
    /// Where it connects to.
    pub destination: SocketAddr,
    /// The device.
    pub arrival: Arrival,
}

impl Syn {
    fn tuple(&self) -> Tuple {
        let (source, destination) = (self.source, self.destination);
        Tuple {
            source: words(source.ip()),
            destination: words(destination.ip()),
            source_port: source.port().to_be(),
            destination_port: destination.port().to_be(),
            family: family(source.ip()),
            ..Tuple::default()
        }
    }

    /// As the lookup sees it.
    pub fn packet(&self) -> pod_steer_ebpf::Packet {
        pod_steer_ebpf::Packet::of_tuple(&self.tuple(), self.arrival.lookup_index)
    }
}

/// What the programs make of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The socket with this cookie gets it.
    Socket(u64),
    /// It is rewritten and goes to this address, for the listener with this cookie.
    Forwarded(u64, SocketAddr),
    /// The lookup refuses it.
    Refused,
    /// The program of the device drops it: the client has to send it again.
    Dropped,
    /// It is left to the kernel's own lookup.
    Passed,
}

/// The programs of one network namespace, loaded for dry runs.
pub struct DryRun {
    programs: Ebpf,
    /// The entries that a run has made of its choice, if packets are forwarded from here.
    pending: HashMap<MapData, Tuple, Flow>,
    counters: PerCpuArray<MapData, ServiceCounters>,
}

impl DryRun {
    /// Loads the programs of a network namespace, for packets that come by a device. The state below `dir` must be one that this release can
    /// read.
    pub fn load(dir: &Path, netns_cookie: NetnsCookie, arrival: &Arrival) -> Result<Self> {
        let pin = dir.join("netns").join(netns_cookie.to_string());
        let attached = bpf::open(&pin).and_then(bpf::link_info).and_then(|link| Build::of_program(link.program));
        let attached = attached.map_err(KernelError::io("read the attached program of", &pin))?;
        let is_ours = |build: Build| [LOG_NOTHING, LOG_DECISIONS].iter().any(|level| Build::own(*level).is_same(build));
        if !attached.is_some_and(is_ours) {
            return Err(KernelError::OtherBuild { attached: attached.map(|build| build.to_string()) });
        }
        let maps = dir.join("maps");
        let meta = migration::meta(&maps)?.unwrap_or_default();
        let constants =
            Constants { seed: meta.seed, netns_cookie, log_level: LOG_NOTHING, backends_max: meta.backends_max };
        let (ports, forward) = (ports::pin(dir, netns_cookie), dir.join(FORWARD));
        let forwards = destinations::forwards(dir, netns_cookie);
        let pins = MapPins {
            shared: Some(&maps),
            ports: Some(&ports),
            forward: forwards.then_some(&*forward),
            dry: Some(arrival.lookup_index),
        };
        let mut programs = object::dry_instance(pins, &constants)?;
        object::load(&mut programs, LOOKUP, None)?;
        if forwards {
            object::load(&mut programs, DEVICE_PROGRAM, None)?;
        }
        let (pending, counters) = (map(&mut programs, "PENDING")?, map(&mut programs, "SERVICE_COUNTERS")?);
        Ok(Self { programs, pending, counters })
    }

    /// Runs the programs on a packet, in the network namespace of the calling thread.
    pub fn run(&mut self, syn: &Syn, has_program: bool) -> Result<Choice> {
        let tuple = syn.tuple();
        if has_program {
            let mut frame = packet::frame(syn);
            let verdict = self.test_run(DEVICE_PROGRAM, &mut frame, &mut packet::device_context(syn))?;
            if verdict == TC_ACT_SHOT {
                return Ok(self.done(Choice::Dropped));
            }
            let flow = self.pending.get(&tuple, 0).ok().filter(|flow| flow.flags & FLOW_LOCAL == 0);
            // The rewritten packet is the evidence.
            let to = packet::destination(&frame).filter(|to| *to != syn.destination);
            if let (Some(flow), Some(to)) = (flow, to) {
                return Ok(self.done(Choice::Forwarded(flow.cookie, to)));
            }
        }
        let mut context = packet::lookup_context(&syn.packet());
        let verdict = self.test_run(LOOKUP, &mut [], &mut context)?;
        Ok(self.done(match (verdict, packet::chosen(&context)) {
            (SK_DROP, _) => Choice::Refused,
            (_, 0) => Choice::Passed,
            (_, cookie) => Choice::Socket(cookie),
        }))
    }

    /// What the runs have counted for a service, in maps of their own.
    pub fn counted(&self, service: ServiceIndex) -> ServiceCounters {
        self.counters.get(&service.0, 0).map_or_else(|_| ServiceCounters::default(), |cpus| sum_service(cpus.iter()))
    }

    /// Forgets the entries of a run: the next one is for another packet.
    fn done(&mut self, choice: Choice) -> Choice {
        let keys: Vec<Tuple> = self.pending.keys().flatten().collect();
        for key in keys {
            let _ = self.pending.remove(&key);
        }
        choice
    }

    fn test_run(&self, name: &'static str, packet: &mut [u8], context: &mut [u8]) -> Result<u32> {
        let program = object::program_fd(&self.programs, name)?;
        bpf::test_run(program.as_fd(), packet, context).map_err(KernelError::io("run the program", name))
    }
}

/// Whether a program forwards packets that come to this namespace by this device.
pub fn has_device_program(dir: &Path, netns: NetnsCookie, index: u32) -> bool {
    let link = bpf::open(&dir.join(FORWARD).join(format!("{index}-in"))).and_then(bpf::link_info);
    // The port of a bridge has another program.
    let is_ours = |link: &bpf::LinkInfo| {
        matches!(devices::name_of(link.program), Ok(Some("from_wire" | "from_bridge" | "from_tunnel")))
    };
    let is_attached = link.is_ok_and(|link| link.target == u64::from(index) && is_ours(&link))
        || clsact::is_marked(dir, netns, index);
    is_attached && destinations::forwards(dir, netns)
}

/// How many `sk_lookup` programs of others run before ours in the network namespace of the calling thread. Each may choose a socket first.
pub fn programs_before(dir: &Path, netns: NetnsCookie) -> Result<usize> {
    let pin = dir.join("netns").join(netns.to_string());
    let ours = bpf::open(&pin).and_then(bpf::link_info).map_err(KernelError::io("read the link", pin))?;
    let own = Path::new("/proc/thread-self/ns/net");
    let programs = fs::File::open(own).and_then(|ns| bpf::lookup_programs(ns.as_fd()));
    let programs = programs.map_err(KernelError::io("read the programs of", own))?;
    Ok(programs.iter().position(|id| *id == ours.program).unwrap_or(0))
}

/// Whether connections of a network namespace are steered.
pub fn is_steered(dir: &Path, netns: NetnsCookie) -> bool {
    dir.join("netns").join(netns.to_string()).exists()
}

fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { FAMILY_V4 } else { pod_steer_ebpf::FAMILY_V6 }
}

/// The words of an address in the contract.
fn words(ip: IpAddr) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(address_bytes(ip).as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

/// The address and port of a verdict, in the form of the contract.
pub fn address_of(family: u8, words: [u32; 4], port: u16) -> SocketAddr {
    SocketAddr::new(address_from_bytes(family, bytes_of(&words)), port)
}

fn bytes_of(words: &[u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
