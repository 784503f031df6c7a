use std::{fs::File, os::fd::AsFd as _};

use super::*;
use crate::netlink::read_part;

/// Reads a request as if it were an answer: requests and answers have the same layout.
fn read(bytes: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    let done = read_part(bytes, &mut |message| {
        found.push(message);
        Ok(())
    });
    assert!(!done.unwrap());
    found
}

fn filter(direction: TcAttachType) -> Filter {
    Filter { device: 7, direction, handle: 3, program: 0 }
}

#[test]
fn a_qdisc_is_known_by_its_handle() {
    assert_eq!(read(&add_qdisc(7)), [Message::Qdisc { device: 7, kind: CLSACT.to_owned() }]);
    let other = [header(7, 0x8001_0000, u32::MAX, 0), attribute(TCA_KIND, &text("fq_codel"))].concat();
    assert_eq!(read(&request(RTM_NEWQDISC, 0, &other)), [Message::Other]);
}

#[test]
fn a_filter_is_ours_perhaps_if_it_has_a_program_at_our_priority() {
    let answer = |priority: u16, handle: u32, kind: &str| {
        let id = attribute(TCA_BPF_ID, &9u32.to_ne_bytes());
        let info = u32::from(priority) << 16 | u32::from(ETH_P_ALL.to_be());
        let attributes = [attribute(TCA_KIND, &text(kind)), attribute(TCA_OPTIONS | NLA_F_NESTED, &id)].concat();
        read(&request(RTM_NEWTFILTER, 0, &[header(7, handle, EGRESS, info), attributes].concat()))
    };
    let ours = Filter { program: 9, ..filter(TcAttachType::Egress) };
    assert_eq!(answer(PRIORITY, 3, BPF), [Message::Candidate(ours)]);
    // Another priority, the head of a list, another kind.
    for other in [answer(1, 3, BPF), answer(PRIORITY, 0, BPF), answer(PRIORITY, 3, "u32")] {
        assert_eq!(other, [Message::OtherFilter]);
    }
    // The program is not known by its descriptor.
    let file = File::open("/dev/null").unwrap();
    let request = set_filter(&filter(TcAttachType::Ingress), true, file.as_fd(), "from_wire");
    assert_eq!(read(&request), [Message::OtherFilter]);
}

#[test]
fn attributes_are_padded_and_say_their_length() {
    assert_eq!(attribute(TCA_KIND, b"abc\0x"), [9, 0, 1, 0, b'a', b'b', b'c', 0, b'x', 0, 0, 0]);
    assert_eq!(value_of(TCA_KIND, &attribute(TCA_KIND, b"abc\0x")), Some(&b"abc\0x"[..]));
    assert_eq!(value_of(TCA_OPTIONS, &attribute(TCA_KIND, b"abc")), None);
}

#[test]
fn an_incomplete_message_is_an_error() {
    let short = request(RTM_NEWTFILTER, 0, &[0; HEADER_BYTES - 1]);
    assert!(read_part::<Message>(&short, &mut |_| Ok(())).is_err());
}
