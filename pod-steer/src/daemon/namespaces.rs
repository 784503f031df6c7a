//! Steering in the namespaces where it is planned: the lookup program is loaded for each, beside the loop.

use std::collections::BTreeSet;

use super::{
    Event,
    control::Control,
    resync::{cookie_subject, namespace_subject},
};
use crate::{
    api::{Answer, types::Registered},
    condition::{Condition, Reason},
    ids::NetnsCookie,
    sys,
    world::{Backend, Phase, Plan},
};

impl Control {
    /// Starts to steer where it is planned; a program is loaded beside the loop, and [`Event::Attached`] says when.
    pub(super) fn attach_namespaces(&mut self, plan: &Plan) {
        self.open_ingress();
        let forwarding = plan.forwarding();
        for cookie in plan.namespaces() {
            let Some((netns, ns)) = self.netns.take_file(cookie) else { continue };
            let forwards = forwarding.contains(&cookie);
            let Some(attachment) = self.kernel.namespace_attachment(netns, ns, forwards) else { continue };
            self.netns.begin_attach(cookie);
            let failed = Err("the load of the program panicked; the reason is on standard error".to_owned());
            self.effects.run(Event::Attached { cookie, result: failed }, move || {
                let result = attachment.run().map_err(|error| crate::chain(&error));
                sys::shrink_memory();
                Event::Attached { cookie, result }
            });
        }
    }

    /// Leaves namespaces in which nothing is planned. One that is being attached is left when that is done: its program reads
    /// the map of ports that was there when it was loaded.
    pub(super) fn leave_namespaces(&mut self, plan: &Plan) {
        let planned = plan.namespaces();
        let alive = self.world.backends.values().filter(|backend| backend.phase != Phase::Exited);
        let alive: BTreeSet<NetnsCookie> = alive.filter_map(|backend| Some(backend.ingress()?.cookie)).collect();
        for cookie in self.kernel.known_namespaces() {
            if !planned.contains(&cookie) && !self.netns.is_attaching(cookie) {
                self.kernel.detach_namespace(cookie);
                if let Some(netns) = self.netns.forget(cookie) {
                    self.conditions.clear(Reason::NamespaceNotSteered, &namespace_subject(netns));
                }
                self.world.steered.remove(&cookie);
                self.world.repairing.remove(&cookie);
            }
        }
        // A backend that lives there must not claim the port of a listener that was forgotten.
        let lives: BTreeSet<NetnsCookie> =
            self.world.backends.values().flat_map(Backend::places).map(|netns| netns.cookie).collect();
        self.world.foreign.retain(|cookie, _| lives.contains(cookie) || planned.contains(cookie));
        // A descriptor that is kept open keeps its namespace from ending.
        self.netns.retain(|cookie| alive.contains(&cookie) || planned.contains(&cookie));
    }

    pub(super) fn attached(&mut self, cookie: NetnsCookie, result: Result<(), String>) {
        self.world.repairing.remove(&cookie);
        let failure =
            result.err().or_else(|| self.kernel.hold_namespace(cookie).err().map(|error| crate::chain(&error)));
        let netns = self.netns.get(cookie);
        let subject = netns.map_or_else(|| cookie_subject(cookie), namespace_subject);
        match &failure {
            None => {
                self.world.steered.insert(cookie);
                self.conditions.clear(Reason::NamespaceNotSteered, &subject);
                self.forward_from(cookie);
            }
            Some(error) => {
                let message = format!("cannot be steered in, which is tried again: {error}");
                self.conditions.set(subject, Condition::without_remedy(Reason::NamespaceNotSteered, message));
            }
        }
        for (made, answer) in self.netns.end_attach(cookie) {
            let _ = answer.send(failure.clone().map_or(Ok(made), Err));
        }
        self.touch();
    }

    /// Answers when the backend that was made is steered to.
    pub(super) fn answer(&mut self, made: Result<Registered, String>, answer: Answer) {
        let netns = made.as_ref().ok().and_then(|made| self.world.backends.get(made.id.as_str())).and_then(|b| b.netns);
        let unanswered = match (made, netns) {
            (Ok(made), Some(netns)) => {
                self.netns.wait(netns.cookie, (made, answer)).map(|(made, answer)| (Ok(made), answer))
            }
            (made, _) => Some((made, answer)),
        };
        if let Some((made, answer)) = unanswered {
            let _ = answer.send(made);
        }
    }
}
