//! Messages of every kind, and the plans in some of them.

use super::Seed;
use crate::fuzzing::{sample, wire};
use protocol::codec::{self, LENGTHS_BYTES, Limits};
use protocol::handshake::{PeerHandshake, hello};
use protocol::identity::Fingerprint;
use protocol::job::{
    Bands, CfgSplit, Decode, Dtype, FileDigest, GnVariance, InitWish, JobRequest, Parallelism,
    Scheduler, Terms, Warmup,
};
use protocol::message::{
    BandView, ClusterView, DataHead, Enrolment, Event, FromClient, Greeting, JobStage, JobTrace,
    JobView, Join, LinkView, MeasuredLink, PairView, Part, PartTrace, PeerAnswer, Phase, Profile,
    Pulse, RecoveryView, Resume, Role, RunTrace, SiteReport, Span, ToClient, ToCoordinator,
    ToWorker, Traffic, WaitView, Work, WorkerView,
};
use protocol::plan::netcheck::{self, LinkFigures};
use protocol::plan::{Band, Branch, Fabric, Kind, Lack, Plan};
use protocol::{Call, Epoch, Fault, FaultKind, JobId, Rank, RunId, Site, Version, WorkerId};
use serde::Serialize;

const FILE: FileDigest = FileDigest([7; 32]);
const RUN: RunId = RunId { job: JobId(1), epoch: Epoch(2) };
const FIGURES: LinkFigures = LinkFigures { latency_us: 21.5, bytes_per_second: 1.2e9 };

pub(super) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let kinds = [
        openers(),
        answers(),
        to_coordinator(),
        to_worker(),
        bodies(&[
            FromClient::Submit { request: Box::new(request()), terms: Terms::default() },
            FromClient::Status,
            FromClient::Follow(JobId(1)),
            FromClient::Drain("host-7".to_owned()),
            FromClient::Netcheck { fabrics: Fabric::ALL.to_vec() },
            FromClient::Watch { job: JobId(1), payloads: true },
            FromClient::Cancel(JobId(1)),
            FromClient::Show { job: JobId(1), with: Part::Image },
            FromClient::Show { job: JobId(1), with: Part::Trace },
            FromClient::Jobs { before: None, limit: 9, stages: JobStage::ALL.to_vec() },
            FromClient::Put { file: FILE, offset: 1 << 16, total: 1 << 20 },
        ]),
        to_client(),
        bodies(&[called().hello(Rank(0))]),
        bodies(&[PeerAnswer::Welcome, PeerAnswer::Refused(fault())]),
        bodies(&[DataHead { epoch: Epoch(2), site: Site(300), call: Call(70_000) }]),
    ];
    for (kind, bodies) in (0_u8..).zip(kinds) {
        for (number, body) in bodies.iter().enumerate() {
            seeds.push(Seed::new(
                "message",
                format!("{kind}-{number}"),
                [&[kind], &**body].concat(),
            ));
        }
    }
    let plans = plans();
    seeds.extend(plans.iter().map(|(name, plan)| Seed::new("plan", *name, body(plan))));
    seeds.extend(streams());
    seeds.extend(handshakes());
    seeds
}

fn body(message: &impl Serialize) -> Vec<u8> {
    frame(message, &[]).split_off(LENGTHS_BYTES)
}

fn frame(message: &impl Serialize, payload: &[u8]) -> Vec<u8> {
    codec::encode(message, payload, &Limits::CONTROL).expect("a small message").to_vec()
}

fn bodies(messages: &[impl Serialize]) -> Vec<Vec<u8>> {
    messages.iter().map(|message| body(message)).collect()
}

fn fault() -> Fault {
    Fault::new(FaultKind::Compute, "out of memory").on(Rank(1)).during(Call(3))
}

fn plans() -> Vec<(&'static str, Plan)> {
    use Branch::{Negative, Prompt, Whole};
    let plan = sample::plan;
    let mut uneven = plan(Parallelism::Patch, &[Negative, Prompt, Prompt]);
    uneven.members[1].band = Band { top: 0, rows: 24 };
    uneven.members[2].band = Band { top: 24, rows: 40 };
    let members = plan(Parallelism::Patch, &[Whole; 2]).members;
    vec![
        ("alone", plan(Parallelism::Patch, &[Whole])),
        ("patch", plan(Parallelism::Patch, &[Whole, Whole, Whole])),
        ("branches", plan(Parallelism::Patch, &[Negative, Negative, Prompt, Prompt])),
        ("uneven", uneven),
        ("naive-row", plan(Parallelism::NaiveRow, &[Whole, Whole])),
        ("naive-alternate", plan(Parallelism::NaiveAlternate, &[Negative, Prompt])),
        ("tensor", plan(Parallelism::Tensor, &[Negative, Negative, Prompt, Prompt])),
        ("netcheck", netcheck::plan(RUN, members, vec![Fabric::Quic, Fabric::Tcp])),
    ]
}

