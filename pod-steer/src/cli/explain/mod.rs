//! `pod-steer explain`: which socket gets a packet, and why. The programs choose in a dry run, and the tables are walked to check them.
//! `names` has the names of services and backends, `explainer` asks, `answer` has what was found, and `text` writes it.

mod answer;
mod explainer;
mod names;
mod text;

use std::{
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use super::{
    Failure, Outcome,
    args::explain::{ExplainArgs, Source, destination, source},
    print,
    steered::{Steered, check_state},
};
use crate::netns::Netns;
use explainer::Explainer;
#[cfg(test)]
pub(super) use names::Backend;
pub(super) use names::Names;

/// Maximum number of bytes of a list of packets.
const PACKETS_MAX: u64 = 16 << 20;

/// A packet to explain: the client, and where it connects to.
type Asked = (Source, SocketAddr);

/// Explains each packet that the arguments give.
pub(super) fn explain(args: &ExplainArgs) -> Outcome {
    let packets = packets(args).map_err(Failure::Input)?;
    let dir = &args.bpffs;
    check_state(dir)?;
    let steered = Steered::open(dir, args.namespace.as_deref())?;
    steered.run(|| Ok(explain_in(args, steered.netns, &packets)))?
}

fn explain_in(args: &ExplainArgs, netns: Netns, packets: &[Asked]) -> Outcome {
    let mut explainer = Explainer::open(args, netns)?;
    let mut differ = false;
    for (source, destination) in packets {
        let answer = explainer.explain(*source, *destination)?;
        differ |= answer.difference.is_some();
        print(&if args.json { format!("{}\n", serde_json::to_string(&answer)?) } else { text::of(&answer) })?;
    }
    if differ { Err(Failure::Said(1)) } else { Ok(()) }
}

/// The packets, of which each has addresses of one family.
fn packets(args: &ExplainArgs) -> Result<Vec<Asked>, String> {
    let asked = match (&args.packets, args.source, args.destination) {
        (None, Some(source), Some(destination)) => vec![(source, destination)],
        (Some(file), ..) => read_packets(file)?,
        _ => return Err("give a client and a destination, or --packets".to_owned()),
    };
    for (source, destination) in &asked {
        if source.ip.is_ipv4() != destination.is_ipv4() {
            return Err(format!("the client {} and the destination {destination} are of two families", source.ip));
        }
        // Each device has such addresses of its own, and the route to one leads to an arbitrary device.
        let of_link = [source.ip, destination.ip()].into_iter().find(is_link_local);
        if let (Some(ip), None) = (of_link, &args.device) {
            return Err(format!("{ip} is valid on one device only; name the device with --device"));
        }
    }
    Ok(asked)
}

fn is_link_local(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

fn read_packets(file: &Path) -> Result<Vec<Asked>, String> {
    let failed = |error: io::Error| format!("cannot read the packets in `{}`: {error}", file.display());
    let mut text = String::new();
    let limited = |reader: &mut dyn io::Read, text: &mut String| reader.take(PACKETS_MAX + 1).read_to_string(text);
    let read = if file == Path::new("-") {
        limited(&mut io::stdin().lock(), &mut text)
    } else {
        File::open(file).and_then(|mut file| limited(&mut file, &mut text))
    };
    if read.map_err(failed)? as u64 > PACKETS_MAX {
        return Err(format!("the packets in `{}` are more than {} MiB", file.display(), PACKETS_MAX >> 20));
    }
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(number, line)| packet(line).map_err(|error| format!("line {number} of the packets: {error}"))).collect()
}

fn packet(line: &str) -> Result<Asked, String> {
    let [from, to] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        return Err("use SOURCE DESTINATION, as in 203.0.113.5:4711 10.0.0.1:80".to_owned());
    };
    Ok((source(from)?, destination(to)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_client_and_a_destination() {
        let read = packet(" 203.0.113.5:4711\t10.0.0.1:80 ").unwrap();
        assert_eq!((read.0.port, read.1.to_string()), (Some(4711), "10.0.0.1:80".to_owned()));
        for wrong in ["203.0.113.5:4711", "203.0.113.5 10.0.0.1:80 x", "x 10.0.0.1:80", "203.0.113.5 10.0.0.1"] {
            assert!(packet(wrong).is_err(), "{wrong}");
        }
    }
}
