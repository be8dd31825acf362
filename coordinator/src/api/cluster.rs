//! The cluster as JSON.

use super::error::Refusal;
use super::view::{Band, FaultBody, Figures};
use super::{Api, schema};
use actix_web::web;
use protocol::job::{Dtype, ModelCard, Scheduler};
use protocol::message::{ClusterView, JobView, PairView, WorkerView};
use protocol::plan::Fabric;
use serde::Serialize;
use utoipa::ToSchema;

/// The cluster at one moment.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Cluster {
    /// The coordinator's release.
    release: String,
    /// Seconds since it started.
    up_seconds: u64,
    /// The model that its workers hold; null while there are none.
    model: Option<Model>,
    /// Its workers, in the order in which they joined.
    workers: Vec<Worker>,
    /// Over what each pair of workers would exchange.
    pairs: Vec<Pair>,
    /// Running and queued jobs, in the order in which they will be rendered.
    jobs: Vec<ClusterJob>,
    /// The command by which another worker joins.
    join: String,
}

/// What the workers hold.
#[derive(Debug, Serialize, ToSchema)]
struct Model {
    name: String,
    /// Hex blake3 of configurations and of every tensor that is used.
    digest: String,
    family: String,
    #[schema(schema_with = schema::dtype)]
    dtype: Dtype,
    latent_channels: u32,
    /// Pixels per latent row and column.
    vae_factor: u32,
    /// Sizes are multiples of so many latent rows.
    row_unit: u32,
    /// The size that it was trained at, in pixels.
    native: (u32, u32),
    #[schema(schema_with = schema::scheduler)]
    scheduler: Scheduler,
    guidance: f32,
    weight_bytes: u64,
}

/// One worker.
#[derive(Debug, Serialize, ToSchema)]
struct Worker {
    id: u64,
    name: String,
    /// Where its peers reach it.
    address: String,
    /// Compute threads.
    threads: u16,
    /// The instruction set that its kernels run on.
    kernels: String,
    /// Resident memory, as last reported.
    resident_bytes: u64,
    /// Latent pixels a second of one prediction.
    speed: u64,
    /// The job and rank that it renders.
    busy: Option<(u64, u16)>,
    /// Whether it gets no more work and leaves.
    draining: bool,
    /// Which key it has; null in a cluster without identities.
    identity: Option<String>,
}

/// Over what two workers would exchange.
#[derive(Debug, Serialize, ToSchema)]
struct Pair {
    workers: [u64; 2],
    /// The nearest fabric that both have; null if there is none.
    #[schema(schema_with = schema::optional_fabric)]
    fabric: Option<Fabric>,
    /// Why none nearer.
    why: String,
    /// What was last measured of it.
    figures: Option<Figures>,
}

/// A job that runs or waits.
#[derive(Debug, Serialize, ToSchema)]
struct ClusterJob {
    id: u64,
    /// The first words of its prompt.
    prompt: String,
    /// Model calls done and in all; null while it waits.
    progress: Option<(u32, u32)>,
    /// Why it is broken off, if it is.
    interrupted: Option<FaultBody>,
    /// Who renders which rows; none while it waits.
    bands: Vec<Band>,
    /// Why the work is shared this way.
    reason: String,
    /// Over what its ranks exchange.
    links: Vec<Link>,
}

/// Over what two ranks exchange.
#[derive(Debug, Serialize, ToSchema)]
struct Link {
    ranks: [u16; 2],
    #[schema(schema_with = schema::fabric)]
    fabric: Fabric,
}

/// Show the cluster.
#[utoipa::path(
    get, operation_id = "show_cluster", path = "/v1/cluster", tag = "cluster",
    responses((status = 200, description = "Its workers, its model and its jobs", body = Cluster), super::openapi::Refusals)
)]
pub(super) async fn show(api: web::Data<Api>) -> Result<web::Json<Cluster>, Refusal> {
    let (view, _) = api.gauge().await?;
    let ClusterView { release, up_seconds, model, workers, pairs, jobs } = view;
    Ok(web::Json(Cluster {
        release,
        up_seconds,
        model: model.map(Model::from),
        workers: workers.into_iter().map(Worker::from).collect(),
        pairs: pairs.into_iter().map(Pair::from).collect(),
        jobs: jobs.into_iter().map(ClusterJob::from).collect(),
        join: api.join.clone(),
    }))
}

impl From<ModelCard> for Model {
    fn from(card: ModelCard) -> Self {
        Self {
            name: card.name,
            digest: card.digest,
            family: card.family,
            dtype: card.dtype,
            latent_channels: card.latent_channels,
            vae_factor: card.vae_factor,
            row_unit: card.row_unit,
            native: card.native,
            scheduler: card.scheduler,
            guidance: card.guidance,
            weight_bytes: card.weight_bytes,
        }
    }
}

impl From<WorkerView> for Worker {
    fn from(worker: WorkerView) -> Self {
        Self {
            id: worker.id.0,
            name: worker.name,
            address: worker.address.to_string(),
            threads: worker.threads,
            kernels: worker.kernels,
            resident_bytes: worker.resident_bytes,
            speed: worker.speed,
            busy: worker.busy.map(|(job, rank)| (job.0, rank.0)),
            draining: worker.draining,
            identity: worker.identity.map(|identity| identity.to_string()),
        }
    }
}

impl From<PairView> for Pair {
    fn from(pair: PairView) -> Self {
        let PairView { workers, fabric, why, figures } = pair;
        let figures = figures.as_ref().map(Figures::from);
        Self { workers: workers.map(|worker| worker.0), fabric, why, figures }
    }
}

impl From<JobView> for ClusterJob {
    fn from(job: JobView) -> Self {
        let JobView { id, prompt, progress, interrupted, bands, reason, links } = job;
        Self {
            id: id.0,
            prompt,
            progress,
            interrupted: interrupted.as_ref().map(FaultBody::from),
            bands: bands.iter().map(Band::from).collect(),
            reason,
            links: links
                .iter()
                .map(|link| Link { ranks: link.ranks, fabric: link.fabric })
                .collect(),
        }
    }
}
