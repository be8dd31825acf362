//! The messages of the control connection and of the links between workers.
//!
//! Every frame is one message and, where a message says so, a payload of raw bytes: tensors are
//! never serialised. Numbers in payloads are little-endian.

mod control;
mod peer;
mod profile;

pub use control::{
    BandView, ClusterView, Enrolment, Event, FromClient, Greeting, Hello, JobView, Join, LinkView,
    MeasuredLink, PairView, Phase, Role, SiteReport, ToClient, ToCoordinator, ToWorker, WaitView,
    WorkerView,
};
pub use peer::{DataHead, PeerAnswer, PeerHello};
pub use profile::{Profile, Span, Work};
