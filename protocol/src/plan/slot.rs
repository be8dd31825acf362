//! Sites and slots: what every pair of ranks exchanges, known before the run starts.
//!
//! The model lists its exchange points; with a plan's bands that gives every slot's size. Both
//! ends of a link compute the same table and compare its [`Digest`] before any value crosses.

use super::nccl::{self, COMMUNICATOR_ID_BYTES};
use super::{Axis, Band, Plan};
use crate::Version;
use crate::id::{Rank, Site, Slot};
use crate::job::{Decode, Wire};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a layer asks for that its own rows cannot answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ask {
    /// `rows` rows of the layer's input above and below the band, from the neighbours.
    Halo {
        /// Rows on either side.
        rows: u32,
    },
    /// Mean and sum of squared deviations of each group, from all ranks.
    Moments {
        /// Normalisation groups.
        groups: u32,
    },
    /// Keys and values of all tokens, from all ranks.
    Gather,
    /// The other branch's prediction of the own band's rows, from the ranks that have them.
    Prediction,
    /// The predictions of all other ranks' strips, in a naive plan.
    Strip(Axis),
    /// The receiver's part of the sender's summand of a layer's result, in a tensor plan.
    Summand,
    /// The sender's part of the sum, which follows from all ranks' summands, in a tensor plan.
    Sum,
    /// How far the sender's keys and values moved since the call before, if the warm-up depends on it.
    Change,
    /// The latent rows to decode, from the ranks that report them, if they are not all of the own
    /// band.
    Latent,
    /// How the ranks of a group find each other, and leave, that exchange by NCCL.
    Communicator,
}

/// What crosses between ranks, as figures tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Rows on either side of a band.
    Halo,
    /// Group statistics.
    Moments,
    /// Keys and values.
    KeysValues,
    /// Predictions of rows, or of strips.
    Prediction,
    /// Parts of sums.
    Sum,
    /// What keeps a run together: changes, latents, communicators.
    Other,
}

impl Kind {
    /// Every kind.
    pub const ALL: &[Self] =
        &[Self::Halo, Self::Moments, Self::KeysValues, Self::Prediction, Self::Sum, Self::Other];

    /// The name in figures.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Halo => "halo",
            Self::Moments => "moments",
            Self::KeysValues => "keys_values",
            Self::Prediction => "prediction",
            Self::Sum => "sum",
            Self::Other => "other",
        }
    }
}

impl Ask {
    /// What crosses for it.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Halo { .. } => Kind::Halo,
            Self::Moments { .. } => Kind::Moments,
            Self::Gather => Kind::KeysValues,
            Self::Prediction | Self::Strip(_) => Kind::Prediction,
            Self::Summand | Self::Sum => Kind::Sum,
            Self::Change | Self::Latent | Self::Communicator => Kind::Other,
        }
    }
}

/// Which part of a run a site belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    /// The UNet: among the ranks of a branch; displaced after the warm-up.
    Denoise,
    /// The UNet's first convolution: as [`Stage::Denoise`], but never displaced.
    Input,
    /// Between the UNet and the sampler, or the sampler and the decoder: always synchronous.
    Latent,
    /// The VAE decoder: among all ranks, always synchronous.
    Decode,
    /// Between the halves of the VAE decoder, if the second is computed tile by tile: as
    /// [`Stage::Decode`].
    Tiles,
}

/// An exchange point of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SiteSpec {
    /// The layer's path in the checkpoint.
    pub path: String,
    /// What it asks for.
    pub ask: Ask,
    /// When it asks.
    pub stage: Stage,
    /// Values per pixel or token of what is exchanged.
    pub channels: u32,
    /// Rows and columns here are those of the latent, halved this often (negative: doubled).
    pub halvings: i8,
}

impl Stage {
    /// Whether all ranks answer, for it is a part of the decode.
    #[must_use]
    pub fn is_decode(self) -> bool {
        matches!(self, Self::Decode | Self::Tiles)
    }
}

impl SiteSpec {
    /// The type its values cross in, in a job that chose `wire`: what is large may be rounded, what is
    /// small or feeds the sampler or the decoder is not.
    #[must_use]
    pub fn wire(&self, wire: Wire) -> Wire {
        let large = self.ask == Ask::Gather && self.stage == Stage::Denoise;
        if large { wire } else { Wire::F32 }
    }

    /// `latent` rows or columns at this site's resolution.
    #[must_use]
    pub fn scaled(&self, latent: u32) -> u32 {
        let shift = u32::from(self.halvings.unsigned_abs());
        if self.halvings >= 0 { latent >> shift } else { latent << shift }
    }
}

/// One slot of a table: the values that one rank sends another for one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlotSpec {
    /// Its sender and site.
    pub slot: Slot,
    /// The rank that receives it.
    pub to: Rank,
    /// Its size: every version has exactly this many bytes.
    pub bytes: usize,
}

/// Every slot that one rank sends or receives over links in a run. What crosses by NCCL is in
/// [`Collectives`](super::Collectives).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotTable {
    /// Whose it is.
    pub rank: Rank,
    /// What it posts, by site, then by receiver.
    pub posts: Vec<SlotSpec>,
    /// What lands on it, by site, then by sender.
    pub lands: Vec<SlotSpec>,
}

