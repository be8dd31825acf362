//! Images that are rendered to be measured, not to be kept.

use crate::client::{ClientError, Destination, Submission};
use bytes::Bytes;
use protocol::job::{JobRequest, JobSpec};
use protocol::message::{Event, SiteReport, WaitView};
use std::io::{self, Write as _};

/// Letters of the prompt that a title has room for.
const PROMPT_SHOWN: usize = 24;

/// One image, and what is known of how it was rendered.
#[derive(Debug, Default)]
pub(super) struct Rendered {
    pub(super) spec: Option<(JobSpec, String)>,
    pub(super) workers: usize,
    pub(super) reports: Vec<Vec<SiteReport>>,
    pub(super) displaced: Vec<bool>,
    /// Of all calls: their time, and what of it the worker that waited longest waited for its peers.
    seconds: f64,
    waited: f64,
    pub(super) seconds_per_step: f64,
    pub(super) waits: Vec<WaitView>,
    pub(super) pixels: Bytes,
}

/// Has an image rendered.
pub(super) async fn render(
    what: &str,
    request: JobRequest,
    to: &Destination,
) -> anyhow::Result<Rendered> {
    // Nobody need read it: what counts goes to standard output.
    writeln!(io::stderr(), "rendering: {what}").ok();
    let mut submission = Submission::new(to, request).await?;
    let mut rendered = Rendered::default();
    loop {
        let (event, payload) = submission.next().await?;
        match event {
            Event::Started { spec, model, bands, .. } => {
                rendered.spec = Some((*spec, model));
                rendered.workers = bands.len();
            }
            Event::Step { displaced, seconds, waited, .. } => {
                rendered.displaced.push(displaced);
                rendered.seconds += seconds;
                rendered.waited += waited;
            }
            Event::Probed { sites, .. } => rendered.reports.push(sites),
            Event::Failed { fault } => return Err(ClientError::Refused(fault).into()),
            Event::Finished { seconds_per_step, waits, .. } => {
                (rendered.seconds_per_step, rendered.waits) = (seconds_per_step, waits);
                rendered.pixels = payload;
                return Ok(rendered);
            }
            _ => {}
        }
    }
}

impl Rendered {
    /// What it is an image of, and how it was sampled.
    pub(super) fn title(&self) -> String {
        let Some((spec, model)) = &self.spec else { return String::new() };
        let mut prompt: String = spec.prompt.chars().take(PROMPT_SHOWN).collect();
        if prompt.len() < spec.prompt.len() {
            prompt += "...";
        }
        format!(
            "{model}, \"{prompt}\", {}x{}, {} steps of {}, guidance {}, seed {}, warm-up {}",
            spec.width,
            spec.height,
            spec.steps,
            spec.scheduler,
            spec.guidance,
            spec.seed,
            spec.warmup
        )
    }

    /// Bytes a worker posted in a call: the mean over workers and calls.
    #[expect(clippy::cast_precision_loss, reason = "byte counts far below 2^52")]
    pub(super) fn bytes_per_call(&self) -> f64 {
        let posted: u64 = self.waits.iter().map(|wait| wait.posted_bytes).sum();
        posted as f64 / (self.workers * self.displaced.len()).max(1) as f64
    }

    /// The part of a call's time that the worker that waited longest waited for its peers.
    pub(super) fn exposed(&self) -> f64 {
        self.waited / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// The most memory that was resident in any worker.
    pub(super) fn peak_bytes(&self) -> u64 {
        self.waits.iter().map(|wait| wait.peak_bytes).max().unwrap_or(0)
    }
}
