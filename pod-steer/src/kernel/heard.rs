//! Whether clients wait for answers: the iterator of idle connections (`pod-steer-ebpf/src/idle.rs`), loaded when it is needed first.

use std::{collections::HashMap, fs, io, io::Read as _};

use aya::{
    Btf, EbpfLoader, include_bytes_aligned,
    programs::{Iter, Program},
};
use pod_steer_ebpf::Heard;

use super::members;
use crate::ids::SocketCookie;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/idle.bpf.o"));
const PROGRAM: &str = "heard";
/// What it iterates over.
const SOCKETS: &str = "tcp";
pub(super) const BTF: &str = "/sys/kernel/btf/vmlinux";
const RECORD_BYTES: usize = size_of::<Heard>();

/// The loaded program.
#[derive(Debug)]
pub struct HeardIterator {
    program: aya::Ebpf,
}

impl HeardIterator {
    /// Loads it. Needs `CAP_BPF` and `CAP_PERFMON`, and Linux 5.12.
    pub fn load() -> io::Result<Self> {
        let bytes = fs::read(BTF)?;
        let offset = |member: &str| {
            members::offset(&bytes, "tcp_sock", member)
                .ok_or_else(|| io::Error::other(format!("the kernel's tcp_sock has no member {member}")))
        };
        let (rcv_nxt, snd_wl1) = (offset("rcv_nxt")?, offset("snd_wl1")?);
        drop(bytes);
        let mut loader = EbpfLoader::new();
        loader.btf(None).override_global("RCV_NXT", &rcv_nxt, true).override_global("SND_WL1", &snd_wl1, true);
        let mut program = loader.load(OBJECT).map_err(io::Error::other)?;
        let btf = Btf::from_sys_fs().map_err(io::Error::other)?;
        iterator(&mut program)?.load(SOCKETS, &btf).map_err(io::Error::other)?;
        Ok(Self { program })
    }

    /// Of each TCP connection in the network namespace of the calling thread: whether its client has acknowledged something after all that
    /// it has sent, as one does that has got an answer.
    pub fn read(&mut self) -> io::Result<HashMap<SocketCookie, bool>> {
        let program = iterator(&mut self.program)?;
        let link = program.attach().map_err(io::Error::other)?;
        let link = program.take_link(link).map_err(io::Error::other)?;
        let mut file = link.into_file().map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes.as_chunks::<RECORD_BYTES>().0.iter().map(record).collect())
    }
}

fn iterator(program: &mut aya::Ebpf) -> io::Result<&mut Iter> {
    match program.program_mut(PROGRAM) {
        Some(Program::Iter(iterator)) => Ok(iterator),
        _ => Err(io::Error::other("the object lacks its iterator")),
    }
}

fn record(bytes: &[u8; RECORD_BYTES]) -> (SocketCookie, bool) {
    let [cookie, numbers] = bytes.as_chunks::<8>().0 else { unreachable!("a record is two times eight bytes") };
    let [rcv_nxt, snd_wl1] = numbers.as_chunks::<4>().0 else { unreachable!("eight bytes are two words") };
    (SocketCookie(u64::from_ne_bytes(*cookie)), rcv_nxt == snd_wl1)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        thread::sleep,
        time::Duration,
    };

    use super::*;
    use crate::sys;

    #[test]
    fn a_client_that_waits_is_told_from_one_that_was_answered() {
        // Loading it takes a privilege, which a unit test need not have.
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mut iterator = HeardIterator::load().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut pairs: Vec<(TcpStream, TcpStream)> = (0..2)
            .map(|_| (TcpStream::connect(listener.local_addr().unwrap()).unwrap(), listener.accept().unwrap().0))
            .collect();
        let cookies = [0, 1].map(|at| sys::socket_cookie(&pairs[at].1).unwrap());
        let mut ask = |answers: [bool; 2]| {
            for ((client, server), answer) in pairs.iter_mut().zip(answers) {
                client.write_all(b"question").unwrap();
                server.read_exact(&mut [0; 8]).unwrap();
                if answer {
                    server.write_all(b"answer").unwrap();
                    client.read_exact(&mut [0; 6]).unwrap();
                }
            }
            // A client may delay its acknowledgement.
            sleep(Duration::from_millis(250));
            let heard = iterator.read().unwrap();
            cookies.map(|cookie| heard[&cookie])
        };
        assert_eq!(ask([true, true]), [true, true]);
        // In one tick: the first request was answered, and the second one comes at once.
        assert_eq!(ask([true, false]), [true, false]);
        assert_eq!(ask([false, true]), [false, true]);
    }
}
