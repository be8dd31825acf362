//! What crosses by NCCL: the values of the denoising network's layers, between GPUs of one machine whose
//! ranks compute one branch. All else, and all other pairs, have links.
//!
//! NCCL is not a link: its ranks do the same operations in the same order. Each rank derives them from the
//! plan, one for each site, and does them when its model asks there: the model, and so the order, is the
//! same on all. Invariants, cited by tests:
//! - **N-1 once**: a value between ranks of a group is in exactly one operation, and in no link's table.
//! - **N-2 alike**: all ranks of a group have the same operations; what one sends, its peer receives.

use super::{Ask, Fabric, Plan, SiteSpec, Stage, slot};
use crate::id::{Rank, Site};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of the number by which the ranks of a communicator find each other: NCCL's `ncclUniqueId`.
pub const COMMUNICATOR_ID_BYTES: usize = 128;

/// A GPU of which NCCL makes a rank.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NcclDevice {
    /// The machine, as NCCL tells machines apart.
    pub host: String,
    /// The GPU, by what its driver calls it in every process.
    pub gpu: String,
    /// NCCL's version, in its own numbering: 22803 is 2.28.3.
    pub version: u32,
}

impl NcclDevice {
    /// Whether both can be ranks of one communicator: two processes on one GPU cannot.
    #[must_use]
    pub fn reaches(&self, other: &Self) -> bool {
        self.is_beside(other) && self.gpu != other.gpu
    }

    fn is_beside(&self, other: &Self) -> bool {
        self.host == other.host && self.version == other.version
    }
}

impl Plan {
    /// The ranks that exchange with `rank` by NCCL, itself included, from the top of the image to its bottom:
    /// those of its branch on GPUs of its machine. Empty if there is no other.
    #[must_use]
    pub fn nccl_group(&self, rank: Rank) -> Vec<Rank> {
        let allowed = self.fabrics.is_empty() || self.fabrics.contains(&Fabric::Nccl);
        let own = self.nccl_device(rank);
        let Some(own) = own.filter(|_| allowed && self.spec.parallelism.has_bands()) else {
            return Vec::new();
        };
        let mut gpus = Vec::new();
        let mut group = Vec::new();
        for peer in self.branch_of(rank) {
            let beside = self.nccl_device(peer).filter(|device| device.is_beside(own));
            if let Some(device) = beside.filter(|device| !gpus.contains(&&device.gpu)) {
                gpus.push(&device.gpu);
                group.push(peer);
            }
        }
        if group.len() > 1 && group.contains(&rank) { group } else { Vec::new() }
    }

    fn nccl_device(&self, rank: Rank) -> Option<&NcclDevice> {
        self.member(rank)?.offers.iter().find_map(|offer| offer.nccl())
    }
}

/// Whether values for `site` cross by NCCL between ranks of a group.
pub(super) fn carries(site: &SiteSpec) -> bool {
    let exchanged = matches!(site.ask, Ask::Halo { .. } | Ask::Moments { .. } | Ask::Gather);
    exchanged && matches!(site.stage, Stage::Denoise | Stage::Input)
}

/// What the ranks of a group do together, by site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collectives {
    /// The group; a rank's place in it is its rank in the communicator.
    pub ranks: Vec<Rank>,
    operations: BTreeMap<Site, Operation>,
}

impl Collectives {
    /// Those of the group of `rank` in `plan`, for a model with these `sites`. None: it is in no group.
    #[must_use]
    pub fn new(plan: &Plan, sites: &[SiteSpec], rank: Rank) -> Option<Self> {
        let ranks = plan.nccl_group(rank);
        if ranks.is_empty() {
            return None;
        }
        let numbered = (0..).map(Site).zip(sites).filter(|(_, spec)| carries(spec));
        let operations =
            numbered.filter_map(|(site, spec)| Some((site, operation(plan, spec, &ranks)?)));
        Some(Self { operations: operations.collect(), ranks })
    }

    /// The place of `rank`, if it is in the group.
    #[must_use]
    pub fn place(&self, rank: Rank) -> Option<usize> {
        self.ranks.iter().position(|member| *member == rank)
    }

