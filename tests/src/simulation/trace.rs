//! What happened, in lines, for a seed that fails or is replayed.

use super::Packet;
use crate::network::Signal;
use protocol::message::{ToCoordinator, ToWorker};
use std::collections::VecDeque;
use std::time::Duration;

/// How many events are told of a failure.
const TOLD: usize = 60;

/// The last events, if anyone wants to know.
#[derive(Debug, Default)]
pub struct Trace {
    lines: Option<VecDeque<String>>,
    all: bool,
}

impl Trace {
    /// One that is wanted: `all` of it, or the last of it.
    #[must_use]
    pub fn telling(all: bool) -> Self {
        Self { lines: Some(VecDeque::new()), all }
    }

    /// What was taken down.
    pub fn take(&mut self) -> Vec<String> {
        self.lines.take().unwrap_or_default().into()
    }

    /// Takes a line down, which is made only if it is wanted. An empty one is none.
    pub fn note(&mut self, now: Duration, line: impl FnOnce() -> String) {
        let Some(lines) = &mut self.lines else { return };
        let line = line();
        if line.is_empty() {
            return;
        }
        if lines.len() >= TOLD && !self.all {
            lines.pop_front();
        }
        lines.push_back(format!("{:>10.4} {line}", now.as_secs_f64()));
    }
}

/// What came, in a line.
pub(super) fn shown(signal: &Signal<Packet>) -> String {
    match signal {
        Signal::Closed => "closed".to_owned(),
        Signal::Message(Packet::Value(value)) => {
            format!("value of {} site {} call {}", value.run, value.site, value.call)
        }
        Signal::Message(Packet::Order(order, _)) => match &**order {
            ToWorker::Start { plan, rank, .. } => format!("start {} {rank}", plan.run),
            order => format!("{order:?}"),
        },
        Signal::Message(Packet::Report(report, _)) => match &**report {
            ToCoordinator::Stepped { run, call, .. } => format!("stepped {run} call {call}"),
            report => format!("{report:?}"),
        },
        Signal::Message(Packet::Join(_)) => "join".to_owned(),
        Signal::Message(Packet::Tell(..)) => String::new(),
        Signal::Message(packet) => format!("{packet:?}"),
    }
}