impl SlotTable {
    /// The table of `rank` in `plan` for a model with these `sites`.
    #[must_use]
    pub fn new(plan: &Plan, sites: &[SiteSpec], rank: Rank) -> Self {
        let mut table = Self { rank, posts: Vec::new(), lands: Vec::new() };
        let near = plan.nccl_group(rank);
        for (number, spec) in sites.iter().enumerate() {
            let Ok(number) = u16::try_from(number) else { break };
            let site = Site(number);
            let slot = |from, to| {
                let bytes = bytes(plan, spec, from, to)?;
                Some(SlotSpec { slot: Slot { from, site }, to, bytes })
            };
            let linked = |peer: &Rank| !(nccl::carries(spec) && near.contains(peer));
            for peer in plan.ranks().filter(|peer| *peer != rank).filter(linked) {
                table.posts.extend(slot(rank, peer));
                table.lands.extend(slot(peer, rank));
            }
        }
        table
    }

    /// Bytes of everything that lands in one call of `stage`.
    #[must_use]
    pub fn landing_bytes(&self, sites: &[SiteSpec], stage: Stage) -> usize {
        self.lands
            .iter()
            .filter(|spec| sites[usize::from(spec.slot.site.0)].stage == stage)
            .map(|spec| spec.bytes)
            .sum()
    }
}

/// Rows of the latent that `from` sends `to` for sites that carry whole rows of it.
///
/// Both are rows of the image: those of `to`'s band for [`Ask::Prediction`], those that `to`
/// decodes for [`Ask::Latent`].
#[must_use]
pub fn rows_sent(plan: &Plan, ask: Ask, from: Rank, to: Rank) -> Option<Band> {
    let (sender, receiver) = (plan.member(from)?, plan.member(to)?);
    match ask {
        Ask::Prediction if !plan.is_naive() && sender.branch != receiver.branch => {
            let both = sender.band.overlap(receiver.band);
            // Where each rank of a branch has all rows, each sends them to its counterparts alone.
            let (place, ranks) = plan.place_in_branch(from)?;
            let counterpart = plan.place_in_branch(to)?.0 % ranks == place;
            both.filter(|_| plan.spec.parallelism.has_bands() || counterpart)
        }
        Ask::Latent if plan.reports(from) && !receiver.has_what_it_decodes() => {
            sender.band.overlap(receiver.decodes)
        }
        _ => None,
    }
}

/// Bytes that `from` sends `to` in a call of the site; None if it never sends any.
pub(super) fn bytes(plan: &Plan, spec: &SiteSpec, from: Rank, to: Rank) -> Option<usize> {
    Some(values(plan, spec, from, to)? * spec.wire(plan.spec.wire).bytes())
}

/// Values that `from` sends `to` in a call of the site; None if it never sends any.
fn values(plan: &Plan, spec: &SiteSpec, from: Rank, to: Rank) -> Option<usize> {
    let (sender, receiver) = (plan.member(from)?, plan.member(to)?);
    if spec.stage == Stage::Tiles && plan.spec.decode != Decode::Tiled {
        return None;
    }
    let decodes = spec.stage.is_decode();
    let branch = sender.branch == receiver.branch;
    let together = decodes || branch && plan.spec.parallelism.has_bands();
    let row = to_usize(spec.scaled(plan.geometry.columns)) * to_usize(spec.channels);
    let batch = if decodes { 1 } else { to_usize(plan.batch(from)) };
    match spec.ask {
        // Branches are ranks in a row, so that neighbours of one are neighbours in rank.
        Ask::Halo { rows } => {
            let neighbours = together && from.0.abs_diff(to.0) == 1;
            neighbours.then(|| batch * to_usize(rows) * row)
        }
        Ask::Moments { groups } => together.then(|| batch * 2 * to_usize(groups)),
        Ask::Gather => {
            let band = if decodes { sender.decodes } else { sender.band };
            together.then(|| batch * to_usize(spec.scaled(band.rows)) * row)
        }
        Ask::Strip(axis) if plan.is_naive() => {
            let across = match axis {
                Axis::Rows => plan.geometry.columns,
                Axis::Columns => plan.geometry.rows,
            };
            let pixels = to_usize(across) * to_usize(plan.strip_along(axis, from)?.range.rows);
            Some(batch * pixels * to_usize(spec.channels))
        }
        Ask::Strip(_) => None,
        Ask::Summand | Ask::Sum if branch && !decodes => {
            let whole = batch * to_usize(spec.scaled(plan.geometry.rows)) * row;
            let part = if spec.ask == Ask::Sum { from } else { to };
            Some(plan.shard(part)?.range(whole).len())
        }
        Ask::Summand | Ask::Sum => None,
        Ask::Change => (plan.adapts(from) && plan.adapts(to)).then_some(1),
        Ask::Communicator => {
            let id = COMMUNICATOR_ID_BYTES / spec.wire(plan.spec.wire).bytes();
            plan.nccl_group(from).contains(&to).then_some(id)
        }
        Ask::Prediction | Ask::Latent => {
            rows_sent(plan, spec.ask, from, to).map(|band| to_usize(band.rows) * row)
        }
    }
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).expect("this program needs at least 32-bit addresses")
}

/// A fingerprint of a plan and of the model's sites: ranks whose digests differ would wait for
/// each other's slots in vain, so they refuse to start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `plan` rendered by a model with these `sites`.
    #[must_use]
    pub fn new(plan: &Plan, sites: &[SiteSpec]) -> Self {
        // As ranks of the release before know them.
        let bytes = Version::OLDEST
            .speak(|| bincode::serde::encode_to_vec((plan, sites), bincode::config::standard()))
            .expect("plans and sites hold nothing that bincode cannot encode");
        Self(*blake3::hash(&bytes).as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}
