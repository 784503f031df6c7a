//! What clients of the API ask, and who answers.

use super::{control::Control, operations::GivenOrder, recorded::Asker};
use crate::api::{Ask, OrderAsk};

impl Control {
    /// A client has asked. It is answered in this turn, after the next reconcile.
    pub(super) fn asked(&mut self, ask: Ask) {
        // An order counts on everything that has happened until now, also on changes that wait for the pace of their service.
        if let Ask::Order(ask) = &ask {
            self.dirty.hurry(&ask.service);
        }
        self.asks.push_back(ask);
    }

    /// Answers a client, or begins what it has asked for.
    pub(super) fn answer_ask(&mut self, ask: Ask) {
        match ask {
            Ask::Status(answer) => self.answer_status(answer),
            Ask::Sockets(ask) => self.answer_sockets(ask),
            Ask::Measured(answer) => self.answer_measured(answer),
            Ask::Exec(request, peer, answer) => self.exec(request, peer, answer),
            Ask::Register(request, answer) => self.register(request, answer),
            Ask::Order(ask) => {
                let OrderAsk { service, order, who, answer } = *ask;
                self.carry_out(GivenOrder::new(service, order, who, Asker::Client(answer)));
            }
            Ask::Operation(id, answer) => drop(answer.send(self.operation(id))),
            Ask::History(service, answer) => drop(answer.send(self.history(service.as_deref()))),
            Ask::Unload(answer) => {
                // Orders of this turn are in force: their clients hear of it before nothing is left.
                self.answer_begun();
                let done = self.unload();
                self.is_unloaded = done.is_ok();
                let _ = answer.send(done);
            }
        }
    }
}
