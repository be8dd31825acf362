//! Over what each pair of ranks exchanges: the nearest fabric that both have.
//!
//! Both ends of a pair decide for themselves, from what the members of the plan offer: the plan is the
//! same everywhere, so they agree.

use super::NcclDevice;
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

    /// Whether it makes links. NCCL does not: ranks that have it have a link beside it.
    #[must_use]
    pub fn is_link(self) -> bool {
        self != Self::Nccl
    }

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
            supported: Self::ALL.iter().map(|known| known.name()).collect::<Vec<_>>().join(" "),
        })
    }
}

/// Which memory a process can share: two processes whose values are equal can map the same files.
///
/// Containers with a `/dev/shm` each differ in `device`, as long as it is not mounted into both.
/// Virtual machines that were cloned while running may be equal and yet share nothing: opening
/// their link fails then, and says so.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SharedMemory {
    /// The kernel's boot id: another machine, or another boot, has another one.
    pub boot: String,
    /// The device number of `/dev/shm`: every mount of its own has another one.
    pub device: u64,
    /// The effective user id: regions belong to one user.
    pub user: u32,
}

/// What a worker offers its peers of one fabric, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offer {
    /// A GPU, to those of its machine.
    Nccl(NcclDevice),
    /// Memory of its machine.
    Shm(SharedMemory),
    /// A port of an RDMA device; InfiniBand and RoCE do not reach each other.
    Rdma {
        /// Whether its link layer is Ethernet.
        roce: bool,
    },
    /// QUIC on this UDP port of its address.
    Quic {
        /// The port.
        port: u16,
    },
    /// TCP at its address.
    Tcp,
}

impl Offer {
    /// The fabric.
    #[must_use]
    pub fn fabric(&self) -> Fabric {
        match self {
            Self::Nccl(_) => Fabric::Nccl,
            Self::Shm(_) => Fabric::Shm,
            Self::Rdma { .. } => Fabric::Rdma,
            Self::Quic { .. } => Fabric::Quic,
            Self::Tcp => Fabric::Tcp,
        }
    }

    /// The GPU, if it is one.
    #[must_use]
    pub(super) fn nccl(&self) -> Option<&NcclDevice> {
        match self {
            Self::Nccl(device) => Some(device),
            _ => None,
        }
    }

    /// Whether values can cross between who offers this and who offers `other`.
    #[must_use]
    pub fn reaches(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Nccl(own), Self::Nccl(theirs)) => own.reaches(theirs),
            (Self::Shm(own), Self::Shm(theirs)) => own == theirs,
            (Self::Rdma { roce }, Self::Rdma { roce: theirs }) => roce == theirs,
            (Self::Quic { .. }, Self::Quic { .. }) | (Self::Tcp, Self::Tcp) => true,
            _ => false,
        }
    }
}

/// A fabric that a worker does not offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lack {
    /// The fabric.
    pub fabric: Fabric,
    /// Why not, and what would change that.
    pub cause: String,
}

/// The fabrics that two workers with these offers share, nearest first.
#[must_use]
pub fn shared(one: &[Offer], other: &[Offer]) -> Vec<Fabric> {
    let reaches = |fabric: &Fabric| {
        let of =
            |offers: &'_ [Offer]| offers.iter().find(|offer| offer.fabric() == *fabric).cloned();
        of(one).zip(of(other)).is_some_and(|(own, theirs)| own.reaches(&theirs))
    };
    Fabric::ALL.iter().copied().filter(reaches).collect()
}

/// The nearest fabric of `allowed` that two workers share; none allowed means all.
#[must_use]
pub fn nearest(one: &[Offer], other: &[Offer], allowed: &[Fabric]) -> Option<Fabric> {
    let fabrics = shared(one, other);
    fabrics.into_iter().find(|fabric| allowed.is_empty() || allowed.contains(fabric))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(boot: &str) -> Offer {
        Offer::Shm(SharedMemory { boot: boot.to_owned(), device: 1, user: 0 })
    }

    #[test]
    fn the_nearest_fabric_that_both_have_is_taken() {
        let near = [Offer::Tcp, Offer::Quic { port: 1 }, memory("a")];
        let same = [memory("a"), Offer::Tcp, Offer::Quic { port: 2 }];
        let far = [memory("b"), Offer::Tcp, Offer::Quic { port: 1 }];
        assert_eq!(nearest(&near, &same, &[]), Some(Fabric::Shm));
        assert_eq!(nearest(&near, &far, &[]), Some(Fabric::Quic));
        assert_eq!(nearest(&near, &[Offer::Tcp], &[]), Some(Fabric::Tcp));
        assert_eq!(nearest(&near, &[], &[]), None);
        assert_eq!(shared(&near, &same), [Fabric::Shm, Fabric::Quic, Fabric::Tcp]);
    }

    #[test]
    fn only_what_is_allowed_is_taken() {
        let both = [memory("a"), Offer::Quic { port: 1 }, Offer::Tcp];
        assert_eq!(nearest(&both, &both, &[Fabric::Tcp]), Some(Fabric::Tcp));
        assert_eq!(nearest(&both, &both, &[Fabric::Tcp, Fabric::Quic]), Some(Fabric::Quic));
        assert_eq!(nearest(&both, &both, &[Fabric::Rdma]), None);
    }

    #[test]
    fn infiniband_and_ethernet_are_apart() {
        let [roce, infiniband] = [true, false].map(|roce| [Offer::Rdma { roce }]);
        assert_eq!(nearest(&roce, &infiniband, &[]), None);
        assert_eq!(nearest(&roce, &roce, &[]), Some(Fabric::Rdma));
    }
}
