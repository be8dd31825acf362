//! What clients of AUTOMATIC1111's web UI ask for: images, progress, interruption, and the lists that they begin with.
//!
//! Its interface knows one image at a time; here progress and interruption are of those that the same caller asked for.

pub(super) mod lists;
pub(super) mod words;

use super::body::read_json;
use super::error::{ErrorBody, Refusal};
use super::image::Format;
use super::limits::{BODY_BYTES_MAX, IMAGES_MAX, PICTURE_BODY_BYTES_MAX};
use super::openai::Rendered;
use super::{Api, resource};
use crate::identity::now;
use actix_web::web::ServiceConfig;
use actix_web::{HttpRequest, HttpResponse, web};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use protocol::JobId;
use protocol::job::JobRequest;
use protocol::message::{FromClient, JobRecord, JobStage, Part};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use utoipa::IntoResponses;
use words::{From, Words};

/// The jobs of requests that are being answered, by who asked.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight(Arc<Mutex<BTreeMap<String, Vec<JobId>>>>);

impl InFlight {
    /// Until what this gives is dropped, these are the jobs of `owner`.
    fn enter(&self, owner: String, jobs: &[JobId]) -> Entered {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(owner.clone()).or_default().extend(jobs);
        Entered { all: self.clone(), owner, jobs: jobs.to_vec() }
    }

    fn of(&self, owner: &str) -> Vec<JobId> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(owner).cloned().unwrap_or_default()
    }
}

/// Jobs that are taken out when their request has been answered, or its caller is gone.
struct Entered {
    all: InFlight,
    owner: String,
    jobs: Vec<JobId>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(jobs) = all.get_mut(&self.owner) {
            jobs.retain(|job| !self.jobs.contains(job));
            if jobs.is_empty() {
                all.remove(&self.owner);
            }
        }
    }
}

/// The web UI's paths, and who answers.
pub(super) fn routes(config: &mut ServiceConfig) {
    let at = |path: &str| format!("/sdapi/v1/{path}");
    config
        .service(resource(&at("txt2img"), "POST").route(web::post().to(txt2img)))
        .service(resource(&at("img2img"), "POST").route(web::post().to(img2img)))
        .service(resource(&at("progress"), "GET").route(web::get().to(progress)))
        .service(resource(&at("interrupt"), "POST").route(web::post().to(interrupt)))
        .service(resource(&at("samplers"), "GET").route(web::get().to(lists::samplers)))
        .service(resource(&at("schedulers"), "GET").route(web::get().to(lists::schedulers)))
        .service(resource(&at("sd-models"), "GET").route(web::get().to(lists::models)))
        .service(resource(&at("loras"), "GET").route(web::get().to(lists::loras)))
        .service(resource(&at("scripts"), "GET").route(web::get().to(lists::scripts)))
        .service(
            resource(&at("options"), "GET, POST")
                .route(web::get().to(lists::options))
                .route(web::post().to(lists::set_options)),
        );
}

/// What a request for images may be answered with instead of them, beside what any may be.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "its variants are read by the macro alone")]
enum Imageless {
    /// It was interrupted.
    #[response(status = 409)]
    Interrupted(ErrorBody),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The body is not said to be JSON.
    #[response(status = 415)]
    NotJson(ErrorBody),
    /// The queue is full, or the key has used up its minute.
    #[response(status = 429)]
    Limited(ErrorBody),
    /// It could not be rendered.
    #[response(status = 500)]
    Failed(ErrorBody),
}

/// Generate images as AUTOMATIC1111 has it.
///
/// Options that change the image and that there are not here are refused by name, unless they have the value that changes
/// nothing.
#[utoipa::path(
    post, operation_id = "automatic_txt2img", path = "/sdapi/v1/txt2img", tag = "automatic1111", request_body = Object,
    responses(
        (status = 200, description = "The images", content_type = "application/json", body = Object),
        Imageless,
        super::openapi::Refusals,
    )
)]
pub(super) async fn txt2img(
    request: HttpRequest,
    api: web::Data<Api>,
    payload: web::Payload,
) -> Result<HttpResponse, Refusal> {
    let said = read_json(&request, payload, BODY_BYTES_MAX).await?;
    let rendered = render(&request, &api, said, From::Text).await;
    rendered.map_err(|refusal| refusal.in_words(words::word))
}

