//! A finished job's image.

use super::error::{ErrorBody, ErrorType, Refusal};
use super::{Api, JobPath, error};
use crate::output::{self, Parameters};
use actix_web::http::StatusCode;
use actix_web::http::header::{ACCEPT, CACHE_CONTROL, VARY};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use protocol::message::{JobRecord, JobStage, Part};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How good a JPEG is, of 100: its errors cannot be seen, and it is a fifth of a PNG.
const JPEG_QUALITY: u8 = 92;

/// What an image is encoded as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    /// Lossless, with the parameters it was made with.
    Png,
    /// Small, and a little off.
    Jpeg,
    /// Lossless.
    Webp,
}

impl Format {
    /// Its name in requests.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
        }
    }

    pub(crate) fn mime(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
        }
    }
}

/// How an image is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ImageQuery {
    /// What it is encoded as; else what the `Accept` header likes best, else PNG.
    #[param(inline)]
    format: Option<Format>,
    /// An API key, where a header cannot be sent.
    #[serde(rename = "key")]
    _key: Option<String>,
}

/// Fetch a finished job's image.
#[utoipa::path(
    get, operation_id = "fetch_image", path = "/v1/jobs/{id}/image", tag = "jobs", params(JobPath, ImageQuery),
    responses(
        (status = 200, description = "The image", content(
            ([u8] = "image/png"), ([u8] = "image/jpeg"), ([u8] = "image/webp"),
        )),
        (status = 406, description = "The caller accepts none of the formats", body = ErrorBody),
        (status = 409, description = "It is not finished", body = ErrorBody),
        (status = 410, description = "It ended without an image, or the image was let go of", body = ErrorBody),
        super::openapi::Refusals,
    )
)]
pub(super) async fn show(
    request: HttpRequest,
    api: web::Data<Api>,
    path: web::Path<JobPath>,
    query: web::Query<ImageQuery>,
) -> Result<HttpResponse, Refusal> {
    let accepted = request.headers().get(ACCEPT).and_then(|accepted| accepted.to_str().ok());
    let format = query.format.or_else(|| negotiate(accepted.unwrap_or("*/*")));
    let format = format.ok_or_else(|| {
        let message =
            "images are image/png, image/jpeg or image/webp; accept one of them, or give ?format=";
        let status = StatusCode::NOT_ACCEPTABLE;
        Refusal::new(status, ErrorType::InvalidRequestError, "not_acceptable", message)
    })?;
    let (record, pixels) = api.show(&request, path.job(), Part::Image).await?;
    let parameters = parameters(&record, &pixels)?;
    let encoded = encoded(pixels, parameters, format).await?;
    Ok(HttpResponse::Ok()
        .content_type(format.mime())
        // Numbers of jobs begin anew where none are kept.
        .insert_header((CACHE_CONTROL, "private, no-cache"))
        .insert_header((VARY, "Accept"))
        .body(encoded))
}

/// The format that an `Accept` header likes best.
fn negotiate(accepted: &str) -> Option<Format> {
    let weighed = |part: &str| {
        let mut parts = part.split(';').map(str::trim);
        let format = match parts.next()? {
            "image/png" | "image/*" | "*/*" => Format::Png,
            "image/jpeg" => Format::Jpeg,
            "image/webp" => Format::Webp,
            _ => return None,
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
        Some((format, weight.unwrap_or(1.0))).filter(|(_, weight)| *weight > 0.0)
    };
    let mut best: Option<(Format, f32)> = None;
    for (format, weight) in accepted.split(',').filter_map(weighed) {
        if best.is_none_or(|(_, most)| weight > most) {
            best = Some((format, weight));
        }
    }
    best.map(|(format, _)| format)
}

/// What a finished image was made with.
pub(crate) fn parameters(record: &JobRecord, pixels: &Bytes) -> Result<Parameters, Refusal> {
    let id = record.id;
    match record.stage {
        JobStage::Finished => {}
        JobStage::Queued | JobStage::Running | JobStage::Interrupted => {
            let message = format!("{id} is {}: its image is not there yet", record.stage.name());
            return Err(Refusal::conflict("not_finished", message));
        }
        JobStage::Failed | JobStage::Cancelled => {
            let fault = record.fault.as_ref();
            let cause = fault.map_or_else(String::new, |fault| format!(": {fault}"));
            let code = fault.map_or_else(String::new, |fault| error::code(fault.kind));
            return Err(gone(&code, format!("{id} is {}{cause}", record.stage.name())));
        }
    }
    if pixels.is_empty() {
        return Err(gone("image_gone", format!("the image of {id} is not kept any more")));
    }
    let known = record.spec.clone().zip(record.model.clone()).zip(record.result.as_ref());
    let Some(((spec, model), result)) = known else {
        return Err(Refusal::internal(format!("nothing is known of how {id} was made")));
    };
    Ok(Parameters {
        spec,
        model,
        workers: record.bands.len(),
        bands: record.bands.iter().map(|band| (band.branch, band.rows)).collect(),
        latent: result.latent.clone(),
        release: protocol::RELEASE.to_owned(),
    })
}

fn gone(code: &str, message: String) -> Refusal {
    Refusal::new(StatusCode::GONE, ErrorType::NotFoundError, code, message)
}

/// Encodes RGB bytes [height, width, 3], on a thread where it keeps nobody waiting.
pub(crate) async fn encoded(
    pixels: Bytes,
    parameters: Parameters,
    format: Format,
) -> Result<Vec<u8>, Refusal> {
    let encoding = web::block(move || encode(&pixels, &parameters, format));
    let encoded = encoding.await.map_err(|error| Refusal::internal(error.to_string()))?;
    encoded.map_err(|error| Refusal::internal(format!("the image cannot be encoded: {error}")))
}

fn encode(
    pixels: &[u8],
    parameters: &Parameters,
    format: Format,
) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let (width, height) = (parameters.spec.width, parameters.spec.height);
    let mut file = Vec::new();
    let rgb = ExtendedColorType::Rgb8;
    match format {
        Format::Png => output::encode_png(&mut file, pixels, parameters)?,
        Format::Jpeg => JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY)
            .encode(pixels, width, height, rgb)?,
        Format::Webp => WebPEncoder::new_lossless(&mut file).encode(pixels, width, height, rgb)?,
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_is_liked_best() {
        for (accepted, format) in [
            ("*/*", Some(Format::Png)),
            ("image/avif,image/webp,image/apng,*/*;q=0.8", Some(Format::Webp)),
            ("image/jpeg;q=0.5, image/png;q=0.9", Some(Format::Png)),
            ("image/jpeg", Some(Format::Jpeg)),
            ("text/html", None),
            ("image/png;q=0", None),
            ("", None),
        ] {
            assert_eq!(negotiate(accepted), format, "{accepted}");
        }
    }
}
