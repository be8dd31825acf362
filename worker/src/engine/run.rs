//! One rank's part of one image.

use super::Run;
use super::budget;
use super::given::{self, Encoded, Files};
use super::guidance::guide;
use super::latent::{Latent, activation, band_noise, channels_first_bytes, latent, latents};
use super::staleness::Staleness;
use crate::kernels::{Arena, Needed};
use crate::memory;
use crate::model::checkpoint::{Checkpoint, TextEmbedding};
use crate::model::exchange::{Dense, Exchange};
use crate::model::noise::TorchGenerator;
use crate::model::scheduler::Scheduler;
use crate::model::tensor::{Memory, Tensor};
use crate::model::unet::{Conditioning, UNet};
use crate::model::{Error, Result};
use crate::parallel::{Displaced, Mesh, Sharded, Synchronous, naive, rows};
use crate::profile;
use bytes::{Bytes, BytesMut};
use protocol::job::{Decode, JobSpec, Parallelism};
use protocol::message::{Phase, Resume, ToCoordinator};
use protocol::plan::{Band, Branch, Geometry, Plan, Stage};
use protocol::{Call, Fault, FaultKind, Rank, RunId};
use std::borrow::Cow;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Renders this rank's band and says so; ends with exactly one of `Decoded`, `Failed`, `Aborted`.
pub fn render(checkpoint: &Checkpoint, run: Run) {
    let Run { plan, rank, resume, files, links, cancel, out } = run;
    let said = Said { run: plan.run, out };
    let mesh = Mesh::new(&plan, checkpoint.sites(), rank, links, cancel);
    let rendered = mesh.map_err(Error::Exchange).and_then(|mut mesh| {
        mesh.join(&plan, checkpoint.sites(), checkpoint.device())?;
        let checkpoint = &*given::adapted(checkpoint, &plan.spec, &files)?;
        let mut band = BandRun::new(checkpoint, &plan, rank, mesh, &said)?;
        match &resume {
            Some((resume, planes)) => band.resume(*resume, planes)?,
            None => band.begin(&files)?,
        }
        band.encode()
            .and_then(|conditioning| {
                band.denoise(&conditioning)?;
                band.report_probe();
                band.decode()
            })
            .map_err(|error| band.locate(error))
    });
    match rendered {
        Ok(()) => {}
        Err(Error::Exchange(fault)) if fault.kind == FaultKind::Cancelled => {
            said.say(ToCoordinator::Aborted { run: plan.run }, Bytes::new());
        }
        Err(error) => {
            let fault = fault(error, rank);
            tracing::warn!(call = fault.call.map(|call| call.0), "failed: {}", fault.cause);
            let failed = ToCoordinator::Failed { run: plan.run, fault, unopened: Vec::new() };
            said.say(failed, Bytes::new());
        }
    }
}

fn fault(error: Error, rank: Rank) -> Fault {
    let mut fault = match error {
        Error::Exchange(fault) => fault,
        Error::Checkpoint(cause) => Fault::new(FaultKind::Compute, cause),
        Error::Refused(cause) => Fault::new(FaultKind::InvalidRequest, cause),
        Error::Shape(cause) => Fault::new(FaultKind::Compute, cause),
        Error::Tensor(error) => Fault::new(FaultKind::Compute, error.to_string()),
    };
    fault.rank = fault.rank.or(Some(rank));
    fault
}

/// Where a run's messages go.
struct Said {
    run: RunId,
    out: UnboundedSender<(ToCoordinator, Bytes)>,
}

impl Said {
    /// A session that is gone cancels the run through its own channel: nothing to do about it here.
    fn say(&self, message: ToCoordinator, payload: Bytes) {
        self.out.send((message, payload)).ok();
    }
}

/// The state of one rank in one run.
struct BandRun<'a> {
    checkpoint: &'a Checkpoint,
    unet: Cow<'a, UNet>,
    plan: &'a Plan,
    spec: &'a JobSpec,
    geometry: Geometry,
    branch: Branch,
    band: Band,
    rank: Rank,
    mesh: Mesh,
    scheduler: Box<dyn Scheduler>,
    generator: TorchGenerator,
    latent: Latent,
    /// What the seed drew before the latent's noise, if a picture's latent is drawn.
    drawn: Option<Latent>,
    /// Of what the network computes.
    memory: Memory,
    /// Of what is done with its results, on the host.
    arena: Arena,
    call: u32,
    staleness: Staleness,
    said: &'a Said,
}

