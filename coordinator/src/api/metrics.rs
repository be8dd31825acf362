//! Figures for Prometheus. What this process cannot know is left out.

use super::Api;
use super::error::Refusal;
use crate::director::Tallies;
use actix_web::{HttpResponse, web};
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::{Atomic, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{self, Gauge};
use prometheus_client::registry::Registry;
use protocol::job::Priority;
use protocol::message::ClusterView;
use protocol::plan::{Fabric, Kind};
use std::sync::atomic::AtomicU64;

/// Names and values that tell figures of one name apart.
type Labels = Vec<(&'static str, String)>;

/// Figures for Prometheus.
#[utoipa::path(
    get, operation_id = "fetch_metrics", path = "/metrics", tag = "service",
    responses((status = 200, description = "Figures in Prometheus' text format", content_type = "text/plain", body = String), super::openapi::Refusals)
)]
pub(super) async fn show(api: web::Data<Api>) -> Result<HttpResponse, Refusal> {
    let (cluster, tallies) = api.gauge().await?;
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry(&cluster, &tallies))
        .map_err(|error| Refusal::internal(error.to_string()))?;
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(HttpResponse::Ok().content_type(kind).body(text))
}

fn registry(cluster: &ClusterView, tallies: &Tallies) -> Registry {
    let mut registry = Registry::with_prefix("tessera");
    let release = [(vec![("release", cluster.release.clone())], 1.0)];
    gauges(&mut registry, "build_info", "The coordinator's release", release);
    gauges(
        &mut registry,
        "up_seconds",
        "Seconds since it started",
        [(Vec::new(), float(cluster.up_seconds))],
    );
    let queued = Priority::ALL
        .iter()
        .zip(&tallies.waiting)
        .map(|(priority, count)| (vec![("priority", priority.to_string())], float(*count)));
    gauges(&mut registry, "queue_jobs", "Jobs that wait, by priority", queued);
    let running = cluster.jobs.iter().filter(|job| job.progress.is_some()).count();
    gauges(&mut registry, "running_jobs", "Jobs that are rendered", [(Vec::new(), float(running))]);
    of_jobs(&mut registry, tallies);
    of_workers(&mut registry, cluster);
    registry
}

fn of_jobs(registry: &mut Registry, tallies: &Tallies) {
    count(registry, "accepted_jobs", "Jobs that were taken in", tallies.accepted);
    count(registry, "refused_jobs", "Jobs that were not", tallies.refused);
    let ends = [
        ("finished", tallies.finished),
        ("failed", tallies.failed),
        ("cancelled", tallies.cancelled),
    ];
    let family = Family::<Labels, Counter>::default();
    for (end, jobs) in ends {
        family.get_or_create(&vec![("end", end.to_owned())]).inner().store(jobs, ORDER);
    }
    registry.register("ended_jobs", "Jobs that ended, by how", family);
    count(
        registry,
        "interruptions",
        "How often a job broke off, to go on or to fail",
        tallies.interrupted,
    );
    count(registry, "calls", "Model calls done", tallies.calls);
    let displaced = "Model calls in which peers' values were one call old, or older";
    count(registry, "displaced_calls", displaced, tallies.displaced_calls);
    seconds(
        registry,
        "call_seconds",
        "Seconds that model calls took on their slowest ranks",
        tallies.call_seconds,
    );
    let waited =
        "Seconds of them that the rank waited for peers that waited longest: exposed communication";
    seconds(registry, "waited_seconds", waited, tallies.waited_seconds);
    of_exchange(registry, tallies);
    let lost = "Workers that left without being asked to";
    count(registry, "lost_workers", lost, tallies.workers_lost);
}

