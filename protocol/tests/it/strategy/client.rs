//! What clients hear.

use super::{address, card, fault, geometry, link_figures, phase, preview, profile, spec, text};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use protocol::identity::Fingerprint;
use protocol::job::Priority;
use protocol::message::{
    BandView, ClusterView, Event, JobRecord, JobResult, JobStage, JobTrace, JobView, LinkView,
    MeasuredLink, PairView, PartTrace, RecoveryView, RunTrace, SiteReport, ToClient, WaitView,
    WorkerView,
};
use protocol::plan::{Ask, Branch, Fabric, SiteSpec, Stage};
use protocol::{JobId, Rank, WorkerId};

pub(super) fn site_reports() -> impl Strategy<Value = Vec<SiteReport>> {
    let report = (text(), any::<(u32, i8, u64)>(), vec(0.0_f32..2.0, 0..5));
    let report = report.prop_map(|(path, (channels, halvings, bytes), distances)| SiteReport {
        site: SiteSpec { path, ask: Ask::Gather, stage: Stage::Denoise, channels, halvings },
        bytes,
        distances,
    });
    vec(report, 0..3)
}

fn trace() -> impl Strategy<Value = JobTrace> {
    let part =
        (any::<(u16, u32, bool)>(), phase(), any::<(u64, u64, u64, u64)>()).prop_map(
            |((rank, call, displaced), phase, (end_us, took_us, waited_us, posted_bytes))| {
                PartTrace { rank, phase, call, displaced, end_us, took_us, waited_us, posted_bytes }
            },
        );
    let run =
        (vec(part, 0..3), vec((any::<u16>(), profile()), 0..3)).prop_map(|(parts, profiles)| {
            let links = vec![LinkView { ranks: [0, 1], fabric: Fabric::Quic }];
            RunTrace { bands: Vec::new(), links, parts, profiles }
        });
    (any::<(u64, u32, u64)>(), vec(run, 0..3)).prop_map(
        |((start_us, detail_every, left_out), runs)| JobTrace {
            start_us,
            runs,
            detail_every,
            left_out,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let bands = vec((any::<(u16, u32, u32)>(), text()), 0..4).prop_map(|bands| {
        let view = |((rank, top, rows), worker)| BandView {
            rank,
            worker,
            branch: Branch::Prompt,
            top,
            rows,
        };
        bands.into_iter().map(view).collect::<Vec<_>>()
    });
    let waits = vec((any::<(u16, u64)>(), text()), 0..4).prop_map(|waits| {
        let view = |((rank, posted_bytes), worker)| WaitView {
            rank,
            worker,
            seconds: 0.5,
            posted_bytes,
            peak_bytes: posted_bytes,
        };
        waits.into_iter().map(view).collect::<Vec<_>>()
    });
    prop_oneof![
        any::<(u32, u32, u32)>().prop_map(|(ahead, workers, wanted)| Event::Queued {
            ahead,
            workers,
            wanted
        }),
        (spec(), text(), geometry(), bands, option::of(preview())).prop_map(
            |(spec, model, geometry, bands, preview)| {
                let reason = spec.prompt.clone();
                Event::Started { spec: Box::new(spec), model, geometry, bands, reason, preview }
            }
        ),
        text().prop_map(|text| Event::Notice { text }),
        phase().prop_map(|phase| Event::Phase { phase }),
        any::<(u32, u32)>().prop_map(|(call, calls)| Event::Step {
            call,
            calls,
            seconds: 1.5,
            waited: 0.25,
            displaced: call % 2 == 0,
            change: Some(0.125)
        }),
        (any::<u16>(), site_reports()).prop_map(|(rank, sites)| Event::Probed { rank, sites }),
        (any::<u16>(), profile()).prop_map(|(rank, profile)| Event::Profiled { rank, profile }),
        (waits, text()).prop_map(|(waits, latent)| Event::Finished {
            seconds_per_step: 1.0,
            seconds: 9.0,
            waits,
            latent,
            displaced_calls: 3,
            recoveries: Vec::new(),
        }),
        fault().prop_map(|fault| Event::Failed { fault }),
        trace().prop_map(|trace| Event::Traced { trace }),
        (fault(), any::<u32>()).prop_map(|(fault, call)| Event::Interrupted { fault, call }),
        (fault(), any::<(u32, u32, [u16; 2], bool)>(), text(), option::of(spec())).prop_map(
            |(fault, (broke_at, resumed_at, workers, exact), reason, spec)| {
                let seconds = 0.5;
                let recovery =
                    RecoveryView { fault, broke_at, resumed_at, seconds, workers, exact };
                let spec = spec.map(Box::new);
                Event::Resumed { recovery, bands: Vec::new(), reason, spec }
            }
        ),
    ]
}

fn cluster() -> impl Strategy<Value = ClusterView> {
    let busy = option::of(any::<(u64, u16)>().prop_map(|(job, rank)| (JobId(job), Rank(rank))));
    let worker = (any::<(u64, u16, u64)>(), text(), address(), busy).prop_map(
        |((id, threads, resident_bytes), name, address, busy)| WorkerView {
            id: WorkerId(id),
            kernels: name.clone(),
            name,
            address,
            threads,
            resident_bytes,
            speed: resident_bytes / 2,
            busy,
            draining: id % 3 == 0,
            identity: (id % 2 == 0).then_some(Fingerprint([7; 32])),
        },
    );
    let job = (any::<u64>(), text(), option::of(any::<(u32, u32)>())).prop_map(
        |(id, prompt, progress)| JobView {
            id: JobId(id),
            reason: prompt.clone(),
            prompt,
            progress,
            interrupted: None,
            bands: Vec::new(),
            links: vec![LinkView { ranks: [0, 1], fabric: Fabric::Rdma }],
        },
    );
    (text(), any::<u64>(), option::of(card()), vec(worker, 0..4), vec(job, 0..4)).prop_map(
        |(release, up_seconds, model, workers, jobs)| ClusterView {
            release,
            up_seconds,
            model,
            workers,
            pairs: vec![PairView {
                workers: [WorkerId(1), WorkerId(2)],
                fabric: None,
                why: String::new(),
                figures: None,
            }],
            jobs,
        },
    )
}

pub(crate) fn to_client() -> impl Strategy<Value = ToClient> {
    prop_oneof![
        any::<(u64, u32, bool, bool)>().prop_map(|(job, ahead, kept, again)| ToClient::Accepted {
            job: JobId(job),
            ahead,
            kept,
            again
        }),
        any::<u64>().prop_map(|worker| ToClient::Drained(WorkerId(worker))),
        fault().prop_map(ToClient::Refused),
        (any::<u64>(), event()).prop_map(|(job, event)| ToClient::Event { job: JobId(job), event }),
        cluster().prop_map(|cluster| ToClient::Cluster(Box::new(cluster))),
        (super::file(), any::<u64>()).prop_map(|(file, bytes)| ToClient::Taken { file, bytes }),
        (any::<[u64; 2]>(), link_figures().prop_map(Ok), fault().prop_map(Err), any::<bool>())
            .prop_map(|(workers, figures, fault, good)| {
                let figures = if good { figures } else { fault };
                let link =
                    MeasuredLink { workers: workers.map(WorkerId), fabric: Fabric::Shm, figures };
                ToClient::Link(Box::new(link))
            }),
        record().prop_map(|record| ToClient::Job(Box::new(record))),
        (vec(record(), 0..3), any::<bool>()).prop_map(|(jobs, more)| ToClient::Jobs { jobs, more }),
    ]
}

fn record() -> impl Strategy<Value = JobRecord> {
    let known = (option::of(spec()), option::of(geometry()), option::of(fault()));
    let stage = prop::sample::select(JobStage::ALL);
    (any::<(u64, u64, u64)>(), stage, text(), super::request(), known).prop_map(
        |((id, seed, accepted), stage, owner, request, (spec, geometry, fault))| JobRecord {
            id: JobId(id),
            stage,
            priority: Priority::Low,
            owner,
            request,
            seed,
            accepted,
            started: spec.as_ref().map(|_| accepted),
            ended: None,
            ahead: geometry.map(|geometry| geometry.rows),
            spec,
            model: None,
            geometry,
            progress: Some((1, 2)),
            bands: Vec::new(),
            reason: String::new(),
            result: fault.as_ref().map(|fault| JobResult {
                seconds_per_step: 0.5,
                seconds: 9.0,
                waits: Vec::new(),
                latent: fault.cause.clone(),
                displaced_calls: 3,
                recoveries: Vec::new(),
            }),
            fault,
        },
    )
}