impl<'a> BandRun<'a> {
    fn new(
        checkpoint: &'a Checkpoint,
        plan: &'a Plan,
        rank: Rank,
        mesh: Mesh,
        said: &'a Said,
    ) -> Result<Self> {
        memory::reset_peak();
        let mismatch = |cause: String| Fault::new(FaultKind::PlanMismatch, cause);
        plan.check().map_err(|error| mismatch(error.to_string()))?;
        let member =
            plan.member(rank).ok_or_else(|| mismatch(format!("the plan has no {rank}")))?;
        let steps = to_usize(plan.spec.steps);
        let scheduler = checkpoint
            .scheduler()
            .build_from(plan.spec.scheduler, steps, to_usize(plan.spec.skipped_steps()))
            .map_err(|error| Fault::new(FaultKind::InvalidRequest, error.to_string()))?;
        if let (Some(_), Some(device)) = (plan.shard(rank), checkpoint.device()) {
            let cause = format!(
                "--parallelism tensor, a baseline, is computed by processors only, but {} has joined \
                 with --device {}: leave one of them out",
                member.name,
                device.choice()
            );
            return Err(Fault::new(FaultKind::InvalidRequest, cause).into());
        }
        let unet = match plan.shard(rank) {
            Some(shard) => Cow::Owned(checkpoint.unet().of_shard(shard)),
            None => Cow::Borrowed(checkpoint.unet()),
        };
        let arena = match checkpoint.device() {
            None => planned(budget::needed(checkpoint, &unet, plan, rank)?)?,
            Some(_) => Arena::default(),
        };
        let memory =
            checkpoint.device().cloned().map_or(Memory::Host(arena.clone()), Memory::Device);
        let mut generator = TorchGenerator::new(plan.spec.seed);
        let mut noise = || band_noise(&mut generator, plan.geometry, member.band);
        let drawn = plan.spec.init.is_some().then(&mut noise).transpose()?;
        let latent = noise()?;
        Ok(Self {
            checkpoint,
            unet,
            plan,
            spec: &plan.spec,
            geometry: plan.geometry,
            branch: member.branch,
            band: member.band,
            rank,
            mesh,
            generator,
            latent,
            drawn,
            memory,
            arena,
            scheduler,
            call: 0,
            staleness: Staleness::default(),
            said,
        })
    }

    /// Makes the first latent of the noise, and of the picture if there is one.
    fn begin(&mut self, files: &Files) -> Result<()> {
        let (Some(init), Some(drawn)) = (&self.spec.init, &self.drawn) else {
            self.latent = (&self.latent * self.scheduler.init_noise_sigma())?;
            return Ok(());
        };
        let place = (self.geometry, self.band);
        let picture =
            Encoded::of(self.checkpoint, (init, files), place, &self.memory)?.drawn(drawn)?;
        let (of_picture, of_noise) = self.scheduler.noising();
        self.latent = ((picture * of_picture)? + (&self.latent * of_noise)?)?;
        Ok(())
    }

    /// Goes on where others left the image: what is there after `resume.calls` calls takes the place of
    /// the noise.
    fn resume(&mut self, resume: Resume, planes: &Bytes) -> Result<()> {
        let mismatch = |cause: String| Fault::new(FaultKind::PlanMismatch, cause);
        let all = self.scheduler.timesteps().len();
        let calls = to_usize(resume.calls);
        if calls > all {
            let cause = format!("it cannot go on after call {calls}: there are {all}");
            return Err(mismatch(cause).into());
        }
        let mut tensors =
            latents(planes, resume.history, self.geometry, self.band).map_err(mismatch)?;
        self.latent = tensors.remove(0);
        self.scheduler.resume(calls, tensors).map_err(|error| mismatch(error.to_string()))?;
        // What others drew is drawn again, so that the rest is what it would have been.
        for _ in 0..self.scheduler.draws(calls) {
            band_noise(&mut self.generator, self.geometry, self.band)?;
        }
        self.call = resume.calls;
        Ok(())
    }

    /// The error, with the call it happened in.
    fn locate(&self, error: Error) -> Error {
        match error {
            Error::Exchange(fault) if fault.call.is_none() => fault.during(Call(self.call)).into(),
            other => other,
        }
    }

    fn enter(&self, phase: Phase) {
        self.said.say(ToCoordinator::Entered { run: self.said.run, phase }, Bytes::new());
    }

