//! Messages between the coordinator and its workers and clients.

use super::Profile;
use super::event::{Event, Phase, SiteReport};
use super::view::{ClusterView, JobRecord, JobStage, Part, Traffic};
use crate::fault::Fault;
use crate::id::{JobId, Rank, RunId, WorkerId};
use crate::identity::Token;
use crate::job::{FileDigest, JobRequest, ModelCard, Terms};
use crate::plan::netcheck::LinkFigures;
use crate::plan::{Fabric, Lack, Offer, Plan};
use crate::version;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The first message on a control connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::WIRE_VERSION`] of the caller. Always the first field: it is read before the rest
    /// can be understood.
    pub wire: u16,
    /// [`crate::RELEASE`] of the caller.
    pub release: String,
    /// What the caller is.
    pub role: Role,
}

/// What a caller is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Role {
    /// A worker that wants to render.
    Worker(Box<Join>),
    /// A command that submits, watches or asks.
    Client,
    /// A process that has a token and wants to become one of these: it is answered, and calls again.
    Enrol(Box<Enrolment>),
}

/// What a process shows to be given a certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Enrolment {
    /// What proves that it may have one.
    pub token: Token,
    /// What people will call it.
    pub name: String,
    /// The request for its key's certificate, as PEM.
    pub request: String,
}

/// What a worker tells of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// What its logs call it: host name and process number.
    pub name: String,
    /// Where its peers reach it. An unspecified address means: the one this connection comes from.
    pub listen: SocketAddr,
    /// The fabrics that it offers its peers.
    pub offers: Vec<Offer>,
    /// Those that it does not, and why.
    pub lacks: Vec<Lack>,
    /// What it has loaded.
    pub model: ModelCard,
    /// Compute threads.
    pub threads: u16,
    /// The instruction set its kernels run on.
    pub kernels: String,
    /// Resident memory after loading, in bytes.
    pub resident_bytes: u64,
    /// Latent pixels a second of one prediction, as measured after loading.
    pub speed: u64,
    /// Memory that this machine, or the part of it that this process may use, has left after loading,
    /// in bytes; shared with whatever else runs there.
    pub free_bytes: u64,
}

/// The coordinator's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Greeting {
    /// Come in. Workers learn their number and how often to send [`ToCoordinator::Alive`].
    Welcome {
        /// The worker's number; 0 for clients.
        worker: WorkerId,
        /// A worker unheard of for this long is taken for lost.
        lease_ms: u32,
    },
    /// Stay out, and why.
    Refused(Fault),
    /// You are a member now.
    Enrolled {
        /// The certificate, followed by the authority's, as PEM.
        certificates: String,
    },
}

/// From a worker to the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToCoordinator {
    /// The worker's async side is alive: renews its lease. Answered by [`ToWorker::Alive`].
    Alive {
        /// Resident memory now, in bytes.
        resident_bytes: u64,
        /// How far its compute thread is, if it renders.
        pulse: Option<Pulse>,
    },
    /// The worker wants to leave, and goes once its part of a run is done or given to others:
    /// when [`ToWorker::Leave`] says so.
    Leaving,
    /// Something the user should see, such as a truncated prompt. Said by rank 0 alone.
    Notice {
        /// The run it belongs to.
        run: RunId,
        /// What to show.
        text: String,
    },
    /// This rank entered a phase.
    Entered {
        /// The run it belongs to.
        run: RunId,
        /// The phase.
        phase: Phase,
    },
    /// A sampler step is done. Payload: this band's latent and after it what the sampler remembers of
    /// it, f32 [1 + history, channels, band rows, columns], if the rank is one that reports
    /// ([`Plan::reports`]); else nothing.
    Stepped {
        /// The run it belongs to.
        run: RunId,
        /// Index of the model call this step ended with.
        call: u32,
        /// How many model calls the run makes.
        calls: u32,
        /// Wall-clock time of the call, in microseconds.
        took_us: u64,
        /// How much of it the compute thread waited for peers.
        waited_us: u64,
        /// What was exchanged with peers in the call.
        traffic: Traffic,
        /// Whether peers' values were one call old, or older.
        displaced: bool,
        /// How far keys and values moved since the call before, if the warm-up depends on it:
        /// relative L2, the same on all ranks that measure it.
        change: Option<f32>,
        /// How many tensors the sampler remembers.
        history: u8,
    },
    /// What this rank measured in a run that asked for it.
    Probed {
        /// The run it belongs to.
        run: RunId,
        /// Each site whose values are ever stale.
        sites: Vec<SiteReport>,
    },
    /// Where the time of a phase, or of a call, went in a run that asked for it.
    Profiled {
        /// The run it belongs to.
        run: RunId,
        /// Where it went.
        profile: Profile,
    },
    /// The rows to decode are decoded. Payload: RGB bytes [rows, width, 3], 8 bits a channel.
    Decoded {
        /// The run it belongs to.
        run: RunId,
        /// Wall-clock time of the decode, in microseconds.
        took_us: u64,
        /// How much of it the compute thread waited for peers.
        waited_us: u64,
        /// The most memory that was resident during the run; 0 where the system does not tell.
        peak_bytes: u64,
    },
    /// What was measured of the links of a [`ToWorker::Measure`], to each other rank.
    Measured {
        /// The run it belongs to.
        run: RunId,
        /// The ranks and their links.
        links: Vec<(Rank, LinkFigures)>,
    },
    /// The run failed here. The worker is ready for the next one.
    Failed {
        /// The run it belongs to.
        run: RunId,
        /// Why.
        fault: Fault,
        /// The peers with which links did not open, if that is why: all that is known of what is cut.
        unopened: Vec<Rank>,
    },
    /// The run was aborted as asked ([`ToWorker::Abort`]) and the worker is ready for the next.
    Aborted {
        /// The run it belongs to.
        run: RunId,
    },
    /// All files that the worker holds: said when it comes, and whenever that changes.
    Holds {
        /// Which they are.
        files: Vec<FileDigest>,
    },
    /// A file that was being sent cannot be held.
    Unheld {
        /// Which one.
        file: FileDigest,
        /// Why.
        fault: Fault,
    },
}

/// How far a compute thread is: what tells a long computation from one that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulse {
    /// What it renders.
    pub run: RunId,
    /// Operations begun since the run began.
    pub beats: u64,
    /// The peer whose values it waits for, if it does.
    pub waits_for: Option<Rank>,
}

/// Where a run goes on that others began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Model calls that are done.
    pub calls: u32,
    /// How many tensors the sampler remembers.
    pub history: u8,
}

/// From the coordinator to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToWorker {
    /// The coordinator is alive: the answer to [`ToCoordinator::Alive`]. A worker that is not answered
    /// for as long as its lease gives up what it renders, for others may have been given it.
    Alive,
    /// Render your band of this plan. Payload, if others began it: the band's latent and what the
    /// sampler remembers of it, f32 [1 + history, channels, band rows, columns].
    Start {
        /// Who renders what.
        plan: Box<Plan>,
        /// Which of the plan's ranks you are.
        rank: Rank,
        /// Where to go on, if others began it.
        resume: Option<Resume>,
    },
    /// Measure your links to the other ranks of this plan ([`netcheck`](crate::plan::netcheck)).
    /// Answered by [`ToCoordinator::Measured`] or `Failed`.
    Measure {
        /// Who takes part.
        plan: Box<Plan>,
        /// Which of the plan's ranks you are.
        rank: Rank,
    },
    /// Stop this run; answered by [`ToCoordinator::Aborted`] or, if it crossed, by its end.
    Abort {
        /// The run to stop.
        run: RunId,
        /// Why.
        fault: Fault,
    },
    /// Nothing is left for you to do: end, and do not come back.
    Leave,
    /// A part of a file that jobs need; parts come in order. Payload: its bytes. After the last one answered by
    /// [`ToCoordinator::Holds`] or `Unheld`.
    File {
        /// Which one.
        file: FileDigest,
        /// How many of its bytes came before.
        offset: u64,
        /// How many it has.
        total: u64,
    },
}

/// From a client to the coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum FromClient {
    /// Render this. Answered by `Accepted` or `Refused`, then by events until the job's end.
    /// A client that goes away cancels the jobs it submitted, but those that are `detached`.
    Submit {
        /// What to render.
        request: Box<JobRequest>,
        /// How it is taken in.
        terms: Terms,
    },
    /// I am the client that submitted this job, and was cut off: as if I had not been. Answered by
    /// `Accepted` or `Refused`, then by events until its end.
    Follow(JobId),
    /// Let this worker, by number or name, finish or hand over what it renders, and leave. Answered by
    /// `Refused`, or by `Drained` when it has left.
    Drain(String),
    /// Tell how the cluster is. Answered by `Cluster`.
    Status,
    /// Measure the links between all workers, over each of these fabrics that they share; none named
    /// means all. Answered by `Refused`, or by a `Link` each and then `Cluster`.
    Netcheck {
        /// The fabrics.
        fabrics: Vec<Fabric>,
    },
    /// Tell of this job from now on, whoever submitted it. Answered by `Accepted` or `Refused`, then by
    /// events until its end.
    Watch {
        /// The job.
        job: JobId,
        /// Whether events come with payloads: the latent after each step, the image.
        payloads: bool,
    },
    /// End this job at the next call boundary. Answered by `Job` or `Refused`.
    Cancel(JobId),
    /// Tell what became of this job. Answered by `Job` or `Refused`.
    Show {
        /// The job.
        job: JobId,
        /// What comes with the answer.
        with: Part,
    },
    /// Tell of jobs, those submitted last first. Answered by `Jobs` or `Refused`.
    Jobs {
        /// Those submitted before this one only.
        before: Option<JobId>,
        /// So many at most; fewer come if they are long.
        limit: u16,
        /// Those that are at one of these stages; none named means all.
        stages: Vec<JobStage>,
    },
    /// A part of a file that a job to be submitted names; parts come in order. Payload: its bytes. The first is empty and
    /// is answered by `Taken` with what of it need not be sent, or `Refused`; the others are answered so once
    /// the file is whole or refused. It is kept for as long as this client is there, or a job names it.
    Put {
        /// Which one.
        file: FileDigest,
        /// How many of its bytes came before.
        offset: u64,
        /// How many it has.
        total: u64,
    },
}

/// From the coordinator to a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToClient {
    /// The job is in the queue.
    Accepted {
        /// Its number.
        job: JobId,
        /// Jobs before it, the running one included.
        ahead: u32,
        /// Whether it outlives the coordinator's process.
        kept: bool,
        /// Whether it was taken in before.
        #[serde(
            skip_serializing_if = "version::unknown::<10, _>",
            deserialize_with = "version::since::<10, _, _>"
        )]
        again: bool,
    },
    /// The worker has left.
    Drained(WorkerId),
    /// The request was not taken.
    Refused(Fault),
    /// Something happened to the job.
    Event {
        /// The job.
        job: JobId,
        /// What happened.
        event: Event,
    },
    /// The answer to [`FromClient::Status`].
    Cluster(Box<ClusterView>),
    /// What was measured of a link.
    Link(Box<MeasuredLink>),
    /// What became of a job. Payload: the [`Part`] of it that was asked for.
    Job(Box<JobRecord>),
    /// Jobs, those submitted last first.
    Jobs {
        /// What became of each.
        jobs: Vec<JobRecord>,
        /// Whether there are more, submitted before these.
        more: bool,
    },
    /// So much of a file is there.
    Taken {
        /// Which one.
        file: FileDigest,
        /// How many of its bytes: all, or none.
        bytes: u64,
    },
}

/// What was measured of the link between two workers over one fabric.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredLink {
    /// The two workers.
    pub workers: [WorkerId; 2],
    /// The fabric.
    pub fabric: Fabric,
    /// The figures, or why there are none.
    pub figures: Result<LinkFigures, Fault>,
}
