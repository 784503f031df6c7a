//! Messages of rtnetlink(7): requests, and from answers the attributes that are needed. Attributes that a newer kernel has are skipped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{DecodeError, NLM_F_ACK, NLM_F_DUMP, NetlinkDeserializable, NetlinkHeader, NlasIterator};

use crate::{
    netlink,
    text::{NAME_CHARS_MAX, shown},
};

/// Kinds of messages (`include/uapi/linux/rtnetlink.h`).
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;

/// Sizes of what precedes the attributes: `ifinfomsg`, `ifaddrmsg`, `rtmsg`, `rtgenmsg` with its padding, `rtnexthop`.
const LINK_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;
const ROUTE_BYTES: usize = 12;
const NSID_BYTES: usize = 4;
const HOP_BYTES: usize = 8;

/// Attributes of links, addresses, routes and namespace numbers.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// Leaves out the counters of IPv6, a third of a link's message.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFF_UP: u32 = 1;
const IFF_LOOPBACK: u32 = 1 << 3;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_TABLE_MAIN: u32 = 254;
const RTN_UNICAST: u8 = 1;

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name, as it can be shown.
    pub name: String,
    /// The first bytes of its address on its link layer, which for Ethernet are all.
    pub layer_address: [u8; 6],
    /// The kernel's name of its kind (`veth`, `bridge`), as it can be shown; nothing for hardware and `lo`.
    pub kind: String,
    /// The kind of its link layer, one of `ARPHRD_` in `include/uapi/linux/if_arp.h`.
    pub layer: u16,
    /// It is up.
    pub is_up: bool,
    /// It is a loopback device.
    pub is_loopback: bool,
    /// Index of the other end of a pair, or of the device below.
    pub link: Option<u32>,
    /// The number of the namespace which that is in, if it is another one.
    pub link_nsid: Option<i32>,
    /// Index of the bridge that has it.
    pub master: Option<u32>,
}

/// An address of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the device.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Number of bits of its network.
    pub prefix: u8,
    /// It is valid beyond the link.
    pub is_global: bool,
    /// See `IFA_F_SECONDARY` and the others in `include/uapi/linux/if_addr.h`.
    pub flags: u32,
}

/// A route to everywhere, of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// It is a route of IPv6.
    pub is_v6: bool,
    /// Index of its device.
    pub index: u32,
    /// Its next hop; `None` if every destination is on the link, or the next hop is of the other family.
    pub gateway: Option<IpAddr>,
    /// The kernel prefers a smaller one.
    pub metric: u32,
}

/// One message of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A device.
    Link(Link),
    /// An address.
    Address(Address),
    /// A default route.
    Route(Route),
    /// Any other route: the index of its device.
    Hop(u32),
    /// The number of a namespace; negative if it has none.
    Nsid(i32),
    /// Anything else.
    Other,
}

/// The request for all devices.
pub fn links() -> Vec<u8> {
    request(RTM_GETLINK, NLM_F_DUMP, &[0; LINK_BYTES], &[(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)])
}

/// The request for one device.
pub fn link(index: u32) -> Vec<u8> {
    let mut header = [0; LINK_BYTES];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    request(RTM_GETLINK, NLM_F_ACK, &header, &[(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)])
}

/// The request for all addresses.
pub fn addresses() -> Vec<u8> {
    request(RTM_GETADDR, NLM_F_DUMP, &[0; ADDRESS_BYTES], &[])
}

/// The request for all routes.
pub fn routes() -> Vec<u8> {
    request(RTM_GETROUTE, NLM_F_DUMP, &[0; ROUTE_BYTES], &[])
}

/// The request for the route to an address.
pub fn route_to(ip: IpAddr) -> Vec<u8> {
    let (family, octets) = match ip {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    let mut body = vec![0; ROUTE_BYTES];
    body[..2].copy_from_slice(&[family as u8, 8 * octets.len() as u8]);
    body.extend((4 + octets.len() as u16).to_ne_bytes());
    body.extend(RTA_DST.to_ne_bytes());
    body.extend(octets);
    netlink::request(RTM_GETROUTE, NLM_F_ACK, &body)
}

/// The request for the number of the namespace behind a descriptor.
pub fn nsid(fd: i32) -> Vec<u8> {
    request(RTM_GETNSID, NLM_F_ACK, &[0; NSID_BYTES], &[(NETNSA_FD, fd.cast_unsigned())])
}

fn request(kind: u16, flags: u16, header: &[u8], attributes: &[(u16, u32)]) -> Vec<u8> {
    let attributes = attributes
        .iter()
        .flat_map(|(kind, value)| [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value.to_ne_bytes()].concat());
    let body: Vec<u8> = header.iter().copied().chain(attributes).collect();
    netlink::request(kind, flags, &body)
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let read = match header.message_type {
            RTM_NEWLINK => read_link(payload),
            RTM_NEWADDR => read_address(payload),
            RTM_NEWROUTE => read_route(payload),
            RTM_NEWNSID => read_nsid(payload),
            _ => Some(Self::Other),
        };
        read.ok_or_else(|| format!("a message of type {} is incomplete", header.message_type).into())
    }
}

