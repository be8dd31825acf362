//! Jobs: submitted, listed, shown and cancelled.

use super::body::read_json;
use super::error::Refusal;
use super::limits::{BODY_BYTES_MAX, JOBS_MAX};
use super::request::RequestBody;
use super::view::Job;
use super::{Api, JobPath, caller, record, unexpected};
use actix_web::http::header::LOCATION;
use actix_web::{HttpRequest, HttpResponse, web};
use protocol::JobId;
use protocol::job::JobRequest;
use protocol::message::{FromClient, JobStage, Part, ToClient};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// How many jobs are listed, if nobody says.
const JOBS_DEFAULT: u16 = 50;

/// Which jobs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct JobsQuery {
    /// So many at most; fewer come if they are long.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u16>,
    /// Those submitted before this one.
    before: Option<u64>,
    /// Those that are at one of these stages, with commas between them.
    #[param(
        pattern = "^(queued|running|interrupted|finished|failed|cancelled)(,(queued|running|interrupted|finished|failed|cancelled))*$"
    )]
    state: Option<String>,
    /// An API key, where a header cannot be sent.
    #[serde(rename = "key")]
    _key: Option<String>,
}

/// Jobs, those submitted last first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobList {
    jobs: Vec<Job>,
    /// What to give as `before` for those submitted before these; null if there are none.
    next: Option<u64>,
}

/// Submit a job.
///
/// It is rendered whether or not anyone waits for it. With an `Idempotency-Key` it can be sent again: the answer is then
/// the job that was made of it the first time.
#[utoipa::path(
    post, operation_id = "submit_job", path = "/v1/jobs", tag = "jobs", request_body = RequestBody,
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255, description = "A name of the caller's own for this submission")),
    responses(
        (status = 202, description = "It is in the queue", body = Job, headers(("Location" = String, description = "Where it is"))),
        (status = 200, description = "It was submitted before, with the same key", body = Job, headers(("Location" = String, description = "Where it is"))),
        (status = 409, description = "The key was used for another request", body = super::error::ErrorBody),
        (status = 413, description = "The body is too large", body = super::error::ErrorBody),
        (status = 415, description = "The body is not said to be JSON", body = super::error::ErrorBody),
        (status = 429, description = "The queue is full, or the key has used up its minute", body = super::error::ErrorBody, headers(("Retry-After" = u64, description = "Seconds"))),
        super::openapi::Refusals,
    )
)]
pub(super) async fn submit(
    request: HttpRequest,
    api: web::Data<Api>,
    payload: web::Payload,
) -> Result<HttpResponse, Refusal> {
    let mut body: RequestBody = read_json(&request, payload, BODY_BYTES_MAX).await?;
    let (priority, files) = (body.priority(), body.take_given());
    let given = api.give(&request, JobRequest::from(body), files).await?;
    let submitted = api.submit(&request, given.request.clone(), priority).await?;
    let mut answer = if submitted.again { HttpResponse::Ok() } else { HttpResponse::Accepted() };
    let job = Job::from(&submitted.record);
    Ok(answer.insert_header((LOCATION, format!("/v1/jobs/{}", job.id))).json(job))
}

/// List jobs.
#[utoipa::path(
    get, operation_id = "list_jobs", path = "/v1/jobs", tag = "jobs", params(JobsQuery),
    responses((status = 200, description = "Jobs, those submitted last first", body = JobList), super::openapi::Refusals)
)]
pub(super) async fn list(
    request: HttpRequest,
    api: web::Data<Api>,
    query: web::Query<JobsQuery>,
) -> Result<web::Json<JobList>, Refusal> {
    let limit = query.limit.unwrap_or(JOBS_DEFAULT);
    if !(1..=JOBS_MAX).contains(&limit) {
        let message = format!("limit {limit} is not one of 1 to {JOBS_MAX}");
        return Err(Refusal::invalid(message).about("limit"));
    }
    let last = query.before.filter(|before| i64::try_from(*before).is_err());
    if let Some(before) = last {
        let message = format!("before {before} is no job's number: the largest is {}", i64::MAX);
        return Err(Refusal::invalid(message).about("before"));
    }
    let stages = query.state.as_deref().map_or_else(|| Ok(Vec::new()), stages)?;
    let ask = FromClient::Jobs { before: query.before.map(JobId), limit, stages };
    match api.visit(&request).ask(ask).await.ok_or_else(Refusal::hung_up)?.0 {
        ToClient::Jobs { jobs, more } => {
            let next = jobs.last().filter(|_| more).map(|record| record.id.0);
            Ok(web::Json(JobList { jobs: jobs.iter().map(Job::from).collect(), next }))
        }
        ToClient::Refused(fault) => Err(fault.into()),
        other => Err(unexpected(&other)),
    }
}

fn stages(text: &str) -> Result<Vec<JobStage>, Refusal> {
    let stage = |name: &str| {
        let known = JobStage::ALL.iter().copied().find(|stage| stage.name() == name);
        known.ok_or_else(|| {
            let all: Vec<&str> = JobStage::ALL.iter().map(|stage| stage.name()).collect();
            let message = format!("unknown state `{name}`; there are {}", all.join(" "));
            Refusal::invalid(message).about("state")
        })
    };
    text.split(',').map(stage).collect()
}

/// Show a job.
#[utoipa::path(
    get, operation_id = "show_job", path = "/v1/jobs/{id}", tag = "jobs", params(JobPath),
    responses((status = 200, description = "What became of it", body = Job), super::openapi::Refusals)
)]
pub(super) async fn show(
    request: HttpRequest,
    api: web::Data<Api>,
    path: web::Path<JobPath>,
) -> Result<web::Json<Job>, Refusal> {
    let (record, _) = api.show(&request, path.job(), Part::Record).await?;
    Ok(web::Json(Job::from(&record)))
}

/// Cancel a job.
///
/// It ends at the next model call, on all workers. With a key only the jobs that were submitted with it can be cancelled.
#[utoipa::path(
    delete, operation_id = "cancel_job", path = "/v1/jobs/{id}", tag = "jobs", params(JobPath),
    responses(
        (status = 202, description = "It is cancelled", body = Job),
        (status = 409, description = "It has ended", body = super::error::ErrorBody),
        super::openapi::Refusals,
    )
)]
pub(super) async fn cancel(
    request: HttpRequest,
    api: web::Data<Api>,
    path: web::Path<JobPath>,
) -> Result<HttpResponse, Refusal> {
    let job = path.job();
    let mut visit = api.visit(&request);
    if let Some(key) = caller(&request).key {
        let (found, _) = record(&mut visit, FromClient::Show { job, with: Part::Record }).await?;
        if found.owner != key.name {
            let message =
                format!("{job} is {}'s: the key `{}` cannot cancel it", found.owner, key.name);
            return Err(Refusal::forbidden("not_owner", message));
        }
    }
    let (record, _) = record(&mut visit, FromClient::Cancel(job)).await?;
    Ok(HttpResponse::Accepted().json(Job::from(&record)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_named_with_commas() {
        assert_eq!(stages("queued,running"), Ok(vec![JobStage::Queued, JobStage::Running]));
        for wrong in ["", "queued,", "Queued", "done"] {
            let refusal = stages(wrong).unwrap_err();
            assert!(refusal.message.contains("interrupted"), "{refusal}");
            assert_eq!(refusal.param.as_deref(), Some("state"));
        }
    }
}
