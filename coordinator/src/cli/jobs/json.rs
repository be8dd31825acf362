//! A job as JSON.

use protocol::message::{JobRecord, JobStage};
use serde_json::{Value, json};

/// What became of a job: as `GET /v1/jobs/ID` has it.
pub(super) fn of(record: &JobRecord) -> Value {
    let fault = record.fault.as_ref().map(|fault| {
        json!({
            "kind": fault.kind,
            "message": fault.cause,
            "rank": fault.rank,
            "call": fault.call,
        })
    });
    let (interrupted, error) = if record.stage.is_end() { (None, fault) } else { (fault, None) };
    let progress = record.progress.map(|(call, calls)| json!({ "call": call, "calls": calls }));
    let finished = record.stage == JobStage::Finished;
    json!({
        "id": record.id,
        "state": record.stage,
        "priority": record.priority,
        "owner": record.owner,
        "request": record.request,
        "seed": record.seed,
        "accepted": record.accepted,
        "started": record.started,
        "ended": record.ended,
        "ahead": record.ahead,
        "spec": record.spec,
        "model": record.model,
        "progress": progress,
        "bands": record.bands,
        "reason": record.reason,
        "interrupted": interrupted,
        "error": error,
        "result": record.result,
        "image": finished.then(|| format!("/v1/jobs/{}/image", record.id.0)),
    })
}
