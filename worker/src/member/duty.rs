//! What a worker is doing: nothing, or its part of one run.

use protocol::{Fault, FaultKind, RunId};

/// One run on this worker. Two coordinators, or one that was restarted, may give different runs
/// the same [`RunId`]; never the same turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn(u64);

/// The run that this worker renders.
#[derive(Clone, Debug, Default)]
pub struct Duty {
    turns: u64,
    current: Option<(Turn, RunId)>,
}

impl Duty {
    /// The coordinator starts a run.
    ///
    /// # Errors
    /// If it is to be refused: a worker renders one run at a time.
    pub fn start(&mut self, run: RunId) -> Result<Turn, Fault> {
        if let Some((_, current)) = self.current {
            let cause = format!("{run} cannot start here: {current} is still being rendered");
            return Err(Fault::new(FaultKind::Protocol, cause));
        }
        self.turns += 1;
        let turn = Turn(self.turns);
        self.current = Some((turn, run));
        Ok(turn)
    }

    /// The turn to stop when the coordinator aborts `run`. None: it has ended already, and the
    /// message that says so crossed the order.
    #[must_use]
    pub fn abort(&self, run: RunId) -> Option<Turn> {
        self.current.filter(|(_, current)| *current == run).map(|(turn, _)| turn)
    }

    /// Whether `turn` is the current one; it is what everything that comes in late must ask.
    #[must_use]
    pub fn is_current(&self, turn: Turn) -> bool {
        self.current.is_some_and(|(current, _)| current == turn)
    }

    /// `turn` ended.
    pub fn end(&mut self, turn: Turn) {
        self.current = self.current.filter(|(current, _)| *current != turn);
    }

    /// The session is gone: whoever comes next knows nothing of the current turn. What is to be
    /// stopped.
    pub fn abandon(&mut self) -> Option<Turn> {
        self.current.take().map(|(turn, _)| turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{Epoch, JobId};

    fn run(job: u64) -> RunId {
        RunId { job: JobId(job), epoch: Epoch(0) }
    }

    #[test]
    fn one_run_at_a_time() {
        let mut duty = Duty::default();
        let turn = duty.start(run(1)).unwrap();
        let fault = duty.start(run(2)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Protocol);
        assert!(duty.is_current(turn));
        duty.end(turn);
        assert!(duty.start(run(2)).is_ok());
    }

    #[test]
    fn an_abort_is_for_its_run_alone() {
        let mut duty = Duty::default();
        let turn = duty.start(run(1)).unwrap();
        assert_eq!(duty.abort(run(2)), None);
        assert_eq!(duty.abort(run(1)), Some(turn));
        duty.end(turn);
        assert_eq!(duty.abort(run(1)), None);
    }

    #[test]
    fn a_turn_of_a_lost_session_is_not_the_next_ones_though_their_runs_are_called_the_same() {
        let mut duty = Duty::default();
        let old = duty.start(run(1)).unwrap();
        assert_eq!(duty.abandon(), Some(old));
        let new = duty.start(run(1)).unwrap();
        assert!(!duty.is_current(old));
        duty.end(old);
        assert!(duty.is_current(new));
    }
}