/// Generate images that begin with a picture, as AUTOMATIC1111 has it.
///
/// The picture is stretched to the size that is asked for. Options that change the image and that there are not here are refused by
/// name, unless they have the value that changes nothing.
#[utoipa::path(
    post, operation_id = "automatic_img2img", path = "/sdapi/v1/img2img", tag = "automatic1111", request_body = Object,
    responses(
        (status = 200, description = "The images", content_type = "application/json", body = Object),
        Imageless,
        super::openapi::Refusals,
    )
)]
pub(super) async fn img2img(
    request: HttpRequest,
    api: web::Data<Api>,
    payload: web::Payload,
) -> Result<HttpResponse, Refusal> {
    let said = read_json(&request, payload, PICTURE_BODY_BYTES_MAX).await?;
    let rendered = render(&request, &api, said, From::Picture).await;
    rendered.map_err(|refusal| refusal.in_words(words::word))
}

async fn render(
    request: &HttpRequest,
    api: &Api,
    mut said: Map<String, Value>,
    from: From,
) -> Result<HttpResponse, Refusal> {
    let mut words = Words::read(said.clone(), from)?;
    if said.get("include_init_images") != Some(&Value::Bool(true)) {
        said.remove("init_images");
    }
    api.check_model(words.request.model.as_deref()).await?;
    if !(1..=IMAGES_MAX).contains(&words.images) {
        let message = format!("{} images are not one of 1 to {IMAGES_MAX}", words.images);
        return Err(Refusal::limit("batch_size", message));
    }
    let files = (std::mem::take(&mut words.loras), words.init.take());
    let given = api.give(request, words.request.clone(), files).await?;
    words.request = given.request.clone();
    api.admit(request, &words.request, words.images).await?;
    let mut commissions = Vec::new();
    for number in 0..words.images {
        let seed = words.request.seed.map(|seed| seed.wrapping_add(number.into()));
        let asked = JobRequest { seed, ..words.request.clone() };
        commissions.push(api.commission(request, asked, false).await?);
    }
    let jobs: Vec<JobId> = commissions.iter().map(|commission| commission.job).collect();
    let _entered = api.in_flight.enter(api.owner(request), &jobs);
    let mut images = Vec::new();
    for commission in commissions {
        images.push(api.rendered(request, commission, Format::Png).await.map_err(interrupted)?);
    }
    let (cluster, _) = api.gauge().await?;
    let model = cluster.model.map(|card| (card.name, card.digest)).unwrap_or_default();
    let info = info(&words, &images, &model).to_string();
    let files = images.iter().map(|image| BASE64_STANDARD.encode(&image.file));
    let files: Vec<String> = if words.sends { files.collect() } else { Vec::new() };
    Ok(HttpResponse::Ok().json(json!({ "images": files, "parameters": said, "info": info })))
}

/// What was interrupted is no failure of the server's.
fn interrupted(refusal: Refusal) -> Refusal {
    if refusal.code == "cancelled" {
        return Refusal::conflict("cancelled", refusal.message);
    }
    refusal
}

/// What is told of images beside their files.
fn info(words: &Words, images: &[Rendered], (model, digest): &(String, String)) -> Value {
    let asked = &words.request;
    let all = |value: &str| vec![value.to_owned(); images.len()];
    let seeds: Vec<u64> = images.iter().map(|image| image.seed).collect();
    let (width, height) = images.first().map(|image| image.size).unwrap_or_default();
    let negative = asked.negative.clone().unwrap_or_default();
    json!({
        "prompt": asked.prompt, "all_prompts": all(&asked.prompt),
        "negative_prompt": negative, "all_negative_prompts": all(&negative),
        "seed": seeds.first(), "all_seeds": seeds, "width": width, "height": height,
        "sampler_name": words.sampler, "cfg_scale": asked.guidance, "steps": asked.steps,
        "denoising_strength": asked.init.as_ref().and_then(|init| init.strength), "batch_size": images.len(), "sd_model_name": model, "sd_model_hash": lists::short(digest),
        "infotexts": images.iter().map(|image| infotext(words, image, model)).collect::<Vec<_>>(),
        "job_timestamp": now().to_string(), "version": protocol::RELEASE,
    })
}

