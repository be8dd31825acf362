//! The messages of the control connection and of the links between workers.
//!
//! Every frame is one message and, where a message says so, a payload of raw bytes: tensors are
//! never serialised. Numbers in payloads are little-endian.

mod control;
mod event;
mod peer;
mod profile;
mod trace;
mod view;

pub use control::{
    Enrolment, FromClient, Greeting, Hello, Join, MeasuredLink, Pulse, Resume, Role, ToClient,
    ToCoordinator, ToWorker,
};
pub use event::{Event, Phase, SiteReport};
pub use peer::{DataHead, PeerAnswer, PeerHello};
pub use profile::{Profile, Span, Work};
pub use trace::{JobTrace, PartTrace, RunTrace};
pub use view::{
    BandView, ClusterView, JobRecord, JobResult, JobStage, JobView, LinkView, PairView, Part,
    RecoveryView, Traffic, WaitView, WorkerView,
};
