//! What happens to a job, as server-sent events.

use super::error::Refusal;
use super::view::image_path;
use super::{Api, JobPath, preview};
use crate::actor::visit::Visit;
use actix_web::http::header::CACHE_CONTROL;
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream;
use protocol::JobId;
use protocol::job::PreviewMap;
use protocol::message::{Event, FromClient, ToClient};
use protocol::plan::Geometry;
use serde_json::{Map, Value};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often a follower hears something: less than proxies and browsers wait for a silent connection, and how soon one that is
/// gone is noticed.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// Follow a job to its end.
///
/// Each message has an `id` that counts, an `event` that names what happened, and its data as one line of JSON: `queued`,
/// `started`, `notice`, `interrupted`, `resumed`, `phase`, `step`, `profiled` of a job that asks for it, and at the end `finished` or
/// `failed`. A follower that comes late hears `started` and the last `step` again, or at once the end. Every 15 seconds there
/// is a comment, `: alive`.
#[utoipa::path(
    get, operation_id = "follow_job", path = "/v1/jobs/{id}/events", tag = "jobs", params(JobPath),
    responses(
        (status = 200, description = "Events until the job's end", content_type = "text/event-stream", body = String),
        super::openapi::Refusals,
    )
)]
pub(super) async fn follow(
    request: HttpRequest,
    api: web::Data<Api>,
    path: web::Path<JobPath>,
) -> Result<HttpResponse, Refusal> {
    let job = path.job();
    let place = Arc::clone(&api.followers).try_acquire_owned().map_err(|_| {
        Refusal::unavailable(
            "too_many_followers",
            "as many as there may be follow jobs already; ask for the job",
        )
    })?;
    let mut visit = api.visit(&request);
    let watch = FromClient::Watch { job, payloads: true };
    match visit.ask(watch).await.ok_or_else(Refusal::hung_up)?.0 {
        ToClient::Accepted { .. } => {}
        ToClient::Refused(fault) => return Err(fault.into()),
        other => return Err(Refusal::internal(format!("unexpected answer {other:?}"))),
    }
    let follower = Follower::new(visit, job, api.ends.clone(), place);
    let messages = stream::unfold(follower, |mut follower| async move {
        let message = follower.next().await?;
        Some((Ok::<_, Infallible>(message), follower))
    });
    Ok(HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header(("X-Accel-Buffering", "no")) // a proxy that collects events delays them
        .streaming(messages))
}

/// One that hears of a job.
struct Follower {
    visit: Visit,
    job: JobId,
    alive: Interval,
    ends: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
    sent: u64,
    look: Option<(Geometry, Option<PreviewMap>)>,
    ended: bool,
}

impl Follower {
    fn new(
        visit: Visit,
        job: JobId,
        ends: watch::Receiver<bool>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let mut alive = interval(ALIVE_EVERY);
        alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        alive.reset();
        Self { visit, job, alive, ends, _place: place, sent: 0, look: None, ended: false }
    }

    /// The next message; None after the job's end, and when the coordinator hangs up or goes away.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            let (message, payload) = tokio::select! {
                biased; // what happened is told, even when the coordinator goes away
                heard = self.visit.next() => heard?,
                _ = self.alive.tick() => return Some(Bytes::from_static(b": alive\n\n")),
                _ = self.ends.wait_for(|ends| *ends) => return None,
            };
            let ToClient::Event { event, .. } = message else { continue };
            if let Some(message) = self.tell(&event, &payload) {
                self.alive.reset();
                return Some(message);
            }
        }
        None
    }

    /// What to send of an event; nothing of those that only commands ask for.
    fn tell(&mut self, event: &Event, payload: &[u8]) -> Option<Bytes> {
        if let Event::Started { geometry, preview, .. } = event {
            self.look = Some((*geometry, preview.clone()));
        }
        self.ended = matches!(event, Event::Finished { .. } | Event::Failed { .. });
        let (name, mut said) = named(event)?;
        match event {
            Event::Probed { .. } => return None,
            // Numbers that only make a picture of a latent, which is what is told.
            Event::Started { .. } => drop(said.remove("preview")),
            Event::Step { .. } => {
                let shown = self.shown(payload).map(|png| preview::data_uri(&png));
                said.insert("preview".to_owned(), shown.into());
            }
            Event::Finished { .. } => {
                said.insert("image".to_owned(), image_path(self.job).into());
            }
            _ => {}
        }
        self.sent += 1;
        let said = Value::Object(said);
        Some(Bytes::from(format!("id: {}\nevent: {name}\ndata: {said}\n\n", self.sent)))
    }
}

impl Follower {
    /// What a latent shows.
    fn shown(&self, latent: &[u8]) -> Option<Vec<u8>> {
        let (geometry, map) = self.look.as_ref()?;
        let shown = preview::png(latent, *geometry, map.as_ref(), 1);
        shown.unwrap_or_else(|refusal| {
            tracing::warn!("{}: {refusal}", self.job);
            None
        })
    }
}

/// An event's name, and what it says.
fn named(event: &Event) -> Option<(String, Map<String, Value>)> {
    let Ok(Value::Object(event)) = serde_json::to_value(event) else { return None };
    let (name, said) = event.into_iter().next()?;
    let Value::Object(said) = said else { return None };
    Some((name, said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::message::Phase;
    use protocol::{Fault, FaultKind};

    #[test]
    fn events_are_named_and_flat() {
        let (name, said) = named(&Event::Phase { phase: Phase::TextEncoding }).unwrap();
        assert_eq!(
            (&*name, Value::Object(said)),
            ("phase", serde_json::json!({"phase": "text_encoding"}))
        );
        let fault = Fault::new(FaultKind::Cancelled, "two\nlines");
        let (name, said) = named(&Event::Failed { fault }).unwrap();
        assert_eq!((&*name, &said["fault"]["kind"]), ("failed", &"cancelled".into()));
        assert!(!Value::Object(said).to_string().contains('\n'), "data is one line");
    }
}
