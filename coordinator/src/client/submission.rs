//! A job that a command submitted, followed to its end: also past the end of the coordinator that took it, if that
//! keeps its jobs.

use super::{Client, ClientError, Destination, GivenFile};
use bytes::Bytes;
use protocol::JobId;
use protocol::job::{JobRequest, Terms};
use protocol::message::{Event, ToClient};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long a coordinator that went away may take to come back: a supervisor starts it again within seconds, a
/// machine within two minutes.
pub const RETURN_PATIENCE: Duration = Duration::from_secs(120);
/// How often it is called meanwhile.
const CALL_EVERY: Duration = Duration::from_millis(250);

/// A job, and the connection on which its events come.
#[derive(Debug)]
pub struct Submission {
    to: Destination,
    client: Option<Client>,
    job: JobId,
    ahead: u32,
    kept: bool,
    /// Whether its leaving cancels the job, unless that is detached.
    owns: bool,
}

impl Submission {
    /// Submits a job. Dropping this cancels it.
    ///
    /// # Errors
    /// If there is no coordinator, or it does not take the job.
    pub async fn new(to: &Destination, request: JobRequest) -> Result<Self, ClientError> {
        Self::on_terms(to, request, Terms::default()).await
    }

    /// Submits a job on these terms. Dropping this cancels it, unless they say that it is detached.
    ///
    /// # Errors
    /// If there is no coordinator, or it does not take the job.
    pub async fn on_terms(
        to: &Destination,
        request: JobRequest,
        terms: Terms,
    ) -> Result<Self, ClientError> {
        Self::with_files(to, request, terms, &[]).await
    }

    /// The same, of a job that is rendered with these files.
    ///
    /// # Errors
    /// If there is no coordinator, or it does not take a file or the job.
    pub async fn with_files(
        to: &Destination,
        request: JobRequest,
        terms: Terms,
        files: &[GivenFile],
    ) -> Result<Self, ClientError> {
        let (mut client, owns) = (Client::connect(to).await?, !terms.detached);
        for file in files {
            client.put(file).await?;
        }
        let (job, ahead, kept) = client.submit(request, terms).await?;
        Ok(Self { to: to.clone(), client: Some(client), job, ahead, kept, owns })
    }

    /// Follows a job, whoever submitted it, without payloads. Dropping this leaves it alone.
    ///
    /// # Errors
    /// If there is no coordinator, or no such job.
    pub async fn watch(to: &Destination, job: JobId) -> Result<Self, ClientError> {
        let mut client = Client::connect(to).await?;
        let (job, ahead, kept) = client.watch(job, false).await?;
        Ok(Self { to: to.clone(), client: Some(client), job, ahead, kept, owns: false })
    }

    /// Its number.
    #[must_use]
    pub fn job(&self) -> JobId {
        self.job
    }

    /// How many jobs were before it when it was taken.
    #[must_use]
    pub fn ahead(&self) -> u32 {
        self.ahead
    }

    /// Whether it outlives the coordinator's process.
    #[must_use]
    pub fn kept(&self) -> bool {
        self.kept
    }

    /// The next event and its payload. If the coordinator is lost but keeps the job, a notice says so, and the
    /// next event is one of its successor's.
    ///
    /// # Errors
    /// If the coordinator is lost, and does not keep the job or is not back within [`RETURN_PATIENCE`].
    pub async fn next(&mut self) -> Result<(Event, Bytes), ClientError> {
        loop {
            let client = match &mut self.client {
                Some(client) => client,
                None => self.client.insert(come_back(&self.to, self.job, self.owns).await?),
            };
            match client.next().await {
                Ok((ToClient::Event { event, .. }, payload)) => return Ok((event, payload)),
                Ok(_) => {}
                Err(lost @ ClientError::Lost { .. }) if self.kept => {
                    self.client = None;
                    let text = format!("{lost}; it keeps {}, and is called again", self.job);
                    return Ok((Event::Notice { text }, Bytes::new()));
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Calls the coordinator until it is there again, and follows the job.
async fn come_back(to: &Destination, job: JobId, owns: bool) -> Result<Client, ClientError> {
    let deadline = Instant::now() + RETURN_PATIENCE;
    loop {
        let followed = async {
            let mut client = Client::connect(to).await?;
            if owns {
                client.follow(job).await?;
            } else {
                client.watch(job, false).await?;
            }
            Ok(client)
        };
        match followed.await {
            Err(ClientError::Absent { .. } | ClientError::Lost { .. })
                if Instant::now() < deadline => {}
            done => return done,
        }
        sleep(CALL_EVERY).await;
    }
}
