//! What clients of the web UI ask for before anything else: what may be chosen.

use super::super::Api;
use super::super::body::read_json;
use super::super::error::Refusal;
use super::super::files::FileKind;
use super::super::limits::BODY_BYTES_MAX;
use super::words::{SAMPLERS, SCHEDULES, model_of};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value, json};

/// How many digits of a digest name a model.
const DIGITS: usize = 10;

/// A digest as the web UI shows it.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..DIGITS).unwrap_or(digest)
}

fn title(name: &str, digest: &str) -> String {
    format!("{name} [{}]", short(digest))
}

/// The samplers.
#[utoipa::path(
    get, operation_id = "automatic_samplers", path = "/sdapi/v1/samplers", tag = "automatic1111",
    responses((status = 200, description = "The samplers", content_type = "application/json", body = Vec<Object>), super::super::openapi::Refusals)
)]
pub(in crate::api) async fn samplers() -> HttpResponse {
    let each = |(name, _): &(&str, _)| json!({ "name": name, "aliases": [], "options": {} });
    HttpResponse::Ok().json(SAMPLERS.iter().map(each).collect::<Vec<_>>())
}

/// The noise schedules.
#[utoipa::path(
    get, operation_id = "automatic_schedulers", path = "/sdapi/v1/schedulers", tag = "automatic1111",
    responses((status = 200, description = "The noise schedules", content_type = "application/json", body = Vec<Object>), super::super::openapi::Refusals)
)]
pub(in crate::api) async fn schedulers() -> HttpResponse {
    let each = |label: &&str| {
        json!({
            "name": label.to_lowercase(), "label": label, "aliases": null, "default_rho": -1.0,
            "need_inner_model": false,
        })
    };
    HttpResponse::Ok().json(SCHEDULES.iter().map(each).collect::<Vec<_>>())
}

/// The models: the one that workers hold.
#[utoipa::path(
    get, operation_id = "automatic_models", path = "/sdapi/v1/sd-models", tag = "automatic1111",
    responses((status = 200, description = "None while no worker is there", content_type = "application/json", body = Vec<Object>), super::super::openapi::Refusals)
)]
pub(in crate::api) async fn models(api: web::Data<Api>) -> Result<HttpResponse, Refusal> {
    let each = |card: protocol::job::ModelCard| {
        json!({
            "title": title(&card.name, &card.digest), "model_name": card.name, "hash": short(&card.digest),
            "sha256": null, "filename": card.name, "config": null,
        })
    };
    let models: Vec<Value> = api.gauge().await?.0.model.into_iter().map(each).collect();
    Ok(HttpResponse::Ok().json(models))
}

/// The LoRA files that are there, by their ids.
#[utoipa::path(
    get, operation_id = "automatic_loras", path = "/sdapi/v1/loras", tag = "automatic1111",
    responses((status = 200, description = "Those that POST /v1/files took in", content_type = "application/json", body = Vec<Object>), super::super::openapi::Refusals)
)]
pub(in crate::api) async fn loras(api: web::Data<Api>) -> Result<HttpResponse, Refusal> {
    let files = api.files().await?.into_iter().filter(|file| file.kind == FileKind::Lora);
    let each = |id: String| json!({ "name": id, "alias": id, "path": id, "metadata": {} });
    Ok(HttpResponse::Ok().json(files.map(|file| each(file.id.to_string())).collect::<Vec<_>>()))
}

/// The options: which model is chosen.
#[utoipa::path(
    get, operation_id = "automatic_options", path = "/sdapi/v1/options", tag = "automatic1111",
    responses((status = 200, description = "The options", content_type = "application/json", body = Object), super::super::openapi::Refusals)
)]
pub(in crate::api) async fn options(api: web::Data<Api>) -> Result<HttpResponse, Refusal> {
    let model = api.gauge().await?.0.model;
    let chosen = model.map(|card| title(&card.name, &card.digest));
    let answer = json!({ "sd_model_checkpoint": chosen, "samples_format": "png" });
    Ok(HttpResponse::Ok().json(answer))
}

/// Choose options: the model that is there can be chosen, and nothing else.
#[utoipa::path(
    post, operation_id = "automatic_set_options", path = "/sdapi/v1/options", tag = "automatic1111", request_body = Object,
    responses(
        (status = 200, description = "It is so already", content_type = "application/json", body = Object),
        (status = 413, description = "The body is too large", body = super::super::error::ErrorBody),
        (status = 415, description = "The body is not said to be JSON", body = super::super::error::ErrorBody),
        super::super::openapi::Refusals,
    )
)]
pub(in crate::api) async fn set_options(
    request: HttpRequest,
    api: web::Data<Api>,
    payload: web::Payload,
) -> Result<HttpResponse, Refusal> {
    let said: Map<String, Value> = read_json(&request, payload, BODY_BYTES_MAX).await?;
    for (name, value) in &said {
        match (name.as_str(), value.as_str()) {
            ("sd_model_checkpoint", Some(model)) => api.check_model(Some(model_of(model))).await?,
            ("samples_format", Some("png")) => {}
            _ => {
                let message = format!(
                    "the option `{name}` cannot be set here: what an image is to be is said with its request"
                );
                return Err(Refusal::invalid(message).about(name));
            }
        }
    }
    Ok(HttpResponse::Ok().json(json!({})))
}

/// The scripts: none.
#[utoipa::path(
    get, operation_id = "automatic_scripts", path = "/sdapi/v1/scripts", tag = "automatic1111",
    responses((status = 200, description = "None", content_type = "application/json", body = Object), super::super::openapi::Refusals)
)]
pub(in crate::api) async fn scripts() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "txt2img": [], "img2img": [] }))
}
