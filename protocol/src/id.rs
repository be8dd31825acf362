//! Identifiers. Each is its own type, so that a rank can never be taken for a call.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

identifier!(
    /// A job: one request for one image, from submission to its end. Unique within a coordinator.
    JobId(u64), "job-"
);
identifier!(
    /// A worker session's member number, given by the coordinator at join.
    WorkerId(u64), "worker-"
);
identifier!(
    /// A worker's place in one run: rank order is the bands' order from top to bottom.
    Rank(u16), "rank "
);
identifier!(
    /// Counts the plans made for one job. Data of an older epoch never land.
    Epoch(u32), "epoch "
);
identifier!(
    /// Counts a run's model calls from 0: UNet calls first, the VAE decode is the one after.
    Call(u32), "call "
);
identifier!(
    /// An exchange point of the model, numbered when the model is built.
    Site(u16), "site "
);

impl Rank {
    /// This rank as an index into a plan's bands.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl Call {
    /// The call before this one, if there is one.
    #[must_use]
    pub fn before(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }
}

impl RunId {
    /// The same job's next attempt.
    #[must_use]
    pub fn next(self) -> Self {
        Self { epoch: Epoch(self.epoch.0 + 1), ..self }
    }
}

/// One attempt at a job under one plan.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct RunId {
    /// The job being rendered.
    pub job: JobId,
    /// Which of the job's plans this is.
    pub epoch: Epoch,
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.job, self.epoch)
    }
}

/// A site's buffer on one peer: what `from` sends for `site`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Slot {
    /// The rank whose values the buffer holds.
    pub from: Rank,
    /// The exchange point they belong to.
    pub site: Site,
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.site, self.from)
    }
}
