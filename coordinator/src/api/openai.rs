//! Images as `OpenAI`'s clients ask for them, with what a diffusion model takes beside it.
//!
//! A request is as many jobs as it asks for images. They end with the caller's connection: whoever is not there to
//! read an image has not asked for it to be kept.

pub(super) mod body;
mod stream;

use super::body::read_json;
use super::error::Refusal;
use super::image::{Format, encoded, parameters};
use super::limits::BODY_BYTES_MAX;
use super::{Api, record, unexpected};
use crate::actor::visit::Visit;
use crate::identity::now;
use actix_web::{HttpRequest, HttpResponse, web};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use body::{ImagesBody, ResponseFormat};
use bytes::Bytes;
use protocol::JobId;
use protocol::job::{JobRequest, Priority, Terms};
use protocol::message::{Event, FromClient, Part, ToClient};
use serde::Serialize;
use utoipa::ToSchema;

/// The images of a request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Images {
    /// When they were finished, in unix seconds.
    created: u64,
    data: Vec<Image>,
    output_format: Format,
    /// `WIDTHxHEIGHT`.
    size: String,
}

/// One image.
#[derive(Debug, Serialize, ToSchema)]
struct Image {
    /// The image's file, unless its address alone is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    /// Where it is for as long as it is kept, unless the file alone is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    /// The seed that gives it again.
    seed: u64,
    /// The job's number.
    job: u64,
}

/// A job of a request, and the visit that it ends with.
pub(super) struct Commission {
    pub(super) job: JobId,
    visit: Visit,
}

/// An image that is there.
pub(super) struct Rendered {
    pub(super) job: JobId,
    pub(super) seed: u64,
    pub(super) size: (u32, u32),
    pub(super) file: Vec<u8>,
}

/// Generate images as `OpenAI` has it.
///
/// With `stream` the answer is server-sent events: `image_generation.partial_image`, and `image_generation.completed` at
/// the end. With a `seed`, image i of n has the seed + i.
#[utoipa::path(
    post, operation_id = "generate_images", path = "/v1/images/generations", tag = "openai", request_body = ImagesBody,
    responses(
        (status = 200, description = "The images", content((Images = "application/json"), (String = "text/event-stream"))),
        (status = 413, description = "The body is too large", body = super::error::ErrorBody),
        (status = 415, description = "The body is not said to be JSON", body = super::error::ErrorBody),
        (status = 429, description = "The queue is full, or the key has used up its minute", body = super::error::ErrorBody, headers(("Retry-After" = u64, description = "Seconds"))),
        (status = 500, description = "It could not be rendered", body = super::error::ErrorBody),
        super::openapi::Refusals,
    )
)]
pub(super) async fn generate(
    request: HttpRequest,
    api: web::Data<Api>,
    payload: web::Payload,
) -> Result<HttpResponse, Refusal> {
    let body: ImagesBody = read_json(&request, payload, BODY_BYTES_MAX).await?;
    let answer = answer(request, api, body).await;
    answer.map_err(|refusal| refusal.in_words(body::word))
}

async fn answer(
    request: HttpRequest,
    api: web::Data<Api>,
    body: ImagesBody,
) -> Result<HttpResponse, Refusal> {
    let asked = body.request()?;
    api.check_model(asked.model.as_deref()).await?;
    let count = body.count()?;
    if body.stream() {
        let partial = body.partial_images(count)?;
        api.admit(&request, &asked, count).await?;
        let commission = api.commission(&request, asked, partial > 0).await?;
        return Ok(stream::answer(api, request, commission, (partial, body.output_format())));
    }
    api.admit(&request, &asked, count).await?;
    let mut commissions = Vec::new();
    for number in 0..count {
        let seed = asked.seed.map(|seed| seed.wrapping_add(number.into()));
        let asked = JobRequest { seed, ..asked.clone() };
        commissions.push(api.commission(&request, asked, false).await?);
    }
    let mut rendered = Vec::new();
    for commission in commissions {
        rendered.push(api.rendered(&request, commission, body.output_format()).await?);
    }
    let size = rendered.first().map(|image| named(image.size)).unwrap_or_default();
    let base = base_url(&request);
    let data = rendered.into_iter().map(|image| told(image, &base, &body)).collect();
    let output_format = body.output_format();
    Ok(HttpResponse::Ok().json(Images { created: now(), data, output_format, size }))
}

fn named((width, height): (u32, u32)) -> String {
    format!("{width}x{height}")
}

/// Where the caller reached this server.
fn base_url(request: &HttpRequest) -> String {
    let to = request.connection_info();
    format!("{}://{}", to.scheme(), to.host())
}

fn told(image: Rendered, base: &str, body: &ImagesBody) -> Image {
    let format = body.output_format();
    let file = || BASE64_STANDARD.encode(&image.file);
    let url = || format!("{base}{}?format={}", super::view::image_path(image.job), format.name());
    let (b64_json, url) = match body.response_format() {
        // Old clients read the one and new ones the other.
        None => (Some(file()), Some(url())),
        Some(ResponseFormat::B64Json) => (Some(file()), None),
        Some(ResponseFormat::Url) => (None, Some(url())),
    };
    Image { b64_json, url, seed: image.seed, job: image.job.0 }
}

impl Api {
    /// Refuses a model that is not there by the code that clients know.
    pub(super) async fn check_model(&self, model: Option<&str>) -> Result<(), Refusal> {
        let (Some(model), Some(card)) = (model, self.gauge().await?.0.model) else { return Ok(()) };
        if card.name == model {
            return Ok(());
        }
        let message = format!("the model `{model}` is not here; the workers hold `{}`", card.name);
        Err(Refusal::not_found("model_not_found", message).about("model"))
    }

    /// Submits a job that ends with the caller's visit, which hears of it from now on.
    pub(super) async fn commission(
        &self,
        request: &HttpRequest,
        asked: JobRequest,
        latents: bool,
    ) -> Result<Commission, Refusal> {
        let mut visit = self.visit(request);
        let asked = JobRequest { stream_latents: latents, ..asked };
        let terms = Terms { detached: false, priority: Priority::Normal, idempotency_key: None };
        let submit = FromClient::Submit { request: Box::new(asked), terms };
        match visit.ask(submit).await.ok_or_else(Refusal::hung_up)?.0 {
            ToClient::Accepted { job, .. } => Ok(Commission { job, visit }),
            ToClient::Refused(fault) => Err(fault.into()),
            other => Err(unexpected(&other)),
        }
    }

    /// The image of a job, once it is there.
    pub(super) async fn rendered(
        &self,
        request: &HttpRequest,
        mut commission: Commission,
        format: Format,
    ) -> Result<Rendered, Refusal> {
        loop {
            let (message, payload) = commission.visit.next().await.ok_or_else(Refusal::hung_up)?;
            match message {
                ToClient::Event { event: Event::Finished { .. }, .. } => {
                    return self.finished(request, commission.job, payload, format).await;
                }
                ToClient::Event { event: Event::Failed { fault }, .. } => return Err(fault.into()),
                _ => {}
            }
        }
    }

    /// A finished job's image as a file.
    async fn finished(
        &self,
        request: &HttpRequest,
        job: JobId,
        pixels: Bytes,
        format: Format,
    ) -> Result<Rendered, Refusal> {
        let show = FromClient::Show { job, with: Part::Record };
        let (record, _) = record(&mut self.visit(request), show).await?;
        let parameters = parameters(&record, &pixels)?;
        let size = (parameters.spec.width, parameters.spec.height);
        let file = encoded(pixels, parameters, format).await?;
        Ok(Rendered { job, seed: record.seed, size, file })
    }
}
