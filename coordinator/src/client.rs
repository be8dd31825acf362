//! A command's connection to a coordinator.

mod given;
mod submission;

pub use given::GivenFile;
pub use submission::{RETURN_PATIENCE, Submission};

use bytes::Bytes;
use protocol::codec::Limits;
use protocol::handshake::{hello, read_greeting};
use protocol::identity;
use protocol::job::{FileDigest, JobRequest, Terms};
use protocol::message::{ClusterView, FromClient, JobRecord, JobStage, Part, Role, ToClient};
use protocol::plan::Fabric;
use protocol::tls::Security;
use protocol::transport::connection::{Reading, Writing};
use protocol::transport::stream::{FrameReader, FrameWriter};
use protocol::{Fault, FaultKind, JobId, Version, WorkerId};
use std::fmt;
use std::time::Duration;
use tokio::time::timeout;

/// How long a coordinator may take to answer: it greets before it does anything else.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Why a coordinator could not be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error(
        "no coordinator answers at {address}: {cause}; start one with `coordinator serve`, or \
         render on this machine alone with `--local N`"
    )]
    Absent {
        /// Where it was looked for.
        address: String,
        /// What the system said.
        cause: String,
    },
    /// A file that a job is rendered with cannot be read.
    #[error("the file {file} cannot be read: {cause}")]
    Unreadable {
        /// Which one.
        file: FileDigest,
        /// What the system said.
        cause: String,
    },
    /// It refused.
    #[error(transparent)]
    Refused(#[from] Fault),
    /// The connection broke.
    #[error("lost the coordinator at {address}: {cause}")]
    Lost {
        /// Where it was.
        address: String,
        /// What the system said.
        cause: String,
    },
}

/// Where a coordinator is, and how to call it.
#[derive(Clone, Debug)]
pub struct Destination {
    /// `HOST:PORT`.
    pub address: String,
    /// How this process and the coordinator prove who they are.
    pub security: Security,
}

/// A connection to a coordinator.
pub struct Client {
    address: String,
    reader: FrameReader<Reading>,
    writer: FrameWriter<Writing>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.address)
    }
}

impl Client {
    /// Connects to a coordinator.
    ///
    /// # Errors
    /// If nobody answers within [`PATIENCE`], or the coordinator is of another release.
    pub async fn connect(to: &Destination) -> Result<Self, ClientError> {
        let absent = |cause: String| ClientError::Absent { address: to.address.clone(), cause };
        match timeout(PATIENCE, Self::greet(to)).await {
            Ok(connected) => connected,
            Err(_) => Err(absent(format!("no answer within {} s", PATIENCE.as_secs()))),
        }
    }

    /// In the newest version that both ends speak.
    async fn greet(to: &Destination) -> Result<Self, ClientError> {
        let greeted = Self::greet_in(to, Version::newest()).await;
        match (&greeted, Version::newest().before()) {
            (Err(ClientError::Refused(fault)), Some(before))
                if fault.kind == FaultKind::VersionMismatch =>
            {
                Self::greet_in(to, before).await.or(greeted)
            }
            _ => greeted,
        }
    }

    async fn greet_in(to: &Destination, version: Version) -> Result<Self, ClientError> {
        let Destination { address, security } = to;
        let absent = |cause: &dyn fmt::Display| ClientError::Absent {
            address: address.clone(),
            cause: cause.to_string(),
        };
        let connected = security.connect(address, identity::Role::Coordinator).await;
        let connection = connected.map_err(|error| absent(&error))?;
        let mut reader = FrameReader::new(connection.reading, Limits::CONTROL);
        let mut writer = FrameWriter::new(connection.writing, Limits::FILES);
        reader.set_version(version);
        writer.set_version(version);
        writer.send(&hello(version, Role::Client), &[]).await.map_err(|error| absent(&error))?;
        let secured = || match security {
            Security::Insecure => "; if it was started with an identity, leave --insecure out",
            Security::Mutual(_) => "",
        };
        let frame = reader.next_frame().await;
        let frame = frame.map_err(|error| absent(&format!("{error}{}", secured())))?;
        let closed = || absent(&format!("it closed the connection{}", secured()));
        let frame = frame.ok_or_else(closed)?;
        read_greeting(&frame.body)?;
        Ok(Self { address: address.clone(), reader, writer })
    }

    fn lost(&self, cause: &dyn fmt::Display) -> ClientError {
        ClientError::Lost { address: self.address.clone(), cause: cause.to_string() }
    }

    /// Submits a job; its events come from [`Self::next`]. Dropping the connection cancels it, unless it is
    /// detached. Gives its number, how many are before it, and whether it outlives the coordinator.
    ///
    /// # Errors
    /// If it is refused, or the coordinator is lost.
    pub async fn submit(
        &mut self,
        request: JobRequest,
        terms: Terms,
    ) -> Result<(JobId, u32, bool), ClientError> {
        self.ask_for(&FromClient::Submit { request: Box::new(request), terms }).await
    }