fn join() -> Join {
    let plan = sample::plan(Parallelism::Patch, &[Branch::Whole]);
    Join {
        name: "host-7".to_owned(),
        listen: ([0, 0, 0, 0], 7412).into(),
        offers: plan.members[0].offers.clone(),
        lacks: vec![Lack { fabric: Fabric::Nccl, cause: "no GPU".to_owned() }],
        model: sample::card(),
        threads: 2,
        kernels: "avx2".to_owned(),
        resident_bytes: 1 << 30,
        speed: 4096,
        free_bytes: 1 << 33,
    }
}

fn request() -> JobRequest {
    JobRequest {
        prompt: "red apple".to_owned(),
        negative: Some("leaf".to_owned()),
        width: Some(256),
        height: None,
        steps: Some(4),
        guidance: Some(5.0),
        seed: Some(u64::MAX),
        scheduler: Some(Scheduler::Dpmpp2mKarras),
        warmup: Warmup::Calls(4),
        parallelism: Parallelism::Patch,
        mode: None,
        gn_variance: GnVariance::Population,
        wire: None,
        dtype: Some(Dtype::F16),
        model: Some("emoji-xl".to_owned()),
        cfg_split: CfgSplit::Auto,
        bands: Bands::Even,
        decode: Decode::Auto,
        fabrics: vec![Fabric::Tcp],
        workers: Some(2),
        stream_latents: true,
        deterministic: true,
        rebalance: false,
        probe: false,
        profile: true,
        loras: sample::loras(),
        init: Some(InitWish { file: FILE, width: 256, height: 512, strength: Some(0.5) }),
    }
}

fn openers() -> Vec<Vec<u8>> {
    let token = format!("tessera1.{}", "01".repeat(61)).parse().expect("a token");
    let request = "-----BEGIN CERTIFICATE REQUEST-----".to_owned();
    let enrolment = Enrolment { token, name: "host-7".to_owned(), request };
    let roles = [Role::Client, Role::Worker(Box::new(join())), Role::Enrol(Box::new(enrolment))];
    bodies(&roles.map(|role| hello(Version::newest(), role)))
}

fn answers() -> Vec<Vec<u8>> {
    bodies(&[
        Greeting::Welcome { worker: WorkerId(7), lease_ms: 5000 },
        Greeting::Refused(Fault::new(FaultKind::ModelMismatch, "two models")),
        Greeting::Enrolled { certificates: "-----BEGIN CERTIFICATE-----".to_owned() },
    ])
}

fn to_coordinator() -> Vec<Vec<u8>> {
    let pulse = Pulse { run: RUN, beats: 1 << 20, waits_for: Some(Rank(1)) };
    bodies(&[
        ToCoordinator::Alive { resident_bytes: 1 << 30, pulse: Some(pulse) },
        ToCoordinator::Leaving,
        ToCoordinator::Notice { run: RUN, text: "truncated".to_owned() },
        ToCoordinator::Entered { run: RUN, phase: Phase::Denoising },
        ToCoordinator::Stepped {
            run: RUN,
            call: 3,
            calls: 30,
            took_us: 1_000_000,
            waited_us: 1000,
            traffic: Traffic {
                posted: vec![(Fabric::Quic, Kind::KeysValues, 1 << 20)],
                read: [3, 4],
            },
            displaced: true,
            change: Some(0.25),
            history: 1,
        },
        ToCoordinator::Probed { run: RUN, sites: vec![report()] },
        ToCoordinator::Profiled { run: RUN, profile: profile() },
        ToCoordinator::Decoded { run: RUN, took_us: 9, waited_us: 1, peak_bytes: 1 << 30 },
        ToCoordinator::Measured { run: RUN, links: vec![(Rank(1), FIGURES)] },
        ToCoordinator::Failed { run: RUN, fault: fault(), unopened: vec![Rank(1), Rank(2)] },
        ToCoordinator::Aborted { run: RUN },
        ToCoordinator::Holds { files: vec![FILE] },
        ToCoordinator::Unheld { file: FILE, fault: fault() },
    ])
}

