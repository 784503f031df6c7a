//! Messages of rtnetlink(7) about qdiscs and filters: requests, and what is needed of the answers.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya::programs::TcAttachType;
use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NetlinkDeserializable, NetlinkHeader,
    NlasIterator,
};

use crate::netlink::request;

/// Kinds of messages (`include/uapi/linux/rtnetlink.h`).
const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const RTM_GETTFILTER: u16 = 46;

/// Attributes of both, of the options of a bpf filter, and the flag of attributes that contain others.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const NLA_F_NESTED: u16 = 1 << 15;
/// The program's verdict is that of the filter.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// Size of `struct tcmsg`, which precedes the attributes.
const HEADER_BYTES: usize = 20;
/// The handle of a qdisc that has filters for both directions, and its parent (`include/uapi/linux/pkt_sched.h`).
const QDISC_HANDLE: u32 = 0xffff_0000;
const QDISC_PARENT: u32 = 0xffff_fff1;
/// The parents of filters of the two directions.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
/// Packets of every protocol.
const ETH_P_ALL: u16 = 3;

/// The kind of such a qdisc.
pub const CLSACT: &str = "clsact";
/// The kind of a filter with a program.
const BPF: &str = "bpf";

/// Filters of a direction run in the order of their priorities. A filter that names none gets 49152 or the next lower one that is free, so
/// ours run before those. Their verdict lets the others run too.
pub const PRIORITY: u16 = 200;

/// A filter with a program, at [`PRIORITY`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Index of the device.
    pub device: u32,
    /// Which packets it sees.
    pub direction: TcAttachType,
    /// Tells it from others at the same priority.
    pub handle: u32,
    /// Id of the program.
    pub program: u32,
}

/// One message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The qdisc of a device that has filters for received packets.
    Qdisc {
        /// Index of the device.
        device: u32,
        /// Its kind.
        kind: String,
    },
    /// A filter that could be ours.
    Candidate(Filter),
    /// Another filter, or the head of several.
    OtherFilter,
    /// Anything else.
    Other,
}

/// The request for the qdiscs of all devices.
pub fn qdiscs() -> Vec<u8> {
    request(RTM_GETQDISC, NLM_F_DUMP, &header(0, 0, 0, 0))
}

/// The request for a new clsact qdisc. It fails if the device has one of these qdiscs.
pub fn add_qdisc(device: u32) -> Vec<u8> {
    let body = [header(device, QDISC_HANDLE, QDISC_PARENT, 0), attribute(TCA_KIND, &text(CLSACT))].concat();
    request(RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// The request to remove it, with all of its filters.
pub fn delete_qdisc(device: u32) -> Vec<u8> {
    request(RTM_DELQDISC, NLM_F_ACK, &header(device, QDISC_HANDLE, QDISC_PARENT, 0))
}

/// The request for all filters of one direction of a device.
pub fn filters(device: u32, direction: TcAttachType) -> Vec<u8> {
    request(RTM_GETTFILTER, NLM_F_DUMP, &header(device, 0, parent(direction), 0))
}

/// The request for a new filter, or to replace the program of one, which is atomic. [`Filter::program`] does not count.
pub fn set_filter(filter: &Filter, is_new: bool, program: BorrowedFd<'_>, name: &str) -> Vec<u8> {
    let options = [
        attribute(TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes()),
        attribute(TCA_BPF_NAME, &text(name)),
        attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes()),
    ];
    let kind = attribute(TCA_KIND, &text(BPF));
    let body = [place(filter), kind, attribute(TCA_OPTIONS | NLA_F_NESTED, &options.concat())].concat();
    let flags = if is_new { NLM_F_CREATE | NLM_F_EXCL } else { NLM_F_REPLACE };
    request(RTM_NEWTFILTER, NLM_F_ACK | flags, &body)
}

/// The request to remove a filter.
pub fn delete_filter(filter: &Filter) -> Vec<u8> {
    request(RTM_DELTFILTER, NLM_F_ACK, &place(filter))
}

fn place(filter: &Filter) -> Vec<u8> {
    let info = u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be());
    header(filter.device, filter.handle, parent(filter.direction), info)
}

fn parent(direction: TcAttachType) -> u32 {
    match direction {
        TcAttachType::Ingress => INGRESS,
        TcAttachType::Egress => EGRESS,
        TcAttachType::Custom(parent) => parent,
    }
}

fn header(device: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    // The family is none.
    [0, device, handle, parent, info].into_iter().flat_map(u32::to_ne_bytes).collect()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = (size_of::<[u16; 2]>() + value.len()) as u16;
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    text.bytes().chain([0]).collect()
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let read = match header.message_type {
            RTM_NEWQDISC => read_qdisc(payload),
            RTM_NEWTFILTER => read_filter(payload),
            _ => Some(Self::Other),
        };
        read.ok_or_else(|| format!("a message of type {} is incomplete", header.message_type).into())
    }
}

fn read_qdisc(payload: &[u8]) -> Option<Message> {
    let [_, device, handle, _, _] = words(payload)?;
    if handle != QDISC_HANDLE {
        return Some(Message::Other);
    }
    let kind = value_of(TCA_KIND, payload.get(HEADER_BYTES..)?).map(read_text);
    Some(Message::Qdisc { device, kind: kind.unwrap_or_default() })
}

fn read_filter(payload: &[u8]) -> Option<Message> {
    let [_, device, handle, parent, info] = words(payload)?;
    let direction = match parent {
        INGRESS => TcAttachType::Ingress,
        EGRESS => TcAttachType::Egress,
        _ => return Some(Message::OtherFilter),
    };
    let attributes = payload.get(HEADER_BYTES..)?;
    let is_bpf = value_of(TCA_KIND, attributes).is_some_and(|kind| read_text(kind) == BPF);
    let id = value_of(TCA_OPTIONS, attributes).and_then(|options| value_of(TCA_BPF_ID, options));
    let program = id.and_then(|id| id.first_chunk()).map(|id| u32::from_ne_bytes(*id));
    Some(match program {
        Some(program) if is_bpf && handle != 0 && info >> 16 == u32::from(PRIORITY) => {
            Message::Candidate(Filter { device, direction, handle, program })
        }
        _ => Message::OtherFilter,
    })
}

/// `struct tcmsg`.
fn words(payload: &[u8]) -> Option<[u32; 5]> {
    let bytes: &[u8; HEADER_BYTES] = payload.first_chunk()?;
    let mut words = [0; 5];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    Some(words)
}

/// The value of an attribute; `None` if it is absent or behind a malformed one.
fn value_of(kind: u16, attributes: &[u8]) -> Option<&[u8]> {
    let mut all = NlasIterator::new(attributes).map_while(Result::ok);
    let found = all.find(|attribute| attribute.kind() == kind)?;
    let length = usize::from(found.length());
    found.into_inner().get(size_of::<[u16; 2]>()..length)
}

fn read_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests;