    fn encode(&mut self) -> Result<Conditioning> {
        self.enter(Phase::TextEncoding);
        self.profile();
        let texts = texts(self.checkpoint, self.plan, self.branch, &self.memory)?;
        // A branch's first rank tells the user of words that were cut off.
        let first = self.plan.branch_of(self.rank).next() == Some(self.rank);
        for (what, text) in texts.iter().filter(|_| first) {
            if let Some(cut) = &text.truncated {
                let text = format!(
                    "the {what} is longer than the 77 tokens the text encoders read; cut off: \
                     \"{}\"",
                    cut.trim()
                );
                self.said.say(ToCoordinator::Notice { run: self.said.run, text }, Bytes::new());
            }
        }
        let texts: Vec<TextEmbedding> = texts.into_iter().map(|(_, text)| text).collect();
        let (width, height) = (self.spec.width, self.spec.height);
        let conditioning = self.checkpoint.condition(&self.unet, &texts, width, height)?;
        self.report_profile(Phase::TextEncoding);
        Ok(conditioning)
    }

    /// Takes down where time goes from now on, if that was asked for.
    fn profile(&self) {
        profile::begin(self.spec.profile);
    }

    /// Says where time went since then.
    fn report_profile(&self, phase: Phase) {
        if let Some(profile) = profile::end(phase, self.call, self.staleness.displaced()) {
            self.said.say(ToCoordinator::Profiled { run: self.said.run, profile }, Bytes::new());
        }
    }

    fn denoise(&mut self, conditioning: &Conditioning) -> Result<()> {
        self.enter(Phase::Denoising);
        let timesteps = self.scheduler.timesteps().to_vec();
        let calls = u32::try_from(timesteps.len()).unwrap_or(u32::MAX);
        for (index, timestep) in timesteps.into_iter().enumerate().skip(to_usize(self.call)) {
            let started = Instant::now();
            self.profile();
            self.mesh.check_cancelled()?;
            let prediction = self.predict(conditioning, index, timestep, calls)?;
            let (generator, geometry, band) = (&mut self.generator, self.geometry, self.band);
            let mut noise =
                || band_noise(generator, geometry, band).map_err(candle_core::Error::wrap);
            let prediction = latent(&prediction)?;
            self.latent = self.scheduler.step(index, &prediction, &self.latent, &mut noise)?;
            self.report_profile(Phase::Denoising);
            self.report_step(calls, started.elapsed())?;
            self.call += 1;
        }
        self.mesh.part()
    }

    /// The guided prediction of one model call.
    fn predict(
        &mut self,
        conditioning: &Conditioning,
        index: usize,
        timestep: f32,
        calls: u32,
    ) -> Result<Tensor> {
        let input = self.scheduler.scale_model_input(index, &self.latent)?;
        let host = Memory::Host(self.arena.clone());
        let input = activation(&host, &input)?;
        let input = match self.plan.batch(self.rank) {
            2 => Tensor::cat(&[&input, &input], 0)?,
            _ => input,
        };
        let call = Call(self.call);
        let both = if let Some(strip) = self.plan.strip(self.rank, call) {
            let input = naive::cut(&input, strip)?;
            let input = self.to_network(input)?;
            let prediction = self.unet.forward(&input, timestep, conditioning, &mut Dense)?;
            let prediction = self.on_host(prediction)?;
            naive::join(&mut self.mesh, self.plan, self.rank, call, &prediction)?
        } else {
            let last = self.call + 1 == calls;
            let input = self.to_network(input)?;
            let from = self.staleness.enter(self.spec, &self.mesh, call);
            let mut exchange = exchange(&mut self.mesh, self.plan, (call, last), from);
            let prediction = self.unet.forward(&input, timestep, conditioning, &mut *exchange)?;
            drop(exchange);
            self.mesh.leave()?;
            let (place, sites) = ((self.plan, self.rank), self.checkpoint.sites());
            self.staleness.leave(&mut self.mesh, place, sites, (call, last))?;
            self.mesh.settle()?;
            let prediction = self.on_host(prediction)?;
            rows::meet(&mut self.mesh, self.plan, self.rank, call, prediction)?
        };
        guide(&both, self.spec.guidance)
    }

    /// `x`, made on the host, where the network reads it.
    fn to_network(&self, x: Tensor) -> Result<Tensor> {
        match &self.memory {
            Memory::Host(_) => Ok(x),
            device @ Memory::Device(_) => Tensor::new(device, x.view(), x.shape()),
        }
    }

    /// What the network computed, on the host: the first that waits for a device in a call.
    fn on_host(&self, x: Tensor) -> Result<Tensor> {
        if x.on_device().is_none() {
            return Ok(x);
        }
        Tensor::new(&Memory::Host(self.arena.clone()), &x.to_host()?, x.shape())
    }

    /// Says what was measured at each site, if that was asked for.
    fn report_probe(&self) {
        if self.spec.probe {
            let sites = self.staleness.report(&self.mesh, self.checkpoint.sites());
            self.said.say(ToCoordinator::Probed { run: self.said.run, sites }, Bytes::new());
        }
    }

