//! A job's image as it is so far, in small.

use super::error::Refusal;
use super::{Api, JobPath};
use crate::output;
use actix_web::http::header::CACHE_CONTROL;
use actix_web::{HttpRequest, HttpResponse, web};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use protocol::job::PreviewMap;
use protocol::message::{JobRecord, Part};
use protocol::plan::Geometry;

/// A PNG of what a latent shows, so many times as large as it; None before there is a latent, and for models that no map to colours
/// is known of.
pub(super) fn png(
    latent: &[u8],
    geometry: Geometry,
    map: Option<&PreviewMap>,
    times: u32,
) -> Result<Option<Vec<u8>>, Refusal> {
    let Some(map) = map.filter(|_| !latent.is_empty()) else { return Ok(None) };
    let png = output::preview_png(latent, geometry, map, times);
    png.map(Some).map_err(|error| Refusal::internal(error.to_string()))
}

impl Api {
    /// What the latent of a job shows, if there is one.
    pub(super) async fn picture(
        &self,
        record: &JobRecord,
        latent: &[u8],
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(geometry) = record.geometry else { return Ok(None) };
        let map = self.gauge().await?.0.model.and_then(|card| card.preview);
        png(latent, geometry, map.as_ref(), 1)
    }
}

/// A PNG as a page can show it without asking for it.
pub(super) fn data_uri(png: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png))
}

/// The latest preview of a job that is rendered.
#[utoipa::path(
    get, operation_id = "fetch_preview", path = "/v1/jobs/{id}/preview", tag = "jobs", params(JobPath),
    responses(
        (status = 200, description = "What the latest latent shows, in the latent's size", content_type = "image/png", body = [u8]),
        (status = 204, description = "There is none: the job is not rendered, or nothing tells how this model's latents look"),
        super::openapi::Refusals,
    )
)]
pub(super) async fn show(
    request: HttpRequest,
    api: web::Data<Api>,
    path: web::Path<JobPath>,
) -> Result<HttpResponse, Refusal> {
    let (record, latent) = api.show(&request, path.job(), Part::Latent).await?;
    let shown = api.picture(&record, &latent).await?;
    let fresh = (CACHE_CONTROL, "no-store");
    Ok(match shown {
        Some(png) => HttpResponse::Ok().content_type("image/png").insert_header(fresh).body(png),
        None => HttpResponse::NoContent().insert_header(fresh).finish(),
    })
}
