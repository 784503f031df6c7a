//! Events of different backends may be heard in any order.

use proptest::{collection::vec, prelude::*};

use super::super::*;
use crate::{
    ids::{BackendIndex, SocketCookie},
    world::{
        Phase, Plan,
        tests::{backend, socket, world},
    },
};

/// Something that happens to one backend.
#[derive(Clone, Copy, Debug)]
enum Own {
    Listens { ip: usize, port: u16 },
    CloseOldest,
    Phase(Phase),
    Goes,
}

/// Which ports each service has. A port that two services ask for belongs to the one that listens first, so those are not
/// independent of the order.
const SERVICES: [(&str, &str); 3] = [("a", "80:8080,81:8081"), ("b", "82"), ("c", "127.0.0.2:83:8083,84-86")];
const ADDRESSES: [&str; 3] = ["0.0.0.0", "::", "127.0.0.2"];
const BACKENDS: usize = 6;

fn own() -> impl Strategy<Value = Own> {
    let port = prop_oneof![Just(8080), Just(8081), Just(82), Just(8083), Just(85)];
    let phase = prop_oneof![Just(Phase::Running), Just(Phase::Stopping), Just(Phase::Exited)];
    prop_oneof![
        5 => (0..ADDRESSES.len(), port).prop_map(|(ip, port)| Own::Listens { ip, port }),
        1 => Just(Own::CloseOldest),
        1 => phase.prop_map(Own::Phase),
        1 => Just(Own::Goes),
    ]
}

/// Lets it happen to a backend. Sockets are numbered by backend, as if their order of age were the same.
fn happen(world: &mut World, at: usize, number: usize, event: Own) -> Changed {
    let (index, service) = (BackendIndex(at as u32), SERVICES[at % SERVICES.len()].0);
    let mut changed = Changed::default();
    changed.add(service);
    match event {
        Own::Listens { ip, port } if world.by_index(index).is_some_and(|backend| backend.phase != Phase::Exited) => {
            world.sockets.insert(SocketCookie((1000 * at + number) as u64), socket(index.0, ADDRESSES[ip], port));
        }
        Own::Listens { .. } => {}
        Own::CloseOldest => {
            let oldest = world.sockets.iter().find(|(_, socket)| socket.backend == index).map(|(cookie, _)| *cookie);
            oldest.map(|cookie| world.remove_socket(cookie, world.now_ms));
        }
        Own::Phase(phase) => {
            world.by_index_mut(index).into_iter().for_each(|backend| backend.phase = phase);
            if phase == Phase::Exited {
                world.sockets.retain(|_, socket| socket.backend != index);
            }
        }
        Own::Goes => {
            world.sockets.retain(|_, socket| socket.backend != index);
            world.backends.retain(|_, backend| backend.index != index);
        }
    }
    changed
}

/// The plan after these events, each of which is planned: a claim is made when a plan sees its first listener.
fn plan_after(events: &[Vec<Own>], order: impl Iterator<Item = usize>) -> Plan {
    let all =
        (0..BACKENDS).map(|at| backend(at as u32, SERVICES[at % SERVICES.len()].0, SERVICES[at % SERVICES.len()].1));
    let mut world = world(all, []);
    let (mut plan, mut heard) = (world.plan(), [0; BACKENDS]);
    for at in order {
        let number = heard[at];
        heard[at] += 1;
        let changed = happen(&mut world, at, number, events[at][number]);
        world.replan(&changed, &mut plan);
    }
    plan
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// The plan depends on what has happened to each backend, and on nothing else.
    #[test]
    fn any_order_of_the_same_events_ends_in_the_same_plan(
        events in vec(vec(own(), 0..8), BACKENDS),
        seed in any::<u64>(),
    ) {
        let in_turn = || events.iter().enumerate().flat_map(|(at, own)| own.iter().map(move |_| at));
        let mut mixed: Vec<usize> = in_turn().collect();
        // Fisher and Yates, by a linear congruential generator: each backend's own events keep their order.
        let mut random = seed;
        for last in (1..mixed.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            mixed.swap(last, (random >> 33) as usize % (last + 1));
        }
        let mixed = plan_after(&events, mixed.into_iter());
        prop_assert_eq!(mixed, plan_after(&events, in_turn()));
    }
}
