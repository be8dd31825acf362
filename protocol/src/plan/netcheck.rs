//! A plan that renders nothing: its ranks exchange values of known sizes to measure their links.

use super::{Ask, Band, Branch, Fabric, Geometry, Member, Plan, SiteSpec, Stage};
use crate::id::{RunId, Site};
use crate::job::{Decode, GnVariance, JobSpec, Mode, Parallelism, Scheduler, Warmup, Wire};
use serde::{Deserialize, Serialize};

/// The site whose values are as small as any: their way takes the latency.
pub const SMALL: Site = Site(0);
/// Bytes of a large value: keys and values of one layer for a band of SDXL at 1024x1024.
pub const LARGE_BYTES: u32 = 1 << 20;
/// Large values a call, so that all kinds of links have several under way.
pub const LARGE_SITES: u16 = 8;

/// What was measured of the link between two ranks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkFigures {
    /// From a post to its landing, of a value of few bytes, in microseconds.
    pub latency_us: f64,
    /// Bytes a second that landed while as many were sent.
    pub bytes_per_second: f64,
}

/// The exchange points of a [`plan`].
#[must_use]
pub fn sites() -> Vec<SiteSpec> {
    let site = |bytes: u32| SiteSpec {
        path: "netcheck".to_owned(),
        ask: Ask::Moments { groups: bytes / 8 },
        stage: Stage::Denoise,
        channels: 1,
        halvings: 0,
    };
    let large = (0..LARGE_SITES).map(|_| site(LARGE_BYTES));
    std::iter::once(site(8)).chain(large).collect()
}

/// A plan in which all `members` exchange with each other over `fabrics`; what they are to compute
/// of an image is not looked at.
#[must_use]
pub fn plan(run: RunId, members: Vec<Member>, fabrics: Vec<Fabric>) -> Plan {
    let rows = u32::try_from(members.len()).unwrap_or(u32::MAX);
    let members = (0..).zip(members).map(|(top, member)| {
        let band = Band { top, rows: 1 };
        Member { branch: Branch::Whole, band, decodes: band, ..member }
    });
    let spec = JobSpec {
        prompt: String::new(),
        negative: None,
        width: 1,
        height: rows,
        steps: 1,
        guidance: 1.0,
        seed: 0,
        scheduler: Scheduler::Ddim,
        warmup: Warmup::Calls(0),
        parallelism: Parallelism::Patch,
        mode: Mode::FullSync,
        gn_variance: GnVariance::Population,
        wire: Wire::F32,
        decode: Decode::Whole,
        probe: false,
        profile: false,
        loras: Vec::new(),
        init: None,
    };
    let geometry = Geometry { rows, columns: 1, channels: 1, row_unit: 1, vae_factor: 1 };
    Plan { run, spec, geometry, members: members.collect(), fabrics, broken: Vec::new() }
}
