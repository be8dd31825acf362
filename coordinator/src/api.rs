//! The HTTP interface: jobs, their events and images, the cluster, and what watches over a service asks for.
//!
//! Nothing is decided here but who may call and how much they may ask for: each request is a visit to the coordinator,
//! as a command's connection is. `GET /openapi.json` describes all of it, and is made from this code.

#![allow(unused_qualifications, reason = "utoipa's macros write paths in full")]

pub mod asked;
mod automatic;
mod body;
mod cluster;
mod error;
mod events;
mod files;
mod gate;
mod given;
mod guard;
mod health;
mod image;
mod jobs;
pub mod keys;
pub mod limits;
mod metrics;
mod models;
mod openai;
mod openapi;
mod page;
mod preview;
mod request;
mod schema;
mod server;
mod submission;
mod view;

pub use server::{Server, Settings};
pub(crate) use view::Job;

use crate::actor::Coordinator;
use crate::actor::visit::Visit;
use crate::director::{Standing, Tallies};
use crate::job::queue::WAITING_MAX;
use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpMessage as _, HttpRequest, Resource};
use bytes::Bytes;
use error::Refusal;
use guard::Watchman;
use keys::Key;
use protocol::JobId;
use protocol::message::{ClusterView, FromClient, JobRecord, Part, ToClient};
use serde::Deserialize;
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};
use utoipa::IntoParams;

/// The owner of jobs that are submitted without a key.
const LOCAL: &str = "local";

/// What every request meets.
#[derive(Debug)]
pub(crate) struct Api {
    coordinator: Coordinator,
    watchman: Watchman,
    /// Whose turn it is to have a file judged.
    judging: Semaphore,
    /// Places for those who follow events.
    followers: Arc<Semaphore>,
    /// Becomes true when the coordinator goes away.
    ends: watch::Receiver<bool>,
    /// The jobs of requests in the web UI's words that are being answered.
    in_flight: automatic::InFlight,
    /// The command by which a worker joins.
    join: String,
    /// What describes this interface.
    document: Bytes,
}

/// Who calls.
#[derive(Clone, Debug, Default)]
struct Caller {
    key: Option<Arc<Key>>,
}

/// A job, in a path.
#[derive(Clone, Copy, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(crate) struct JobPath {
    /// The job's number.
    id: u64,
}

impl JobPath {
    fn job(self) -> JobId {
        JobId(self.id)
    }
}

impl Api {
    /// A visit to the coordinator in the name of whoever calls.
    pub(crate) fn visit(&self, request: &HttpRequest) -> Visit {
        let owner = self.owner(request);
        let key = caller(request).key;
        let waiting_max = key.and_then(|key| key.waiting).unwrap_or(WAITING_MAX);
        self.coordinator.visit(Standing { owner, waiting_max })
    }

    /// Whose jobs the caller's are.
    pub(crate) fn owner(&self, request: &HttpRequest) -> String {
        caller(request).key.map_or_else(|| LOCAL.to_owned(), |key| key.name.clone())
    }

    /// A job's record, and the part of it that is wanted.
    pub(crate) async fn show(
        &self,
        request: &HttpRequest,
        job: JobId,
        with: Part,
    ) -> Result<(JobRecord, Bytes), Refusal> {
        record(&mut self.visit(request), FromClient::Show { job, with }).await
    }

    /// How the cluster is, and what happened since it started.
    pub(crate) async fn gauge(&self) -> Result<(ClusterView, Tallies), Refusal> {
        self.coordinator.gauge().await.ok_or_else(Refusal::hung_up)
    }
}

/// Asks for something that is answered with a job.
pub(crate) async fn record(
    visit: &mut Visit,
    ask: FromClient,
) -> Result<(JobRecord, Bytes), Refusal> {
    match visit.ask(ask).await.ok_or_else(Refusal::hung_up)? {
        (ToClient::Job(record), payload) => Ok((*record, payload)),
        (ToClient::Refused(fault), _) => Err(fault.into()),
        (other, _) => Err(unexpected(&other)),
    }
}

fn unexpected(answer: &ToClient) -> Refusal {
    Refusal::internal(format!("unexpected answer {answer:?}"))
}

/// Whoever calls; the guard has said who it is.
fn caller(request: &HttpRequest) -> Caller {
    request.extensions().get::<Caller>().cloned().unwrap_or_default()
}

/// A path, and what it says to other methods than it answers.
fn resource(path: &str, allow: &'static str) -> Resource {
    web::resource(path)
        .default_service(web::to(move || async move { Err::<(), _>(Refusal::method(allow)) }))
}

/// Every path, and who answers.
fn routes(config: &mut ServiceConfig) {
    config
        .app_data(web::PathConfig::default().error_handler(|error, request| {
            let message = format!("nothing is at {}: {error}", request.path());
            Refusal::not_found("unknown_job", message).into()
        }))
        .app_data(
            web::QueryConfig::default()
                .error_handler(|error, _| Refusal::invalid(format!("the query: {error}")).into()),
        )
        .service(
            resource("/v1/jobs", "GET, POST")
                .route(web::get().to(jobs::list))
                .route(web::post().to(jobs::submit)),
        )
        .service(
            resource("/v1/jobs/{id}", "GET, DELETE")
                .route(web::get().to(jobs::show))
                .route(web::delete().to(jobs::cancel)),
        )
        .service(resource("/v1/jobs/{id}/image", "GET").route(web::get().to(image::show)))
        .service(resource("/v1/jobs/{id}/preview", "GET").route(web::get().to(preview::show)))
        .service(resource("/v1/jobs/{id}/events", "GET").route(web::get().to(events::follow)))
        .service(
            resource("/v1/files", "GET, POST")
                .route(web::get().to(files::list))
                .route(web::post().to(files::send)),
        )
        .service(resource("/v1/files/{file}", "GET").route(web::get().to(files::show)))
        .service(resource("/v1/files/{file}/picture", "GET").route(web::get().to(files::picture)))
        .service(resource("/v1/cluster", "GET").route(web::get().to(cluster::show)))
        .service(resource("/v1/models", "GET").route(web::get().to(models::list)))
        .service(resource("/v1/images/generations", "POST").route(web::post().to(openai::generate)))
        .configure(automatic::routes)
        .service(resource("/", "GET").route(web::get().to(page::show)))
        .service(resource("/ui/{file}", "GET").route(web::get().to(page::show)))
        .service(resource("/healthz", "GET").route(web::get().to(health::alive)))
        .service(resource("/readyz", "GET").route(web::get().to(health::ready)))
        .service(resource("/metrics", "GET").route(web::get().to(metrics::show)))
        .service(resource("/openapi.json", "GET").route(web::get().to(openapi::show)));
}