fn to_worker() -> Vec<Vec<u8>> {
    let resume = Some(Resume { calls: 7, history: 1 });
    let plan = || Box::new(sample::plan(Parallelism::Patch, &[Branch::Negative, Branch::Prompt]));
    bodies(&[
        ToWorker::Alive,
        ToWorker::Leave,
        ToWorker::Start { plan: plan(), rank: Rank(1), resume: None },
        ToWorker::Start { plan: plan(), rank: Rank(1), resume },
        ToWorker::Measure { plan: plan(), rank: Rank(0) },
        ToWorker::Abort { run: RUN, fault: fault() },
        ToWorker::File { file: FILE, offset: 1 << 16, total: 1 << 20 },
    ])
}

fn report() -> SiteReport {
    SiteReport { site: sample::sites().swap_remove(3), bytes: 1 << 20, distances: vec![0.5, 0.25] }
}

fn profile() -> Profile {
    let span = |work, start_us| Span { work, start_us, took_us: 10 };
    let spans = vec![span(Work::Convolution, 0), span(Work::Wait(Rank(1)), 10)];
    let (phase, posted) = (Phase::Denoising, vec![(Rank(1), 4096)]);
    Profile { phase, call: 3, displaced: true, start_us: 1 << 50, took_us: 20, spans, posted }
}

fn trace() -> JobTrace {
    let part = PartTrace {
        rank: 1,
        phase: Phase::Decoding,
        call: 0,
        displaced: false,
        end_us: 900_000,
        took_us: 80_000,
        waited_us: 1000,
        posted_bytes: 4096,
    };
    let (bands, links) = (Vec::new(), vec![LinkView { ranks: [0, 1], fabric: Fabric::Shm }]);
    let run = RunTrace { bands, links, parts: vec![part], profiles: vec![(0, profile())] };
    JobTrace { start_us: 1 << 50, runs: vec![run], detail_every: 2, left_out: 1 }
}

fn to_client() -> Vec<Vec<u8>> {
    let event = |event| ToClient::Event { job: JobId(1), event };
    let plan = sample::plan(Parallelism::Patch, &[Branch::Whole]);
    let worker = || "host-7".to_owned();
    let bands =
        vec![BandView { rank: 0, worker: worker(), branch: Branch::Prompt, top: 0, rows: 256 }];
    let link = |figures| {
        let workers = [WorkerId(1), WorkerId(2)];
        ToClient::Link(Box::new(MeasuredLink { workers, fabric: Fabric::Shm, figures }))
    };
    let recovery = RecoveryView {
        fault: fault(),
        broke_at: 7,
        resumed_at: 5,
        seconds: 0.5,
        workers: [2, 1],
        exact: false,
    };
    let wait = WaitView { rank: 0, worker: worker(), seconds: 0.5, posted_bytes: 9, peak_bytes: 8 };
    bodies(&[
        ToClient::Accepted { job: JobId(1), ahead: 2, kept: true, again: true },
        ToClient::Drained(WorkerId(1)),
        ToClient::Refused(fault()),
        event(Event::Queued { ahead: 1, workers: 2, wanted: 3 }),
        event(Event::Started {
            spec: Box::new(sample::spec(Parallelism::NaiveRow)),
            model: "emoji-xl".to_owned(),
            geometry: plan.geometry,
            bands: bands.clone(),
            reason: "even".to_owned(),
            preview: Some(sample::preview()),
        }),
        event(Event::Interrupted { fault: fault(), call: 7 }),
        event(Event::Resumed {
            recovery: recovery.clone(),
            bands: bands.clone(),
            reason: "even".to_owned(),
            spec: Some(Box::new(sample::spec(Parallelism::Patch))),
        }),
        event(Event::Notice { text: "truncated".to_owned() }),
        event(Event::Phase { phase: Phase::Decoding }),
        event(Event::Step {
            call: 3,
            calls: 30,
            seconds: 0.5,
            waited: 0.25,
            displaced: false,
            change: None,
        }),
        event(Event::Probed { rank: 1, sites: vec![report()] }),
        event(Event::Profiled { rank: 1, profile: profile() }),
        event(Event::Finished {
            seconds_per_step: 0.5,
            seconds: 9.0,
            waits: vec![wait],
            latent: "d9".repeat(32),
            displaced_calls: 25,
            recoveries: vec![recovery],
        }),
        event(Event::Failed { fault: fault() }),
        event(Event::Traced { trace: trace() }),
        ToClient::Cluster(Box::new(cluster(bands))),
        link(Ok(FIGURES)),
        link(Err(fault())),
        ToClient::Taken { file: FILE, bytes: 1 << 20 },
    ])
}

