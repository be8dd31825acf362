//! A job that ended as the spans of a trace:
//!
//! ```text
//! render ─┬─ queued
//!         └─ run 1 ─┬─ rank 0 ─┬─ text encoding
//!                   │          ├─ call 0
//!                   │          └─ ...
//!                   └─ rank 1 ─── ...
//! ```

use crate::job::store::EndedJob;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use protocol::RELEASE;
use protocol::message::{Event, JobTrace, PartTrace, Phase, RunTrace};
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

/// From when to when, in microseconds since 1970.
type Extent = (u64, u64);

/// The trace of `job`.
pub(super) fn of(job: &EndedJob) -> Vec<SpanData> {
    let trace = job.events.iter().find_map(|event| match event {
        Event::Traced { trace } => Some(trace),
        _ => None,
    });
    let mut spans = Spans::new(job);
    // The job's times are whole seconds; what ranks did is known better.
    let begun = trace.map(|trace| trace.start_us);
    let accepted = begun.unwrap_or(u64::MAX).min(micros(job.accepted));
    let last = trace.and_then(last_part).unwrap_or(accepted);
    let root =
        spans.add(None, "render".into(), (accepted, last.max(micros(job.ended))), attributes(job));
    if let Some(Event::Failed { fault }) = job.events.last()
        && let Some(span) = spans.all.first_mut()
    {
        span.status = Status::error(fault.to_string());
    }
    if let Some(trace) = trace {
        spans.add(Some(root), "queued".into(), (accepted, trace.start_us), Vec::new());
        for (number, run) in (1..).zip(&trace.runs) {
            spans.add_run(root, trace, (number, run));
        }
    }
    spans.all
}

/// When the last rank reported, in microseconds since 1970.
fn last_part(trace: &JobTrace) -> Option<u64> {
    let parts = trace.runs.iter().flat_map(|run| &run.parts);
    parts.map(|part| trace.start_us + part.end_us).max()
}

fn attributes(job: &EndedJob) -> Vec<KeyValue> {
    let number = i64::try_from(job.job.0).unwrap_or(i64::MAX);
    let mut attributes = vec![
        KeyValue::new("tessera.job", number),
        KeyValue::new("tessera.owner", job.asked.owner.clone()),
        KeyValue::new("tessera.priority", job.asked.priority.name()),
    ];
    let started = job.events.iter().find(|event| matches!(event, Event::Started { .. }));
    if let Some(Event::Started { spec, model, bands, .. }) = started {
        attributes.extend([
            KeyValue::new("tessera.model", model.clone()),
            KeyValue::new("tessera.width", i64::from(spec.width)),
            KeyValue::new("tessera.height", i64::from(spec.height)),
            KeyValue::new("tessera.steps", i64::from(spec.steps)),
            KeyValue::new("tessera.mode", spec.mode.to_string()),
            KeyValue::new("tessera.ranks", i64::try_from(bands.len()).unwrap_or(i64::MAX)),
        ]);
    }
    attributes
}

/// The spans of one trace so far.
struct Spans {
    trace: TraceId,
    scope: InstrumentationScope,
    all: Vec<SpanData>,
}

impl Spans {
    /// The job's number and time are those of its trace, too: it is the same whoever sends it.
    fn new(job: &EndedJob) -> Self {
        let name = format!("tessera {} {} {}", job.job.0, job.accepted, job.asked.seed);
        let digest = blake3::hash(name.as_bytes());
        let mut trace = [0; 16];
        trace.copy_from_slice(&digest.as_bytes()[..16]);
        let scope = InstrumentationScope::builder("tessera").with_version(RELEASE).build();
        Self { trace: TraceId::from_bytes(trace), scope, all: Vec::new() }
    }

    fn add(
        &mut self,
        parent: Option<SpanId>,
        name: Cow<'static, str>,
        (start, end): Extent,
        attributes: Vec<KeyValue>,
    ) -> SpanId {
        let id = SpanId::from(self.all.len() as u64 + 1);
        let sampled = TraceFlags::SAMPLED;
        self.all.push(SpanData {
            span_context: SpanContext::new(self.trace, id, sampled, false, TraceState::NONE),
            parent_span_id: parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name,
            start_time: time(start),
            end_time: time(end.max(start)),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.scope.clone(),
        });
        id
    }

    fn add_run(&mut self, root: SpanId, trace: &JobTrace, (number, run): (u32, &RunTrace)) {
        let parts = || run.parts.iter();
        let Some(extent) = extent(trace, parts()) else { return };
        let mut fabrics: Vec<String> =
            run.links.iter().map(|link| link.fabric.to_string()).collect();
        fabrics.sort_unstable();
        fabrics.dedup();
        let attributes = vec![KeyValue::new("tessera.fabrics", fabrics.join(","))];
        let id = self.add(Some(root), format!("run {number}").into(), extent, attributes);
        for band in &run.bands {
            let own = || parts().filter(|part| part.rank == band.rank);
            let Some(extent) = self::extent(trace, own()) else { continue };
            let attributes = vec![
                KeyValue::new("tessera.worker", band.worker.clone()),
                KeyValue::new("tessera.top", i64::from(band.top)),
                KeyValue::new("tessera.rows", i64::from(band.rows)),
            ];
            let name = format!("rank {}", band.rank).into();
            let rank = self.add(Some(id), name, extent, attributes);
            own().for_each(|part| self.add_part(rank, trace, part));
        }
    }

    fn add_part(&mut self, rank: SpanId, trace: &JobTrace, part: &PartTrace) {
        let name = match part.phase {
            Phase::TextEncoding => "text encoding".into(),
            Phase::Denoising => format!("call {}", part.call).into(),
            Phase::Decoding => "decoding".into(),
        };
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let attributes = vec![
            KeyValue::new("tessera.displaced", part.displaced),
            KeyValue::new("tessera.waited_us", signed(part.waited_us)),
            KeyValue::new("tessera.posted_bytes", signed(part.posted_bytes)),
        ];
        self.add(Some(rank), name, of_part(trace, part), attributes);
    }
}

fn of_part(trace: &JobTrace, part: &PartTrace) -> Extent {
    let end = trace.start_us + part.end_us;
    (end.saturating_sub(part.took_us), end)
}

/// From when to when these parts are.
fn extent<'a>(trace: &JobTrace, parts: impl Iterator<Item = &'a PartTrace>) -> Option<Extent> {
    parts
        .map(|part| of_part(trace, part))
        .reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
}

fn micros(seconds: u64) -> u64 {
    seconds.saturating_mul(1_000_000)
}

fn time(micros: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
}