    /// Follows a job, whoever submitted it: its events come from [`Self::next`], with payloads if they are wanted.
    ///
    /// # Errors
    /// If there is no such job, or the coordinator is lost.
    pub async fn watch(
        &mut self,
        job: JobId,
        payloads: bool,
    ) -> Result<(JobId, u32, bool), ClientError> {
        self.ask_for(&FromClient::Watch { job, payloads }).await
    }

    /// Ends a job at its next call boundary, and gives what became of it.
    ///
    /// # Errors
    /// If there is no such job or it has ended, or the coordinator is lost.
    pub async fn cancel(&mut self, job: JobId) -> Result<JobRecord, ClientError> {
        Ok(self.ask_of(&FromClient::Cancel(job)).await?.0)
    }

    /// What became of a job, and a part of it.
    ///
    /// # Errors
    /// If there is no such job, or the coordinator is lost.
    pub async fn show(
        &mut self,
        job: JobId,
        with: Part,
    ) -> Result<(JobRecord, Bytes), ClientError> {
        self.ask_of(&FromClient::Show { job, with }).await
    }

    /// Jobs, those submitted last first, and whether there are more.
    ///
    /// # Errors
    /// If the coordinator is lost, or cannot read what it keeps.
    pub async fn jobs(
        &mut self,
        before: Option<JobId>,
        limit: u16,
        stages: Vec<JobStage>,
    ) -> Result<(Vec<JobRecord>, bool), ClientError> {
        let ask = FromClient::Jobs { before, limit, stages };
        self.writer.send(&ask, &[]).await.map_err(|error| self.lost(&error))?;
        match self.next().await?.0 {
            ToClient::Jobs { jobs, more } => Ok((jobs, more)),
            ToClient::Refused(fault) => Err(fault.into()),
            other => Err(self.lost(&format!("unexpected answer {other:?}"))),
        }
    }

    /// Says something; what answers it comes from [`Self::next`].
    ///
    /// # Errors
    /// If the coordinator is lost.
    pub async fn say(&mut self, message: &FromClient) -> Result<(), ClientError> {
        self.writer.send(message, &[]).await.map_err(|error| self.lost(&error))
    }

    async fn ask_of(&mut self, job: &FromClient) -> Result<(JobRecord, Bytes), ClientError> {
        self.writer.send(job, &[]).await.map_err(|error| self.lost(&error))?;
        match self.next().await? {
            (ToClient::Job(record), payload) => Ok((*record, payload)),
            (ToClient::Refused(fault), _) => Err(fault.into()),
            (other, _) => Err(self.lost(&format!("unexpected answer {other:?}"))),
        }
    }

    /// Follows a job that was submitted before.
    async fn follow(&mut self, job: JobId) -> Result<(JobId, u32, bool), ClientError> {
        self.ask_for(&FromClient::Follow(job)).await
    }

    async fn ask_for(&mut self, job: &FromClient) -> Result<(JobId, u32, bool), ClientError> {
        self.writer.send(job, &[]).await.map_err(|error| self.lost(&error))?;
        match self.next().await?.0 {
            ToClient::Accepted { job, ahead, kept, .. } => Ok((job, ahead, kept)),
            ToClient::Refused(fault) => Err(fault.into()),
            other => Err(self.lost(&format!("unexpected answer {other:?}"))),
        }
    }

    /// Lets a worker, by number or name, finish or hand over what it renders, and leave; comes back when it
    /// has.
    ///
    /// # Errors
    /// If there is no such worker, or the coordinator is lost.
    pub async fn drain(&mut self, worker: String) -> Result<WorkerId, ClientError> {
        let drain = FromClient::Drain(worker);
        self.writer.send(&drain, &[]).await.map_err(|error| self.lost(&error))?;
        match self.next().await?.0 {
            ToClient::Drained(worker) => Ok(worker),
            ToClient::Refused(fault) => Err(fault.into()),
            other => Err(self.lost(&format!("unexpected answer {other:?}"))),
        }
    }

    /// Asks how the cluster is.
    ///
    /// # Errors
    /// If the coordinator is lost.
    pub async fn status(&mut self) -> Result<ClusterView, ClientError> {
        self.writer.send(&FromClient::Status, &[]).await.map_err(|error| self.lost(&error))?;
        match self.next().await?.0 {
            ToClient::Cluster(view) => Ok(*view),
            other => Err(self.lost(&format!("unexpected answer {other:?}"))),
        }
    }

    /// Has the links between workers measured, over each of these fabrics that they share; what is
    /// measured comes from [`Self::next`].
    ///
    /// # Errors
    /// If the coordinator is lost.
    pub async fn netcheck(&mut self, fabrics: Vec<Fabric>) -> Result<(), ClientError> {
        let ask = FromClient::Netcheck { fabrics };
        self.writer.send(&ask, &[]).await.map_err(|error| self.lost(&error))
    }

    /// The next message and its payload.
    ///
    /// # Errors
    /// If the coordinator is lost.
    pub async fn next(&mut self) -> Result<(ToClient, Bytes), ClientError> {
        let next = self.reader.next::<ToClient>().await;
        next.map_err(|error| self.lost(&error))?
            .ok_or_else(|| self.lost(&"it closed the connection"))
    }
}
