//! Backends that were told to stop. A process may ignore the signal, or take its time. A backend that still listens
//! when its stop time-out is over counts as running again.

use super::{Backend, Phase, World, scope::Scope};

/// An engine's stop time-out, in seconds, for a container without one of its own.
const STOP_TIMEOUT_S_DEFAULT: i64 = 10;
/// Added to the time-out, in milliseconds: the engine sends SIGKILL when the time-out is over, and the process ends
/// after that.
const MARGIN_MS: i64 = 2_000;

impl Backend {
    /// Records that it was sent a signal to stop. A second signal does not prolong the time-out.
    pub fn told_to_stop(&mut self, now_ms: i64) {
        if self.phase != Phase::Stopping {
            self.phase = Phase::Stopping;
            self.stop_by_ms = self.stop_by(now_ms);
        }
    }

    /// Records that it was frozen.
    pub fn was_paused(&mut self) {
        // A frozen process cannot follow a signal, so `stop_by_ms` only tells that it was told to stop.
        if self.phase == Phase::Stopping {
            self.stop_by_ms.get_or_insert(i64::MAX);
        }
        self.phase = Phase::Paused;
    }

    /// Records that it was thawed. If it was told to stop before, its stop time-out begins now.
    pub fn was_unpaused(&mut self, now_ms: i64) {
        let stops = self.stop_by_ms.is_some();
        (self.phase, self.stop_by_ms) = (Phase::Running, None);
        if stops {
            self.told_to_stop(now_ms);
        }
    }

    /// Records that it was started, or has ended.
    pub fn is_now(&mut self, phase: Phase) {
        (self.phase, self.stop_by_ms) = (phase, None);
        self.runs = self.runs.wrapping_add(u32::from(phase == Phase::Running));
    }

    /// How long it may take to stop, in milliseconds; `None` if its stop time-out is negative, which means that it is
    /// never killed.
    pub fn stop_ms(&self) -> Option<i64> {
        let timeout_s = self.stop_timeout_s.unwrap_or(STOP_TIMEOUT_S_DEFAULT);
        (timeout_s >= 0).then(|| timeout_s.saturating_mul(1000).saturating_add(MARGIN_MS))
    }

    /// When its stop time-out will be over, if it was told to stop.
    pub(super) fn stops_at(&self, now_ms: i64) -> Option<i64> {
        self.stop_by_ms.filter(|by_ms| self.phase == Phase::Stopping && *by_ms > now_ms)
    }

    /// When its stop time-out is over; `None` if it is never killed.
    fn stop_by(&self, now_ms: i64) -> Option<i64> {
        Some(now_ms.saturating_add(self.stop_ms()?))
    }
}

impl World {
    /// Marks every backend that still listens after its stop time-out as running.
    pub(super) fn end_stopping(&mut self, scope: &Scope) {
        let now_ms = self.now_ms;
        let Self { backends, sockets, .. } = self;
        for backend in backends.values_mut().filter(|backend| scope.has_index(backend.index)) {
            let over = backend.phase == Phase::Stopping && backend.stop_by_ms.is_some_and(|by_ms| by_ms <= now_ms);
            let mut own = sockets.values().filter(|socket| socket.backend == backend.index);
            if over && own.any(|socket| backend.serves_by(socket)) {
                backend.is_now(Phase::Running);
            }
        }
    }
}
