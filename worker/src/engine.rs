//! The denoising engine: one compute thread, one device, one run at a time.
//!
//! The thread never touches the async runtime: it takes runs from a channel, exchanges with its
//! peers through links, and says what happened through another channel.

mod budget;
mod calibration;
pub mod cores;
mod given;
pub mod guidance;
mod latent;
mod preview;
pub mod run;
mod staleness;

use self::cores::Cores;
pub use self::given::Files;
use crate::device::nccl::{self, NcclError};
use crate::device::{Device, DeviceChoice};
use crate::kernels::{Isa, Needed};
use crate::memory;
use crate::model::checkpoint::Checkpoint;
use crate::model::files::ModelFiles;
use crate::model::tensor::Memory;
use crate::pulse::Pulses;
use bytes::Bytes;
use protocol::job::{Dtype, ModelCard};
use protocol::message::{Pulse, Resume, ToCoordinator};
use protocol::plan::{NcclDevice, Plan, SiteSpec};
use protocol::transport::Links;
use protocol::{Fault, Rank, RunId};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use tokio::sync::{mpsc as async_mpsc, oneshot};

/// One run, as given to the compute thread.
#[derive(Debug)]
pub struct Run {
    /// Who renders what.
    pub plan: Plan,
    /// Which of the plan's ranks this is.
    pub rank: Rank,
    /// Where it goes on, if others began it, and the band's latent and history there: f32 [1 + history,
    /// channels, band rows, columns].
    pub resume: Option<(Resume, Bytes)>,
    /// The files that it is rendered with.
    pub files: Files,
    /// A link to every other rank.
    pub links: Links,
    /// A fault sent here ends the run at its next wait or call.
    pub cancel: oneshot::Receiver<Fault>,
    /// Where the run's messages and their payloads go. The last one is exactly one of `Decoded`,
    /// `Failed` and `Aborted`.
    pub out: async_mpsc::UnboundedSender<(ToCoordinator, Bytes)>,
}

/// What an engine is started with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The checkpoint's folder. None: the built-in model.
    pub model: Option<PathBuf>,
    /// The type weights are held in.
    pub dtype: Dtype,
    /// What it computes on.
    pub device: DeviceChoice,
    /// Compute threads. None: one for each core that no other worker of this machine has.
    pub threads: Option<NonZeroUsize>,
}