/// An image's parameters in the line that users of the web UI paste.
fn infotext(words: &Words, image: &Rendered, model: &str) -> String {
    let asked = &words.request;
    let negative = asked.negative.as_ref().filter(|text| !text.is_empty());
    let negative = negative.map_or_else(String::new, |text| format!("\nNegative prompt: {text}"));
    let steps = asked.steps.map_or_else(String::new, |steps| format!("Steps: {steps}, "));
    let scale = asked.guidance.map_or_else(String::new, |scale| format!("CFG scale: {scale}, "));
    let strength = asked.init.as_ref().and_then(|init| init.strength);
    let strength =
        strength.map_or_else(String::new, |part| format!(", Denoising strength: {part}"));
    let (width, height) = image.size;
    format!(
        "{}{negative}\n{steps}Sampler: {}, {scale}Seed: {}, Size: {width}x{height}, Model: {model}{strength}",
        asked.prompt, words.sampler, image.seed
    )
}

/// How far this caller's images are.
#[utoipa::path(
    get, operation_id = "automatic_progress", path = "/sdapi/v1/progress", tag = "automatic1111",
    params(("skip_current_image" = Option<bool>, Query, description = "Leave the picture so far out")),
    responses((status = 200, description = "How far they are", content_type = "application/json", body = Object), super::openapi::Refusals)
)]
pub(super) async fn progress(
    request: HttpRequest,
    api: web::Data<Api>,
) -> Result<HttpResponse, Refusal> {
    let jobs = api.in_flight.of(&api.owner(&request));
    let mut ended = 0;
    let mut current = None;
    for job in &jobs {
        let (record, latent) = api.show(&request, *job, Part::Latent).await?;
        if record.stage.is_end() {
            ended += 1;
        } else if current.is_none() {
            current = Some((record, latent));
        }
    }
    let skips = request.query_string().contains("skip_current_image=true");
    let (call, calls) =
        current.as_ref().and_then(|(record, _)| record.progress).unwrap_or_default();
    let part = if calls == 0 { 0.0 } else { f64::from(call) / f64::from(calls) };
    let all = f64::from(u32::try_from(jobs.len()).unwrap_or(u32::MAX)).max(1.0);
    let done = (f64::from(ended) + part) / all;
    let image = match &current {
        Some((record, latent)) if !skips => api.picture(record, latent).await?,
        _ => None,
    };
    let interrupted =
        current.as_ref().is_some_and(|(record, _)| record.stage == JobStage::Interrupted);
    let text = match &current {
        Some((record, _)) if interrupted => format!("{} broke off, and goes on", record.id),
        _ => String::new(),
    };
    Ok(HttpResponse::Ok().json(json!({
        "progress": done,
        "eta_relative": current.as_ref().map_or(0.0, |(record, _)| remaining(record, part)),
        "state": {
            "skipped": false, "interrupted": false, "stopping_generation": false,
            "job": current.as_ref().map_or_else(String::new, |(record, _)| record.id.to_string()),
            "job_count": jobs.len(), "job_timestamp": now().to_string(), "job_no": ended,
            "sampling_step": call, "sampling_steps": calls,
        },
        "current_image": image.map(|png| BASE64_STANDARD.encode(png)), "textinfo": text,
    })))
}

/// Seconds that a job will take yet, if its calls go on as they did.
fn remaining(record: &JobRecord, part: f64) -> f64 {
    let since = record.started.map_or(0, |started| now().saturating_sub(started));
    let since = f64::from(u32::try_from(since).unwrap_or(u32::MAX));
    if part > 0.0 { since / part * (1.0 - part) } else { 0.0 }
}

/// End this caller's images.
#[utoipa::path(
    post, operation_id = "automatic_interrupt", path = "/sdapi/v1/interrupt", tag = "automatic1111",
    responses((status = 200, description = "They end", content_type = "application/json", body = Object), super::openapi::Refusals)
)]
pub(super) async fn interrupt(
    request: HttpRequest,
    api: web::Data<Api>,
) -> Result<HttpResponse, Refusal> {
    let mut visit = api.visit(&request);
    for job in api.in_flight.of(&api.owner(&request)) {
        match super::record(&mut visit, FromClient::Cancel(job)).await {
            Err(refusal) if refusal.code != "conflict" => return Err(refusal), // one that has ended is as good
            _ => {}
        }
    }
    Ok(HttpResponse::Ok().json(json!({})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_those_of_whoever_asked_until_they_are_answered() {
        let all = InFlight::default();
        let first = all.enter("ann".to_owned(), &[JobId(1), JobId(2)]);
        let second = all.enter("ann".to_owned(), &[JobId(3)]);
        assert_eq!(all.of("ann"), [JobId(1), JobId(2), JobId(3)]);
        assert!(all.of("bertha").is_empty());
        drop(first);
        assert_eq!(all.of("ann"), [JobId(3)]);
        drop(second);
        assert!(all.0.lock().unwrap().is_empty());
    }
}