/// The attributes behind a header of this size, with their kinds; nothing after a malformed one.
fn attributes(payload: &[u8], header_bytes: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let attributes = NlasIterator::new(payload.get(header_bytes..).unwrap_or_default());
    attributes.map_while(Result::ok).map(|nla| {
        let length = usize::from(nla.length());
        let kind = nla.kind();
        (kind, nla.into_inner().get(4..length).unwrap_or_default())
    })
}

fn read_link(payload: &[u8]) -> Option<Message> {
    let flags = number(payload.get(8..)?)?;
    let mut link = Link {
        index: number(payload.get(4..)?)?,
        layer: u16::from_ne_bytes([*payload.get(2)?, *payload.get(3)?]),
        is_up: flags & IFF_UP != 0,
        is_loopback: flags & IFF_LOOPBACK != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(payload, LINK_BYTES) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_ADDRESS => link.layer_address.iter_mut().zip(value).for_each(|(own, byte)| *own = *byte),
            IFLA_LINK => link.link = number(value),
            IFLA_MASTER => link.master = number(value),
            IFLA_LINK_NETNSID => link.link_nsid = number(value).map(u32::cast_signed),
            IFLA_LINKINFO => {
                let kind = attributes(value, 0).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
            }
            _ => {}
        }
    }
    Some(Message::Link(link))
}

fn read_address(payload: &[u8]) -> Option<Message> {
    let [_, prefix, flags, scope] = *payload.first_chunk()?;
    let (mut local, mut address, mut flags) = (None, None, u32::from(flags));
    for (kind, value) in attributes(payload, ADDRESS_BYTES) {
        match kind {
            // On a point-to-point link the other attribute is that of the peer.
            IFA_LOCAL => local = ip(value),
            IFA_ADDRESS => address = ip(value),
            IFA_FLAGS => flags = number(value)?,
            _ => {}
        }
    }
    let index = number(payload.get(4..)?)?;
    let Some(ip) = local.or(address) else { return Some(Message::Other) };
    Some(Message::Address(Address { index, ip, prefix, is_global: scope == RT_SCOPE_UNIVERSE, flags }))
}

fn read_route(payload: &[u8]) -> Option<Message> {
    let [family, destination_bits, source_bits, _, table, _, _, kind] = *payload.first_chunk()?;
    let (mut index, mut gateway, mut metric, mut table) = (None, None, 0, u32::from(table));
    for (kind, value) in attributes(payload, ROUTE_BYTES) {
        match kind {
            RTA_OIF => index = number(value),
            RTA_GATEWAY => gateway = ip(value),
            RTA_PRIORITY => metric = number(value)?,
            RTA_TABLE => table = number(value)?,
            // The first of several next hops.
            RTA_MULTIPATH => {
                index = number(value.get(4..)?);
                let length = usize::from(u16::from_ne_bytes(*value.first_chunk()?));
                let own = attributes(value.get(..length)?, HOP_BYTES);
                gateway = own.filter(|(kind, _)| *kind == RTA_GATEWAY).find_map(|(_, value)| ip(value));
            }
            _ => {}
        }
    }
    let is_default = (destination_bits, source_bits, kind) == (0, 0, RTN_UNICAST) && table == RT_TABLE_MAIN;
    let Some(index) = index else { return Some(Message::Other) };
    if !is_default {
        return Some(Message::Hop(index));
    }
    Some(Message::Route(Route { is_v6: i32::from(family) == libc::AF_INET6, index, gateway, metric }))
}

fn read_nsid(payload: &[u8]) -> Option<Message> {
    let (_, value) = attributes(payload, NSID_BYTES).find(|(kind, _)| *kind == NETNSA_NSID)?;
    number(value).map(|number| Message::Nsid(number.cast_signed()))
}

/// The number at the beginning of these bytes.
fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A text that ends with a zero byte, as it can be shown: a container may give its devices any names.
fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    shown(&String::from_utf8_lossy(text), NAME_CHARS_MAX)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => bytes.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes).into()),
        16 => bytes.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