/// Memory, in bytes, once the model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLeft {
    /// What this worker has taken.
    pub taken: u64,
    /// What is free.
    pub free: u64,
}

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The checkpoint cannot be loaded.
    #[error(transparent)]
    Model(#[from] crate::model::Error),
    /// The kernels asked for cannot be had.
    #[error(transparent)]
    Kernels(#[from] crate::kernels::IsaError),
    /// The device cannot be had.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// No cores are left.
    #[error(transparent)]
    Cores(#[from] cores::CoresError),
    /// The threads cannot be had.
    #[error("cannot start {threads} compute threads: {cause}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        cause: String,
    },
}

/// A loaded model and the thread that runs it.
#[derive(Debug)]
pub struct Engine {
    checkpoint: Arc<Checkpoint>,
    card: ModelCard,
    isa: Isa,
    cores: Cores,
    speed: u64,
    activations: Option<Needed>,
    runs: mpsc::Sender<Run>,
    pulses: Pulses,
}

impl Engine {
    /// Loads a checkpoint and starts the compute thread.
    ///
    /// # Errors
    /// If the checkpoint cannot be loaded or threads cannot be started.
    pub fn load(options: &EngineOptions) -> Result<Self, EngineError> {
        let isa = Isa::resolve()?;
        let device = Device::open(options.device, options.dtype)?;
        // A GPU is given its work by one thread.
        let gpu = matches!(options.device, DeviceChoice::Cuda(_)).then_some(NonZeroUsize::MIN);
        let cores = Cores::claim(options.threads.or(gpu))?;
        let threads = cores.threads().get();
        let placement = cores.placement().clone();
        let refused = |cause: String| EngineError::Threads { threads, cause };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("compute-{index}"))
            .start_handler(move |index| placement.pin(index))
            .build()
            .map_err(|error| refused(error.to_string()))?;
        let files = options.model.clone().map_or(ModelFiles::Builtin, ModelFiles::Folder);
        let load = || Checkpoint::load_on(&files, options.dtype, device.as_ref());
        let checkpoint = Arc::new(pool.install(load)?);
        let activations = match &device {
            None => Some(budget::alone(&checkpoint)?),
            Some(_) => None,
        };
        let memory = device.map_or_else(Memory::default, Memory::Device);
        let speed = pool.install(|| calibration::speed(&checkpoint, &memory))?;
        let preview = pool.install(|| preview::map(&checkpoint, &memory))?;
        let card = ModelCard { preview, ..checkpoint.card().clone() };
        let (runs, queue) = mpsc::channel::<Run>();
        let model = Arc::clone(&checkpoint);
        let pulses = Pulses::default();
        let counting = pulses.clone();
        std::thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                while let Ok(run) = queue.recv() {
                    pool.install(|| {
                        let _counted = counting.count(run.plan.run);
                        let RunId { job, epoch } = run.plan.run;
                        // What is logged on this thread, by a fabric say, is of this rank.
                        let (job, epoch, rank) = (job.0, epoch.0, run.rank.0);
                        let _place = tracing::info_span!("run", job, epoch, rank).entered();
                        run::render(&model, run);
                    });
                }
            })
            .map_err(|error| refused(error.to_string()))?;
        Ok(Self { checkpoint, card, isa, cores, speed, activations, runs, pulses })
    }

    /// What others need to know of the model.
    #[must_use]
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// The model's exchange points.
    #[must_use]
    pub fn sites(&self) -> &[SiteSpec] {
        self.checkpoint.sites()
    }

    /// The loaded model.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What peers must know of its GPU to exchange with it by NCCL.
    ///
    /// # Errors
    /// If it computes on none, or there is no NCCL.
    pub fn nccl(&self) -> Result<NcclDevice, NcclError> {
        let none = NcclError::NotOn(DeviceChoice::Cpu);
        self.checkpoint.device().ok_or(none).and_then(nccl::offer)
    }

    /// What computes: the device, or the instruction set that our own kernels run on.
    #[must_use]
    pub fn kernels(&self) -> String {
        self.checkpoint
            .device()
            .map_or_else(|| self.isa.to_string(), |device| device.choice().to_string())
    }

    /// The cores it computes on.
    #[must_use]
    pub fn cores(&self) -> &Cores {
        &self.cores
    }

    /// How far the compute thread is; None if it has nothing to do.
    #[must_use]
    pub fn pulse(&self) -> Option<Pulse> {
        self.pulses.read()
    }

    /// Latent pixels a second of one prediction, as measured after loading.
    #[must_use]
    pub fn speed(&self) -> u64 {
        self.speed
    }

    /// What the activations of an image of the model's native size take in the host's memory, if this
    /// worker renders it alone. None: a device's library takes its own memory for them.
    #[must_use]
    pub fn activations(&self) -> Option<Needed> {
        self.activations
    }

    /// What is left where activations are: on a GPU, or on this machine.
    ///
    /// # Errors
    /// If the device does not tell.
    pub fn memory(&self) -> Result<MemoryLeft, EngineError> {
        let on_device = self.checkpoint.device().map(Device::free_bytes).transpose();
        Ok(match on_device.map_err(crate::model::Error::from)?.flatten() {
            Some(free) => MemoryLeft { taken: self.card().weight_bytes, free },
            None => MemoryLeft { taken: memory::resident_bytes(), free: memory::free_bytes() },
        })
    }

    /// Queues a run to the compute thread.
    ///
    /// # Panics
    /// If the compute thread is gone: it ends only with the engine.
    pub fn render(&self, run: Run) {
        self.runs.send(run).expect("the compute thread lives as long as the engine");
    }
}
