//! Carrying out what operators order.

use super::{OrderAsk, control::Control};
use crate::{api::types::OperationStatus, rollout::Operation};

impl Control {
    pub(super) fn order(&mut self, _ask: OrderAsk) {}

    pub(super) fn operation(&self, _id: u64) -> Option<OperationStatus> {
        None
    }

    pub(super) fn history(&self, _service: Option<&str>) -> Vec<Operation> {
        Vec::new()
    }
}
