//! Replies of backends with `via=peer`, where they come out of the container's pair of devices: handed over there, they pass neither the
//! bridge nor its firewall hooks. What is not handed over takes the way by the bridge, whose program knows all that this one knows.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT},
    programs::TcContext,
};
use pod_steer_ebpf::NONE;

use super::{
    NEXT, REPEAT, Skb, dropped,
    headers::Work,
    is_forwarded, known, leave, local,
    ports::{Look, look},
    rewrite,
};
use crate::maps::{DESTINATIONS, differ};

/// The IP header begins at `l2`.
#[inline(never)]
pub fn ingress(skb: *mut __sk_buff, l2: usize) -> i32 {
    differ();
    let ctx = &TcContext::new(skb.cast());
    let skb = Skb::of(ctx);
    match look(ctx, l2, skb.protocol) {
        Look::Tcp(ports) if skb.vlan_id == 0 && is_forwarded(ports.source, true) => {}
        _ => return NEXT,
    }
    let Some(work) = Work::of_plain(ctx, l2, skb.protocol) else { return NEXT };
    match known::from_server(work) {
        NONE => NEXT,
        REPEAT => TC_ACT_SHOT,
        service => {
            route(ctx, skb.ifindex, work);
            if work.device == 0 || !local::fits(ctx, work.device) {
                return NEXT;
            }
            if !rewrite::rewrite(ctx, l2, &work.tuple, &work.to, work.tcp) {
                return dropped(service);
            }
            leave(ctx, work.device, &work.hop, 0, skb.mark)
        }
    }
}

/// Sets the device by which a reply leaves; none if its backend does not have this pair.
#[inline(always)]
fn route(ctx: &TcContext, ifindex: u32, work: &mut Work) {
    let backend = work.peer;
    (work.device, work.peer) = (0, NONE);
    if backend == NONE || local::end(backend) != ifindex {
        return;
    }
    // SAFETY: a destination is replaced as a whole.
    if let Some(destination) = unsafe { DESTINATIONS.get(backend) } {
        // The kernel would see it come by the bridge.
        local::route_reply(ctx, destination.device, work);
    }
}
