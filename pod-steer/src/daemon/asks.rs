//! What clients of the API ask, and who answers.

use super::control::Control;
use crate::api::Ask;

impl Control {
    /// True when the daemon is to end.
    pub(super) fn answer_ask(&mut self, ask: Ask) -> bool {
        match ask {
            Ask::Status(answer) => self.answer_status(answer),
            Ask::Exec(request, peer, answer) => {
                let made = self.exec(request, peer);
                self.answer(made, answer);
            }
            Ask::Register(request, answer) => self.register(request, answer),
            Ask::Order(ask) => self.order(*ask),
            Ask::Operation(id, answer) => drop(answer.send(self.operation(id))),
            Ask::History(service, answer) => drop(answer.send(self.history(service.as_deref()))),
            Ask::Unload(answer) => {
                let done = self.unload();
                let end = done.is_ok();
                let _ = answer.send(done);
                return end;
            }
        }
        false
    }
}