fn of_exchange(registry: &mut Registry, tallies: &Tallies) {
    let posted = Family::<Labels, Counter>::default();
    for (fabric, kinds) in Fabric::ALL.iter().zip(&tallies.posted_bytes) {
        for (kind, bytes) in Kind::ALL.iter().zip(kinds).filter(|(_, bytes)| **bytes > 0) {
            let labels =
                vec![("fabric", fabric.name().to_owned()), ("kind", kind.name().to_owned())];
            posted.get_or_create(&labels).inner().store(*bytes, ORDER);
        }
    }
    registry.register("posted_bytes", "Bytes that ranks posted to peers", posted);
    let read = Family::<Labels, Counter>::default();
    for (age, values) in ["0", "1"].iter().zip(tallies.read) {
        read.get_or_create(&vec![("age_calls", (*age).to_owned())]).inner().store(values, ORDER);
    }
    let help = "Values of peers that ranks read over links, by how many calls old they were: 1 is one or more";
    registry.register("read_values", help, read);
}

fn of_workers(registry: &mut Registry, cluster: &ClusterView) {
    let states = ["idle", "busy", "draining"].map(|state| {
        let is = |worker: &&protocol::message::WorkerView| match state {
            "draining" => worker.draining,
            "busy" => !worker.draining && worker.busy.is_some(),
            _ => !worker.draining && worker.busy.is_none(),
        };
        let count = cluster.workers.iter().filter(is).count();
        (vec![("state", state.to_owned())], float(count))
    });
    gauges(registry, "workers", "Workers that are there, by what they do", states);
    let each = |of: fn(&protocol::message::WorkerView) -> u64| {
        let worker = move |worker: &protocol::message::WorkerView| {
            let labels = vec![("worker", worker.name.clone()), ("id", worker.id.0.to_string())];
            (labels, float(of(worker)))
        };
        cluster.workers.iter().map(worker).collect::<Vec<_>>()
    };
    let speed =
        "Latent pixels a second of one prediction, as measured when it joined and by each job";
    gauges(registry, "worker_speed_pixels_per_second", speed, each(|worker| worker.speed));
    let resident = "Memory that is resident in the worker's process";
    gauges(registry, "worker_resident_bytes", resident, each(|worker| worker.resident_bytes));
}

const ORDER: std::sync::atomic::Ordering = std::sync::atomic::Ordering::Relaxed;

fn count(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter: Counter = Counter::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn seconds(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let counter = Counter::<f64, AtomicU64>::default();
    counter.inner().inc_by(value);
    registry.register(name, help, counter);
}

fn gauges(
    registry: &mut Registry,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (Labels, f64)>,
) {
    let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
    for (labels, value) in values {
        gauge::Atomic::set(family.get_or_create(&labels).inner(), value);
    }
    registry.register(name, help, family);
}

/// A count as the figure that it is.
#[expect(
    clippy::cast_precision_loss,
    reason = "figures are floating point numbers, and these far below 2^52"
)]
fn float(count: impl TryInto<u64>) -> f64 {
    count.try_into().unwrap_or(u64::MAX) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_what_happened() {
        let cluster = ClusterView {
            release: "9".to_owned(),
            up_seconds: 7,
            model: None,
            workers: Vec::new(),
            pairs: Vec::new(),
            jobs: Vec::new(),
        };
        let (waiting, call_seconds) = ([0, 1, 2], 1.5);
        let tallies = Tallies {
            finished: 3,
            call_seconds,
            calls: 6,
            waiting,
            read: [5, 9],
            ..Tallies::default()
        };
        let mut tallies = tallies;
        tallies.posted_bytes[3][2] = 77;
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry(&cluster, &tallies)).unwrap();
        for line in [
            "tessera_build_info{release=\"9\"} 1",
            "tessera_up_seconds 7",
            "tessera_queue_jobs{priority=\"high\"} 2",
            "tessera_ended_jobs_total{end=\"finished\"} 3",
            "tessera_calls_total 6",
            "tessera_posted_bytes_total{fabric=\"quic\",kind=\"keys_values\"} 77",
            "tessera_read_values_total{age_calls=\"1\"} 9",
            "tessera_call_seconds_total 1.5",
            "tessera_workers{state=\"busy\"} 0",
            "# TYPE tessera_call_seconds_total counter",
        ] {
            assert!(
                text.lines().any(|said| said.starts_with(line)),
                "{line} is missing in:\n{text}"
            );
        }
    }
}
