//! A job's way in, whichever interface it comes by.

use super::error::Refusal;
use super::{Api, caller, limits, record, unexpected};
use actix_web::HttpRequest;
use protocol::job::{JobRequest, Priority, Terms};
use protocol::message::{FromClient, JobRecord, Part, ToClient};

/// The header by which a submission that is sent again is known.
pub(super) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// A job that was taken in.
#[derive(Debug)]
pub(crate) struct Submitted {
    pub(crate) record: JobRecord,
    /// Whether it was taken in before, by the same idempotency key.
    pub(crate) again: bool,
}

impl Api {
    /// Takes a job in, within the limits of this server and of the caller's key. It goes on when the caller leaves.
    pub(crate) async fn submit(
        &self,
        request: &HttpRequest,
        asked: JobRequest,
        priority: Priority,
    ) -> Result<Submitted, Refusal> {
        let idempotency_key = idempotency_key(request)?;
        self.admit(request, &asked, 1).await?;
        let mut visit = self.visit(request);
        let terms = Terms { detached: true, priority, idempotency_key };
        let submit = FromClient::Submit { request: Box::new(asked), terms };
        let (job, again) = match visit.ask(submit).await.ok_or_else(Refusal::hung_up)?.0 {
            ToClient::Accepted { job, again, .. } => (job, again),
            ToClient::Refused(fault) => return Err(fault.into()),
            other => return Err(unexpected(&other)),
        };
        // The first visit hears of the job from now on.
        let show = FromClient::Show { job, with: Part::Record };
        let (record, _) = record(&mut self.visit(request), show).await?;
        Ok(Submitted { record, again })
    }

    /// Checks that the caller may ask for this, so many times.
    pub(crate) async fn admit(
        &self,
        request: &HttpRequest,
        asked: &JobRequest,
        times: u32,
    ) -> Result<(), Refusal> {
        let key = caller(request).key;
        let native = self.native(asked).await?;
        limits::check(asked, key.as_deref(), native)?;
        self.watchman.take(key.as_deref(), times)
    }

    /// The model's own size, if the request leaves a side to it.
    async fn native(&self, asked: &JobRequest) -> Result<Option<(u32, u32)>, Refusal> {
        if asked.width.is_some() && asked.height.is_some() {
            return Ok(None);
        }
        Ok(self.gauge().await?.0.model.map(|card| card.native))
    }
}

fn idempotency_key(request: &HttpRequest) -> Result<Option<String>, Refusal> {
    let Some(key) = request.headers().get(IDEMPOTENCY_KEY) else { return Ok(None) };
    let most = limits::IDEMPOTENCY_KEY_MAX;
    let key = key.to_str().ok().filter(|key| (1..=most).contains(&key.len()));
    let key = key.ok_or_else(|| {
        let message = format!("{IDEMPOTENCY_KEY} has 1 to {most} printable ASCII characters");
        Refusal::invalid(message).about(IDEMPOTENCY_KEY)
    })?;
    Ok(Some(key.to_owned()))
}