    /// What is done for `site`. None: nothing crosses there.
    #[must_use]
    pub fn operation(&self, site: Site) -> Option<&Operation> {
        self.operations.get(&site)
    }
}

fn operation(plan: &Plan, spec: &SiteSpec, ranks: &[Rank]) -> Option<Operation> {
    let bytes = |from, to| slot::bytes(plan, spec, from, to);
    if let Ask::Halo { .. } = spec.ask {
        let neighbours =
            (1..ranks.len()).filter(|lower| bytes(ranks[lower - 1], ranks[*lower]).is_some());
        let uppers: Vec<usize> = neighbours.map(|lower| lower - 1).collect();
        let bytes = uppers.first().and_then(|upper| bytes(ranks[*upper], ranks[upper + 1]))?;
        return Some(Operation::Edges { uppers, bytes });
    }
    // Of each image apart, so that all parts of an image lie one after another.
    let images = match spec.ask {
        Ask::Gather => plan.batch(ranks[0]),
        _ => 1,
    };
    let images = usize::try_from(images).ok()?;
    let part = |(place, rank): (usize, &Rank)| {
        let peer = ranks[usize::from(place == 0)];
        Some(bytes(*rank, peer)? / images)
    };
    let parts = ranks.iter().enumerate().map(part).collect::<Option<_>>()?;
    Some(Operation::Gather { images, parts })
}

/// What a group does for one site in a call, and how a rank's buffer for it is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Everyone gets everyone's part of every image. A buffer holds the images one after another, each of
    /// all parts, in their order.
    Gather {
        /// Images.
        images: usize,
        /// Bytes of each rank's part of an image.
        parts: Vec<usize>,
    },
    /// Neighbours exchange their edges. A buffer holds four: the own first and last ones, then those that
    /// come from above and from below.
    Edges {
        /// The places of ranks whose neighbour below is the next.
        uppers: Vec<usize>,
        /// Bytes of an edge.
        bytes: usize,
    },
}

/// One rank's part in an operation, in its buffer. All of an operation's are one of NCCL's groups of calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Parts of equal size from everyone to everyone: the own one is already in its place among all.
    AllGather(Range<usize>),
    /// To the rank at this place.
    Send(usize, Range<usize>),
    /// From the rank at this place.
    Receive(usize, Range<usize>),
}

impl Operation {
    /// Bytes of its buffer.
    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        match self {
            Self::Gather { images, parts } => images * parts.iter().sum::<usize>(),
            Self::Edges { bytes, .. } => 4 * bytes,
        }
    }

    /// What the rank at place `own` does.
    #[must_use]
    pub fn steps(&self, own: usize) -> Vec<Step> {
        match self {
            Self::Gather { images, parts } => {
                (0..*images).flat_map(|image| gather(parts, own, image)).collect()
            }
            Self::Edges { uppers, bytes } => {
                let edge = |number: usize| number * bytes..(number + 1) * bytes;
                let above = own.checked_sub(1).filter(|above| uppers.contains(above));
                let below = uppers.contains(&own).then_some(own + 1);
                let with = |peer: Option<usize>, edges: [usize; 2]| {
                    let steps = |peer| {
                        [Step::Send(peer, edge(edges[0])), Step::Receive(peer, edge(edges[1]))]
                    };
                    peer.map(steps)
                };
                [with(above, [0, 2]), with(below, [1, 3])].into_iter().flatten().flatten().collect()
            }
        }
    }
}

fn gather(parts: &[usize], own: usize, image: usize) -> Vec<Step> {
    let whole: usize = parts.iter().sum();
    let first = image * whole;
    if parts.iter().all(|part| *part == parts[own]) {
        return vec![Step::AllGather(first..first + whole)];
    }
    let range = |place: usize| {
        let start = first + parts[..place].iter().sum::<usize>();
        start..start + parts[place]
    };
    let peers = (0..parts.len()).filter(|place| *place != own);
    peers
        .flat_map(|peer| [Step::Send(peer, range(own)), Step::Receive(peer, range(peer))])
        .collect()
}
