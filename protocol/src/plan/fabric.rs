//! Over what each pair of ranks exchanges: the nearest fabric that both have.

use crate::job::UnknownName;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A way for values to get from one worker to another, nearest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fabric {
    /// NCCL, between GPUs of one machine.
    Nccl,
    /// Memory that both processes map.
    Shm,
    /// RDMA verbs: InfiniBand or RoCE.
    Rdma,
    /// QUIC, over UDP.
    Quic,
    /// TCP.
    Tcp,
}

impl Fabric {
    /// Every fabric, nearest first.
    pub const ALL: &[Self] = &[Self::Nccl, Self::Shm, Self::Rdma, Self::Quic, Self::Tcp];

    /// The name on the command line and on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nccl => "nccl",
            Self::Shm => "shm",
            Self::Rdma => "rdma",
            Self::Quic => "quic",
            Self::Tcp => "tcp",
        }
    }
}

impl fmt::Display for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fabric {
    type Err = UnknownName;

    fn from_str(value: &str) -> Result<Self, UnknownName> {
        Self::ALL.iter().copied().find(|fabric| fabric.name() == value).ok_or_else(|| UnknownName {
            what: "fabric",
            value: value.to_owned(),
            supported: "nccl shm rdma quic tcp".to_owned(),
        })
    }
}