    fn report_step(&mut self, calls: u32, took: Duration) -> Result<()> {
        let spent = self.mesh.take_spent();
        let history = self.scheduler.history();
        let message = ToCoordinator::Stepped {
            run: self.said.run,
            call: self.call,
            calls,
            took_us: micros(took),
            waited_us: micros(spent.waited),
            traffic: spent.traffic,
            displaced: self.staleness.displaced(),
            change: self.staleness.change(),
            history: u8::try_from(history.len()).unwrap_or(u8::MAX),
        };
        let mut planes = BytesMut::new();
        if self.plan.reports(self.rank) {
            for tensor in std::iter::once(&self.latent).chain(&history) {
                planes.extend_from_slice(&channels_first_bytes(tensor)?);
            }
        }
        self.said.say(message, planes.freeze());
        Ok(())
    }

    fn decode(&mut self) -> Result<()> {
        self.enter(Phase::Decoding);
        self.profile();
        let started = Instant::now();
        self.mesh.check_cancelled()?;
        let (latent, call) =
            (activation(&Memory::Host(self.arena.clone()), &self.latent)?, Call(self.call));
        let latent = rows::to_decode(&mut self.mesh, self.plan, self.rank, call, &latent)?;
        let latent = self.to_network(latent)?;
        let (vae, top) = (self.checkpoint.vae(), self.plan.member(self.rank));
        let top = top.map_or(0, |member| to_usize(member.decodes.top));
        let mut exchange: Box<dyn Exchange> = if self.mesh.is_alone(Stage::Decode) {
            Box::new(Dense)
        } else {
            Box::new(Synchronous::new(&mut self.mesh, call))
        };
        let image = match self.spec.decode {
            Decode::Tiled => vae.decode_in_tiles(&latent, top, &mut *exchange)?,
            Decode::Auto | Decode::Whole => vae.decode(&latent, &mut *exchange)?,
        };
        drop(exchange);
        self.report_profile(Phase::Decoding);
        let planned = self.checkpoint.device().is_none();
        debug_assert!(!planned || self.arena.mappings() == 1, "the plan of memory fell short");
        let spent = self.mesh.take_spent();
        let pixels: Vec<u8> = image.to_host()?.iter().map(|value| to_pixel(*value)).collect();
        let message = ToCoordinator::Decoded {
            run: self.said.run,
            took_us: micros(started.elapsed()),
            waited_us: micros(spent.waited),
            peak_bytes: memory::peak_bytes(),
        };
        self.said.say(message, Bytes::from(pixels));
        Ok(())
    }
}

/// Memory for activations, as planned.
fn planned(needed: Needed) -> Result<Arena> {
    tracing::debug!(bytes = needed.arena, of_values = needed.values, "memory for activations");
    Arena::sized(needed.arena).map_err(|error| {
        let cause = format!(
            "{} MiB for the activations of this image cannot be had: {error}; render it on more \
             workers, smaller, or with --decode tiled",
            needed.arena >> 20
        );
        Fault::new(FaultKind::Compute, cause).into()
    })
}

/// How this call's layers exchange: with peers' values of the call `from`, or of this one.
fn exchange<'a>(
    mesh: &'a mut Mesh,
    plan: &Plan,
    (call, last): (Call, bool),
    from: Option<Call>,
) -> Box<dyn Exchange + 'a> {
    match from {
        _ if plan.spec.parallelism == Parallelism::Tensor => Box::new(Sharded::new(mesh, call)),
        _ if mesh.is_alone(Stage::Denoise) => Box::new(Dense),
        Some(from) => Box::new(Displaced::new(mesh, plan.spec.mode, call, from, last)),
        None => Box::new(Synchronous::new(mesh, call)),
    }
}

/// The texts that a branch is conditioned on, in the order of its batch, and what each is.
pub(super) fn texts(
    checkpoint: &Checkpoint,
    plan: &Plan,
    branch: Branch,
    memory: &Memory,
) -> Result<Vec<(&'static str, TextEmbedding)>> {
    let mut texts = Vec::new();
    if plan.is_guided() && branch != Branch::Prompt {
        let negative = plan.spec.negative.as_deref();
        texts.push(("negative prompt", checkpoint.embed_negative(negative, memory)?));
    }
    if branch != Branch::Negative {
        texts.push(("prompt", checkpoint.embed(&plan.spec.prompt, memory)?));
    }
    Ok(texts)
}

/// -1..1 to 0..255, as diffusers does.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=255")]
fn to_pixel(value: f32) -> u8 {
    ((value / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).expect("this program needs at least 32-bit addresses")
}
