//! What became of jobs, sent to an OpenTelemetry collector: a trace for each job, once it has ended.

mod spans;

use crate::job::store::EndedJob;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use protocol::RELEASE;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use std::{io, thread};

/// Jobs that wait to be sent: more than end while a collector is asked once.
const WAITING_MAX: usize = 64;
/// How long a collector may take: nothing but its traces waits for it.
const PATIENCE: Duration = Duration::from_secs(10);
/// What people call this process where traces of many are.
const SERVICE: &str = "tessera-coordinator";

/// Why traces cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The address is none, or what the environment says beside it makes no sense.
    #[error(
        "traces cannot be sent to {url}: {cause}; give the collector's OTLP address over HTTP, like http://127.0.0.1:4318"
    )]
    Address {
        /// What was given.
        url: String,
        /// What is wrong.
        cause: String,
    },
    /// There is no thread for it.
    #[error("traces cannot be sent: {0}")]
    Thread(#[from] io::Error),
}

/// Sends what is put into the answer to the collector at `url`, from a thread of its own. What it cannot take is said and
/// left out: `coordinator trace` still has it.
///
/// # Errors
/// If the URL is none.
pub fn export_to(url: &str) -> Result<SyncSender<EndedJob>, TelemetryError> {
    let wrong = |cause: String| TelemetryError::Address { url: url.to_owned(), cause };
    if !(url.starts_with("http://") || url.starts_with("https://")) {
        return Err(wrong("it does not begin with http:// or https://".to_owned()));
    }
    let endpoint = format!("{}/v1/traces", url.trim_end_matches('/'));
    let agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE));
    let client = Client(agent.http_status_as_error(false).build().new_agent());
    let exporter = SpanExporter::builder().with_http().with_http_client(client);
    let exporter = exporter.with_endpoint(endpoint).with_timeout(PATIENCE).build();
    let mut exporter = exporter.map_err(|error| wrong(error.to_string()))?;
    let version = opentelemetry::KeyValue::new("service.version", RELEASE);
    let resource = Resource::builder().with_service_name(SERVICE).with_attribute(version);
    exporter.set_resource(&resource.build());
    let (ended, to_send) = sync_channel(WAITING_MAX);
    let named = thread::Builder::new().name("telemetry".to_owned());
    named.spawn(move || send(&exporter, &to_send))?;
    Ok(ended)
}

fn send(exporter: &SpanExporter, ended: &Receiver<EndedJob>) {
    for job in ended {
        let number = job.job.0;
        if let Err(error) = pollster::block_on(exporter.export(spans::of(&job))) {
            tracing::warn!(job = number, "its trace was not taken by the collector: {error}");
        }
    }
}

/// Asks over HTTP, and waits for the answer.
#[derive(Debug)]
struct Client(ureq::Agent);

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = self.0.run(request.map(|body| body.to_vec()))?.into_parts();
        let body = body.into_with_config().read_to_vec()?;
        Ok(Response::from_parts(parts, body.into()))
    }
}
