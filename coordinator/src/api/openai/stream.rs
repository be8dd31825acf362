//! An image as it comes to be, in the events that `OpenAI`'s clients read.

use super::body::word;
use super::{Commission, named};
use crate::api::Api;
use crate::api::error::Refusal;
use crate::api::image::Format;
use crate::api::preview;
use crate::identity::now;
use crate::output::ENLARGED_MAX;
use actix_web::http::header::CACHE_CONTROL;
use actix_web::{HttpRequest, HttpResponse, web};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use futures_util::stream;
use protocol::job::PreviewMap;
use protocol::message::{Event, ToClient};
use protocol::plan::Geometry;
use serde_json::{Value, json};
use std::convert::Infallible;

/// Answers with a stream of one job's events.
pub(super) fn answer(
    api: web::Data<Api>,
    request: HttpRequest,
    commission: Commission,
    (partial, format): (u8, Format),
) -> HttpResponse {
    let told =
        Told { api, request, commission, partial, format, shown: 0, look: None, ended: false };
    let messages = stream::unfold(told, |mut told| async move {
        let message = told.next().await?;
        Some((Ok::<_, Infallible>(message), told))
    });
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(("X-Accel-Buffering", "no")) // a proxy that collects events delays them
        .streaming(messages)
}

/// A caller that is told of its image.
struct Told {
    api: web::Data<Api>,
    request: HttpRequest,
    commission: Commission,
    /// How many partial images it wants.
    partial: u8,
    format: Format,
    /// How many it was shown.
    shown: u8,
    /// The latent's shape, how it looks, and the image's size.
    look: Option<(Geometry, Option<PreviewMap>, (u32, u32))>,
    ended: bool,
}

impl Told {
    /// The next message; None after the end.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let Some((message, payload)) = self.commission.visit.next().await else {
                return Some(self.failed(&Refusal::hung_up()));
            };
            let ToClient::Event { event, .. } = message else { continue };
            match event {
                Event::Started { geometry, spec, preview, .. } => {
                    self.look = Some((geometry, preview, (spec.width, spec.height)));
                }
                Event::Step { call, calls, .. } => {
                    if let Some(message) = self.partial(call, calls, &payload) {
                        return Some(message);
                    }
                }
                Event::Finished { .. } => return Some(self.completed(payload).await),
                Event::Failed { fault } => {
                    return Some(self.failed(&Refusal::from(fault).in_words(word)));
                }
                _ => {}
            }
        }
        None
    }

    /// The next partial image, if it is due: they are spread evenly over the calls.
    fn partial(&mut self, call: u32, calls: u32, latent: &[u8]) -> Option<Bytes> {
        if !is_due(call, calls, self.shown, self.partial) {
            return None;
        }
        let (geometry, map, size) = self.look.as_ref()?;
        // As large as the image will be, where that is not too much.
        let times = geometry.vae_factor.min(ENLARGED_MAX);
        let png = match preview::png(latent, *geometry, map.as_ref(), times) {
            Ok(png) => png?,
            Err(refusal) => {
                tracing::warn!("{}: {refusal}", self.commission.job);
                return None;
            }
        };
        let index = self.shown;
        self.shown += 1;
        let file = BASE64_STANDARD.encode(png);
        // It is a PNG, whatever the image will be.
        Some(said(
            "image_generation.partial_image",
            json!({
                "b64_json": file, "partial_image_index": index, "created_at": now(), "size": named(*size),
                "output_format": Format::Png, "quality": "auto", "background": "opaque",
            }),
        ))
    }

    async fn completed(&mut self, pixels: Bytes) -> Bytes {
        let job = self.commission.job;
        let rendered = self.api.finished(&self.request, job, pixels, self.format).await;
        let image = match rendered {
            Ok(image) => image,
            Err(refusal) => return self.failed(&refusal),
        };
        self.ended = true;
        said(
            "image_generation.completed",
            json!({
                "b64_json": BASE64_STANDARD.encode(image.file), "created_at": now(), "size": named(image.size),
                "output_format": self.format, "quality": "auto", "background": "opaque",
                "usage": {"total_tokens": 0, "input_tokens": 0, "output_tokens": 0,
                          "input_tokens_details": {"text_tokens": 0, "image_tokens": 0}},
                "seed": image.seed, "job": job.0,
            }),
        )
    }

    fn failed(&mut self, refusal: &Refusal) -> Bytes {
        self.ended = true;
        let body = serde_json::to_value(refusal.body()).unwrap_or_default();
        said("error", body)
    }
}

/// Whether the next of `partial` images is due after `call` of `calls`, when `shown` were.
fn is_due(call: u32, calls: u32, shown: u8, partial: u8) -> bool {
    let parts = u64::from(partial) + 1;
    shown < partial
        && u64::from(call) * parts >= (u64::from(shown) + 1) * u64::from(calls)
        && call < calls
}

/// An event, whose type clients read in its data.
fn said(kind: &str, mut data: Value) -> Bytes {
    if let Value::Object(data) = &mut data {
        data.insert("type".to_owned(), kind.into());
    }
    Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_images_are_spread_over_the_calls() {
        let due = |calls, partial| {
            let mut shown = 0;
            let mut at = Vec::new();
            for call in 1..=calls {
                if is_due(call, calls, shown, partial) {
                    shown += 1;
                    at.push(call);
                }
            }
            at
        };
        assert_eq!(due(30, 3), [8, 15, 23]);
        assert_eq!(due(4, 1), [2]);
        assert_eq!(due(2, 3), [1], "no more than there are calls before the last");
        assert!(due(30, 0).is_empty());
    }
}
