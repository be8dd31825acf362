//! What happens to a job.

use super::view::{BandView, RecoveryView, WaitView};
use super::{JobTrace, Profile};
use crate::fault::Fault;
use crate::job::{JobSpec, PreviewMap};
use crate::plan::{Geometry, SiteSpec};
use crate::version;
use serde::{Deserialize, Serialize};

/// What happens to a job, in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// It moved up in the queue, or waits for workers.
    Queued {
        /// Jobs before it.
        ahead: u32,
        /// Workers that are there, of those it needs.
        workers: u32,
        /// Workers it needs.
        wanted: u32,
    },
    /// It has workers.
    Started {
        /// What is rendered, every default settled.
        spec: Box<JobSpec>,
        /// The model's name.
        model: String,
        /// The latent's shape.
        geometry: Geometry,
        /// Who renders which rows.
        bands: Vec<BandView>,
        /// Why the work is shared this way.
        reason: String,
        /// How its latents are shown before they are decoded, if its model's workers know.
        preview: Option<PreviewMap>,
    },
    /// Something the user should see.
    Notice {
        /// What to show.
        text: String,
    },
    /// The run broke off. The job goes on from its last checkpoint once there are workers for it.
    Interrupted {
        /// Why.
        fault: Fault,
        /// Model calls done.
        call: u32,
    },
    /// It goes on, with other workers or other bands.
    Resumed {
        /// What happened.
        recovery: RecoveryView,
        /// Who renders which rows now.
        bands: Vec<BandView>,
        /// Why the work is shared this way.
        reason: String,
        /// What is rendered from now on, every default settled; none is said to or by an end that does not know of it.
        #[serde(
            skip_serializing_if = "version::unknown::<10, _>",
            deserialize_with = "version::since::<10, _, _>"
        )]
        spec: Option<Box<JobSpec>>,
    },
    /// All ranks entered a phase.
    Phase {
        /// The phase.
        phase: Phase,
    },
    /// All ranks did a sampler step. Payload, if latents are streamed: the whole latent after it,
    /// f32 [channels, rows, columns].
    Step {
        /// Model calls done, from 1.
        call: u32,
        /// Model calls in all.
        calls: u32,
        /// The slowest rank's wall-clock seconds for the call.
        seconds: f64,
        /// The longest that a rank waited for peers, in seconds.
        waited: f64,
        /// Whether peers' values were one call old, or older.
        displaced: bool,
        /// How far keys and values moved since the call before, if the warm-up depends on it.
        change: Option<f32>,
    },
    /// What a rank measured of its exchange, if the job asked for it.
    Probed {
        /// The rank.
        rank: u16,
        /// Each site whose values are ever stale.
        sites: Vec<SiteReport>,
    },
    /// Where a rank's time went in a phase or a call, if the job asked for it.
    Profiled {
        /// The rank.
        rank: u16,
        /// Where it went.
        profile: Profile,
    },
    /// The image is there. Payload: RGB bytes [height, width, 3], 8 bits a channel.
    Finished {
        /// Mean wall-clock seconds per model call.
        seconds_per_step: f64,
        /// Seconds from the start of the run to the image.
        seconds: f64,
        /// What each rank waited for its peers.
        waits: Vec<WaitView>,
        /// Hex blake3 of the final latent, little-endian f32 [channels, rows, columns].
        latent: String,
        /// Model calls in which peers' values were one call old, or older.
        displaced_calls: u32,
        /// How often it broke off and went on.
        recoveries: Vec<RecoveryView>,
    },
    /// The job ended without an image.
    Failed {
        /// Why.
        fault: Fault,
    },
    /// When its ranks did what: kept with a job that ended, and told to those who ask
    /// ([`Part::Trace`](super::Part::Trace)).
    Traced {
        /// What is known of it.
        trace: JobTrace,
    },
}

/// What a rank measured at an exchange point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteReport {
    /// The exchange point.
    pub site: SiteSpec,
    /// Bytes the rank posted for it in all calls, to all peers.
    pub bytes: u64,
    /// How far what it sends had moved in each call from the second on, since the call before: the
    /// relative L2 distance of the stale values to the fresh ones.
    pub distances: Vec<f32>,
}

/// The phases of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Prompts become embeddings.
    TextEncoding,
    /// The sampler's steps.
    Denoising,
    /// The latent becomes pixels.
    Decoding,
}
