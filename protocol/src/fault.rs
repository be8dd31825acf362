//! Why something was refused or failed, as it crosses the wire.

use crate::id::{Call, Rank};
use crate::job::Field;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What went wrong. Programs match on `kind`; `cause` is for people and is never parsed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct Fault {
    /// The kind of failure.
    pub kind: FaultKind,
    /// The rank it happened on, where one is known.
    pub rank: Option<Rank>,
    /// The model call it happened in, where one is known.
    pub call: Option<Call>,
    /// The other end, where a link broke.
    pub peer: Option<Rank>,
    /// What of the request it is about, if that is one thing.
    pub field: Option<Field>,
    /// What a person needs to know: the thing, the value, and what to do.
    pub cause: String,
}

/// The kinds of [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The request cannot be rendered as asked (size, option, model).
    InvalidRequest,
    /// The two processes are of releases that do not understand each other.
    VersionMismatch,
    /// A worker holds another model than the cluster.
    ModelMismatch,
    /// Too few workers are there for the job.
    NoWorkers,
    /// The queue is full: try again later.
    QueueFull,
    /// A worker went away or stopped answering.
    WorkerLost,
    /// A data link between two ranks broke.
    PeerLost,
    /// Ranks disagree about the plan.
    PlanMismatch,
    /// The coordinator shares the work anew: a worker leaves, or is slower than planned.
    Replanned,
    /// The computation failed on a worker.
    Compute,
    /// What must be kept cannot be: the coordinator's disk is full, or broken.
    Storage,
    /// Someone asked for the job to end.
    Cancelled,
    /// A peer broke the protocol.
    Protocol,
    /// The coordinator is going away.
    ShuttingDown,
    /// The caller is nobody who may do this: no identity, or a wrong, expired or revoked one.
    Unauthorised,
    /// No such job is known.
    UnknownJob,
    /// The job has ended, or the same name was given to another one: it cannot be done any more.
    Conflict,
}

impl Fault {
    /// A fault that no rank, call or field is known for.
    pub fn new(kind: FaultKind, cause: impl Into<String>) -> Self {
        Self { kind, rank: None, call: None, peer: None, field: None, cause: cause.into() }
    }

    /// The same fault, on `rank`.
    #[must_use]
    pub fn on(mut self, rank: Rank) -> Self {
        self.rank = Some(rank);
        self
    }

    /// The same fault, of the link to `peer`.
    #[must_use]
    pub fn with(mut self, peer: Rank) -> Self {
        self.peer = Some(peer);
        self
    }

    /// The same fault, about this of the request.
    #[must_use]
    pub fn about(mut self, field: Field) -> Self {
        self.field = Some(field);
        self
    }

    /// The same fault, in `call`.
    #[must_use]
    pub fn during(mut self, call: Call) -> Self {
        self.call = Some(call);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)?;
        match (self.rank, self.call) {
            (Some(rank), Some(call)) => write!(f, " ({rank}, {call})"),
            (Some(rank), None) => write!(f, " ({rank})"),
            (None, Some(call)) => write!(f, " ({call})"),
            (None, None) => Ok(()),
        }
    }
}
