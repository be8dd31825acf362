//! The models that are there, in the shape that `OpenAI`'s clients read, with more.

use super::error::Refusal;
use super::{Api, schema};
use crate::identity::now;
use crate::planner::STEPS_DEFAULT;
use actix_web::web;
use protocol::job::{Dtype, ModelCard, Scheduler};
use serde::Serialize;
use utoipa::ToSchema;

/// The models that are there.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    object: String,
    /// One, while workers are there: they all hold the same.
    data: Vec<ModelEntry>,
}

/// A model, and what a request may leave out with it.
#[derive(Debug, Serialize, ToSchema)]
struct ModelEntry {
    /// Its name.
    id: String,
    /// `model`.
    object: String,
    /// When this coordinator started, in unix seconds.
    created: u64,
    /// `tessera`.
    owned_by: String,
    family: String,
    /// The type that its weights are held in.
    #[schema(schema_with = schema::dtype)]
    dtype: Dtype,
    /// Hex blake3 of configurations and of every tensor that is used.
    digest: String,
    /// The size of an image, if none is asked for.
    native: Native,
    /// Sides are multiples of this.
    row_unit_pixels: u32,
    /// Sampler steps, if none are asked for.
    steps: u32,
    /// The guidance scale, if none is asked for.
    guidance: f32,
    /// The sampler, if none is asked for.
    #[schema(schema_with = schema::scheduler)]
    scheduler: Scheduler,
    /// The samplers that may be asked for.
    schedulers: Vec<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Native {
    width: u32,
    height: u32,
}

/// List the models that are there.
#[utoipa::path(
    get, operation_id = "list_models", path = "/v1/models", tag = "cluster",
    responses((status = 200, description = "None while no worker is there", body = ModelList), super::openapi::Refusals)
)]
pub(super) async fn list(api: web::Data<Api>) -> Result<web::Json<ModelList>, Refusal> {
    let (cluster, _) = api.gauge().await?;
    let created = now().saturating_sub(cluster.up_seconds);
    let data = cluster.model.into_iter().map(|card| entry(card, created)).collect();
    Ok(web::Json(ModelList { object: "list".to_owned(), data }))
}

fn entry(card: ModelCard, created: u64) -> ModelEntry {
    let (width, height) = card.native;
    ModelEntry {
        id: card.name,
        object: "model".to_owned(),
        created,
        owned_by: "tessera".to_owned(),
        family: card.family,
        dtype: card.dtype,
        digest: card.digest,
        native: Native { width, height },
        row_unit_pixels: card.vae_factor * card.row_unit,
        steps: STEPS_DEFAULT,
        guidance: card.guidance,
        scheduler: card.scheduler,
        schedulers: Scheduler::ALL.iter().map(|scheduler| scheduler.name().to_owned()).collect(),
    }
}