fn cluster(bands: Vec<BandView>) -> ClusterView {
    let worker = WorkerView {
        id: WorkerId(1),
        name: "host-7".to_owned(),
        address: ([127, 0, 0, 1], 7412).into(),
        threads: 2,
        kernels: "avx2".to_owned(),
        resident_bytes: 1 << 30,
        speed: 4096,
        busy: Some((JobId(1), Rank(0))),
        draining: true,
        identity: Some(Fingerprint([7; 32])),
    };
    let job = JobView {
        id: JobId(1),
        prompt: "red apple".to_owned(),
        progress: Some((3, 30)),
        interrupted: Some(fault()),
        bands,
        reason: "even".to_owned(),
        links: vec![LinkView { ranks: [0, 1], fabric: Fabric::Rdma }],
    };
    let pair = PairView {
        workers: [WorkerId(1), WorkerId(2)],
        fabric: Some(Fabric::Quic),
        why: "no shared memory".to_owned(),
        figures: Some(FIGURES),
    };
    ClusterView {
        release: protocol::RELEASE.to_owned(),
        up_seconds: 100,
        model: Some(sample::card()),
        workers: vec![worker],
        pairs: vec![pair],
        jobs: vec![job],
    }
}

/// Streams as they cross a control connection and a link.
fn streams() -> Vec<Seed> {
    let run = RUN;
    let control = [
        frame(&hello(Version::newest(), Role::Client), &[]),
        frame(&FromClient::Status, &[]),
        frame(&ToCoordinator::Aborted { run }, &[]),
        frame(&ToCoordinator::Decoded { run, took_us: 9, waited_us: 1, peak_bytes: 0 }, &[7; 96]),
    ];
    let head = |call| DataHead { epoch: Epoch(2), site: Site(3), call: Call(call) };
    let data = [0, 1, 2].map(|call| frame(&head(call), &[1; 64]));
    let unfinished = &data.concat()[..100];
    vec![
        Seed::new("frame", "control", control.concat()),
        Seed::new("frame", "data", data.concat()),
        Seed::new("frame", "unfinished", unfinished),
        Seed::new("frame", "too-long", [&[0xff; LENGTHS_BYTES], &b"and more"[..]].concat()),
    ]
}

/// The handshakes of the rank that is called, before it is.
fn called() -> PeerHandshake {
    let (plan, sites) = wire::agreed();
    PeerHandshake::new(&plan, &sites, Rank(1))
}

fn handshakes() -> Vec<Seed> {
    let (plan, sites) = wire::agreed();
    let from = |rank| frame(&PeerHandshake::new(&plan, &sites, Rank(rank)).hello(Rank(1)), &[]);
    let mut other = plan.clone();
    other.spec.seed += 1;
    let disagrees = frame(&PeerHandshake::new(&other, &sites, Rank(3)).hello(Rank(1)), &[]);
    let welcome = frame(&PeerAnswer::Welcome, &[]);
    let opener = |role| frame(&hello(Version::newest(), role), &[]);
    let future = frame(&(7_u16, "9.8.7", "a role of the future", 300_u32), &[]);
    let answers = [
        frame(&Greeting::Welcome { worker: WorkerId(7), lease_ms: 5000 }, &[]),
        frame(&Greeting::Refused(fault()), &[]),
        frame(&PeerAnswer::Refused(fault()), &[]),
    ];
    vec![
        Seed::new("handshake", "all", [from(2), welcome, from(3)].concat()),
        Seed::new("handshake", "twice", [from(2), from(2)].concat()),
        Seed::new("handshake", "from-below", from(0)),
        Seed::new("handshake", "disagrees", [disagrees, from(2)].concat()),
        Seed::new("handshake", "client", opener(Role::Client)),
        Seed::new("handshake", "worker", opener(Role::Worker(Box::new(join())))),
        Seed::new("handshake", "future", future),
        Seed::new("handshake", "answers", answers.concat()),
    ]
}
