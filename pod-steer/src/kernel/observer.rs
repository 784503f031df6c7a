//! Counts how a version treats its clients: the programs of a judgement (`pod-steer-ebpf/src/judge.rs`). They are loaded from an object of
//! their own, attached by links that nothing pins, and write to maps that only they have: all of it ends with this process.

use std::{fmt, fs, io, sync::OnceLock};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, MapData, PerCpuArray},
    programs::{
        CgroupAttachMode, CgroupSkbAttachType, Program, ProgramError, cgroup_skb::CgroupSkbLink, sock_ops::SockOpsLink,
    },
};
use pod_steer_ebpf::Observed;

use super::{Cgroup, KernelError, Result, heard::BTF, members, object::map};

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/judge.bpf.o"));

const CONNECTIONS: &str = "judge_connections";
/// The programs for packets, and whether they are for those that arrive.
const PACKETS: [(&str, CgroupSkbAttachType); 2] =
    [("judge_requests", CgroupSkbAttachType::Ingress), ("judge_answers", CgroupSkbAttachType::Egress)];

/// The programs in one cgroup. Dropping it detaches them.
pub struct Attachment {
    _connections: SockOpsLink,
    _packets: Vec<CgroupSkbLink>,
}

/// The programs of one version. To load them takes too long for the daemon's loop.
pub struct Observer {
    sums: PerCpuArray<MapData, Observed>,
    sample: Array<MapData, u32>,
    generation: Array<MapData, u32>,
    programs: Ebpf,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}

impl Observer {
    /// The generation of requests that it begins with.
    pub const FIRST_GENERATION: u32 = 1;

    /// Loads them. `reads_http`: the first line of each answer by HTTP/1 is read in the kernel. Needs `CAP_BPF`, `CAP_PERFMON` and
    /// `CAP_NET_ADMIN`, and Linux 5.13 as `tcp_events` does.
    pub fn load(reads_http: bool) -> Result<Self> {
        let (sk_err, reads_http) = (sk_err()?, u32::from(reads_http));
        let mut loader = EbpfLoader::new();
        loader.btf(None).override_global("SK_ERR", &sk_err, true).override_global("READS_HTTP", &reads_http, true);
        let mut programs = loader.load(OBJECT).map_err(|source| KernelError::Load(Box::new(source)))?;
        for name in [CONNECTIONS].into_iter().chain(PACKETS.map(|(name, _)| name)) {
            let loaded = match programs.program_mut(name) {
                Some(Program::SockOps(program)) => program.load(),
                Some(Program::CgroupSkb(program)) => program.load(),
                _ => Err(ProgramError::UnexpectedProgramType),
            };
            loaded.map_err(KernelError::load(name))?;
        }
        let (sums, sample) = (map(&mut programs, "OBSERVED")?, map(&mut programs, "SAMPLE")?);
        let generation = map(&mut programs, "GENERATION")?;
        let mut observer = Self { sums, sample, generation, programs };
        observer.begin_generation(Self::FIRST_GENERATION)?;
        Ok(observer)
    }

    /// Observes the connections that are opened from now on to the processes in a cgroup, as long as the result lives. `tcp_events` must have
    /// been attached there before.
    pub fn attach(&mut self, cgroup: &Cgroup) -> Result<Attachment> {
        let failed = |name: &'static str| {
            let target = format!("the cgroup with id {}", cgroup.id);
            move |source| KernelError::Attach { name, target, source: Box::new(source) }
        };
        // A link takes no mode: the kernel always lets several programs attach by link.
        let mode = CgroupAttachMode::Single;
        let mut packets = Vec::new();
        // A connection that is counted when it opens must be seen when it is answered.
        for (name, direction) in PACKETS {
            if let Some(Program::CgroupSkb(program)) = self.programs.program_mut(name) {
                let id = program.attach(cgroup.dir(), direction, mode).map_err(failed(name))?;
                packets.push(program.take_link(id).map_err(failed(name))?);
            }
        }
        let Some(Program::SockOps(program)) = self.programs.program_mut(CONNECTIONS) else {
            return Err(failed(CONNECTIONS)(ProgramError::UnexpectedProgramType));
        };
        let id = program.attach(cgroup.dir(), mode).map_err(failed(CONNECTIONS))?;
        let connections = program.take_link(id).map_err(failed(CONNECTIONS))?;
        Ok(Attachment { _connections: connections, _packets: packets })
    }

    /// Takes one of so many connections into the sample from now on, rounded up to a power of two.
    pub fn sample_one_of(&mut self, connections: u32) -> Result<()> {
        let mask = connections.max(1).next_power_of_two() - 1;
        self.sample.set(0, mask, 0).map_err(KernelError::map("write", "SAMPLE"))
    }

    /// Requests belong to this generation from now on, which must not be 0.
    pub fn begin_generation(&mut self, generation: u32) -> Result<()> {
        self.generation.set(0, generation, 0).map_err(KernelError::map("write", "GENERATION"))
    }

    /// The sums so far; nothing if they cannot be read.
    pub fn observed(&self) -> Observed {
        let Ok(cpus) = self.sums.get(&0, 0) else { return Observed::default() };
        cpus.iter().fold(Observed::default(), |sum, cpu| sum.plus(cpu))
    }
}

/// Whether this kernel takes the programs, for `doctor`.
pub fn probe() -> Result<()> {
    Observer::load(true).map(drop)
}

/// The offset of `sk_err` in the kernel's `struct sock`.
fn sk_err() -> Result<u32> {
    static OFFSET: OnceLock<u32> = OnceLock::new();
    if let Some(offset) = OFFSET.get() {
        return Ok(*offset);
    }
    let btf = fs::read(BTF).map_err(KernelError::io("read", BTF))?;
    let none = || io::Error::other("the kernel's sock has none");
    let offset = members::offset(&btf, "sock", "sk_err")
        .ok_or_else(|| KernelError::io("find the member sk_err in", BTF)(none()))?;
    Ok(*OFFSET.get_or_init(|| offset))
}
