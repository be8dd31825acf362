//! Every message there is, at random.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use protocol::identity::Fingerprint;
use protocol::job::{
    Bands, CfgSplit, Decode, Dtype, GnVariance, JobRequest, JobSpec, Mode, ModelCard, ModelWork,
    Parallelism, Scheduler, Warmup, Wire,
};
use protocol::message::{
    BandView, ClusterView, DataHead, Enrolment, Event, FromClient, Greeting, Hello, JobView, Join,
    LinkView, MeasuredLink, PairView, PeerAnswer, PeerHello, Phase, Profile, Role, SiteReport,
    Span, ToClient, ToCoordinator, ToWorker, WaitView, Work, WorkerView,
};
use protocol::plan::netcheck::LinkFigures;
use protocol::plan::{
    Ask, Band, Branch, Digest, Fabric, Geometry, Lack, Member, Offer, Plan, SharedMemory, SiteSpec,
    Stage,
};
use protocol::{Call, Epoch, Fault, FaultKind, JobId, Rank, RunId, Site, WorkerId};
use std::net::{IpAddr, SocketAddr};

fn text() -> impl Strategy<Value = String> {
    any::<String>()
}

fn run_id() -> impl Strategy<Value = RunId> {
    any::<(u64, u32)>().prop_map(|(job, epoch)| RunId { job: JobId(job), epoch: Epoch(epoch) })
}

fn address() -> impl Strategy<Value = SocketAddr> {
    any::<(IpAddr, u16)>().prop_map(SocketAddr::from)
}

fn fault() -> impl Strategy<Value = Fault> {
    let kinds = prop::sample::select(vec![
        FaultKind::InvalidRequest,
        FaultKind::VersionMismatch,
        FaultKind::ModelMismatch,
        FaultKind::PeerLost,
        FaultKind::Cancelled,
        FaultKind::ShuttingDown,
        FaultKind::Unauthorised,
    ]);
    (kinds, option::of(any::<u16>()), option::of(any::<u32>()), text()).prop_map(
        |(kind, rank, call, cause)| Fault {
            kind,
            rank: rank.map(Rank),
            call: call.map(Call),
            cause,
        },
    )
}

fn scheduler() -> impl Strategy<Value = Scheduler> {
    prop::sample::select(Scheduler::ALL)
}

fn dtype() -> impl Strategy<Value = Dtype> {
    prop::sample::select(Dtype::ALL)
}

fn policy() -> impl Strategy<Value = (Scheduler, Mode, GnVariance, u32)> {
    let modes = prop::sample::select(Mode::ALL);
    (scheduler(), modes, prop::sample::select(GnVariance::ALL), any::<u32>())
}

fn spec() -> impl Strategy<Value = JobSpec> {
    let size = any::<(u32, u32, u32)>();
    (text(), option::of(text()), size, any::<u64>(), -1e3_f32..1e3, policy()).prop_map(
        |(prompt, negative, (width, height, steps), seed, guidance, policy)| {
            let (scheduler, mode, gn_variance, warmup) = policy;
            JobSpec {
                prompt,
                negative,
                width,
                height,
                steps,
                guidance,
                seed,
                scheduler,
                warmup: if warmup % 5 == 0 { Warmup::Auto } else { Warmup::Calls(warmup) },
                parallelism: if warmup % 2 == 0 {
                    Parallelism::Patch
                } else {
                    Parallelism::NaiveCol
                },
                mode,
                gn_variance,
                wire: Wire::Bf16,
                probe: warmup % 3 == 0,
                profile: warmup % 7 == 0,
                decode: Decode::Tiled,
            }
        },
    )
}

fn request() -> impl Strategy<Value = JobRequest> {
    let wishes = (option::of(dtype()), option::of(text()), option::of(any::<u16>()));
    (spec(), any::<bool>(), any::<bool>(), wishes).prop_map(
        |(spec, given, stream_latents, (dtype, model, workers))| JobRequest {
            prompt: spec.prompt,
            negative: spec.negative,
            width: given.then_some(spec.width),
            height: given.then_some(spec.height),
            steps: given.then_some(spec.steps),
            guidance: given.then_some(spec.guidance),
            seed: given.then_some(spec.seed),
            scheduler: given.then_some(spec.scheduler),
            warmup: spec.warmup,
            parallelism: spec.parallelism,
            mode: given.then_some(spec.mode),
            gn_variance: spec.gn_variance,
            wire: given.then_some(spec.wire),
            cfg_split: if given { CfgSplit::On } else { CfgSplit::Auto },
            decode: if given { Decode::Whole } else { Decode::Auto },
            bands: if given { Bands::Even } else { Bands::Auto },
            dtype,
            model,
            fabrics: if given { vec![Fabric::Shm] } else { Vec::new() },
            workers,
            stream_latents,
            probe: spec.probe,
            profile: !spec.probe,
        },
    )
}

fn model_work() -> impl Strategy<Value = ModelWork> {
    any::<([u64; 9], u32, u32)>().prop_map(|(counts, cell, sites)| {
        let [fixed, text, each, cross, pair, values, edge, groups, held] = counts;
        ModelWork {
            cell,
            fixed_flop: fixed,
            text_flop: text,
            cell_flop: each,
            cross_flop: cross,
            pair_flop: pair,
            cell_values: values,
            edge_values: edge,
            groups,
            sites,
            held_values: held,
        }
    })
}

fn card() -> impl Strategy<Value = ModelCard> {
    let sizes = any::<(u32, u32, u32, (u32, u32), u64, (u32, u32))>();
    (text(), text(), text(), dtype(), scheduler(), sizes, model_work()).prop_map(
        |(name, digest, family, dtype, scheduler, sizes, work)| {
            let (latent_channels, vae_factor, row_unit, native, weight_bytes, most) = sizes;
            ModelCard {
                name,
                digest,
                family,
                dtype,
                latent_channels,
                vae_factor,
                row_unit,
                native,
                scheduler,
                guidance: 5.0,
                weight_bytes,
                shards_max: most.0,
                decode_bytes: most.1,
                work,
            }
        },
    )
}

fn offers(number: u64) -> Vec<Offer> {
    let memory = SharedMemory { boot: format!("{number}"), device: number, user: 7 };
    let offers = [
        Offer::Shm(memory),
        Offer::Rdma { roce: number.is_multiple_of(2) },
        Offer::Quic { port: 7 },
        Offer::Tcp,
    ];
    offers.into_iter().skip(usize::try_from(number % 4).expect("small")).collect()
}

fn link_figures() -> impl Strategy<Value = LinkFigures> {
    (0.0..1e9, 0.0..1e12)
        .prop_map(|(latency_us, bytes_per_second)| LinkFigures { latency_us, bytes_per_second })
}

fn member() -> impl Strategy<Value = Member> {
    (any::<(u64, u32, u32)>(), text(), address()).prop_map(
        |((worker, top, rows), name, address)| Member {
            worker: WorkerId(worker),
            name,
            address,
            offers: offers(worker),
            branch: if rows % 2 == 0 { Branch::Whole } else { Branch::Negative },
            band: Band { top, rows },
            decodes: Band { top: rows, rows: top },
            identity: (top % 2 == 0).then_some(Fingerprint([7; 32])),
        },
    )
}

fn geometry() -> impl Strategy<Value = Geometry> {
    any::<(u32, u32, u32, u32, u32)>().prop_map(
        |(rows, columns, channels, row_unit, vae_factor)| Geometry {
            rows,
            columns,
            channels,
            row_unit,
            vae_factor,
        },
    )
}

fn plan() -> impl Strategy<Value = Plan> {
    (run_id(), spec(), geometry(), vec(member(), 0..5)).prop_map(
        |(run, spec, geometry, members)| {
            let fabrics = vec![Fabric::Quic, Fabric::Tcp];
            Plan { run, spec, geometry, members, fabrics }
        },
    )
}

fn profile() -> impl Strategy<Value = Profile> {
    let work = prop_oneof![
        Just(Work::Convolution),
        Just(Work::Linear),
        Just(Work::Attention),
        Just(Work::Norm),
        Just(Work::Pointwise),
        Just(Work::Copy),
        any::<u16>().prop_map(|rank| Work::Wait(Rank(rank))),
    ];
    let span = (work, any::<(u32, u32)>()).prop_map(|(work, (start_us, took_us))| Span {
        work,
        start_us,
        took_us,
    });
    let spans = vec(span, 0..4);
    (phase(), any::<(u32, bool, u64, u64)>(), spans).prop_map(
        |(phase, (call, displaced, start_us, took_us), spans)| Profile {
            phase,
            call,
            displaced,
            start_us,
            took_us,
            spans,
        },
    )
}

fn phase() -> impl Strategy<Value = Phase> {
    prop::sample::select(vec![Phase::TextEncoding, Phase::Denoising, Phase::Decoding])
}

pub(crate) fn hello() -> impl Strategy<Value = Hello> {
    let numbers = any::<(u16, u64)>();
    let join = (text(), address(), card(), numbers, text()).prop_map(
        |(name, listen, model, (threads, resident_bytes), kernels)| {
            Role::Worker(Box::new(Join {
                name,
                listen,
                offers: offers(resident_bytes),
                lacks: vec![Lack { fabric: Fabric::Nccl, cause: "no GPU".to_owned() }],
                model,
                threads,
                kernels,
                resident_bytes,
                speed: 7,
                free_bytes: 9,
            }))
        },
    );
    let enrolment = (text(), text()).prop_map(|(name, request)| {
        let token = format!("tessera1.{}", "01".repeat(61)).parse().expect("a token");
        Role::Enrol(Box::new(Enrolment { token, name, request }))
    });
    let role = prop_oneof![Just(Role::Client), join, enrolment];
    (any::<u16>(), text(), role).prop_map(|(wire, release, role)| Hello { wire, release, role })
}

pub(crate) fn greeting() -> impl Strategy<Value = Greeting> {
    prop_oneof![
        any::<(u64, u32)>().prop_map(|(worker, lease_ms)| Greeting::Welcome {
            worker: WorkerId(worker),
            lease_ms
        }),
        fault().prop_map(Greeting::Refused),
        text().prop_map(|certificates| Greeting::Enrolled { certificates }),
    ]
}

pub(crate) fn to_coordinator() -> impl Strategy<Value = ToCoordinator> {
    let stepped = (run_id(), any::<(u32, u32, u64, u64, u64)>()).prop_map(|(run, numbers)| {
        let (call, calls, took_us, waited_us, posted_bytes) = numbers;
        let (displaced, change) = (call % 2 == 0, (calls % 2 == 0).then_some(0.5));
        ToCoordinator::Stepped {
            run,
            call,
            calls,
            took_us,
            waited_us,
            posted_bytes,
            displaced,
            change,
        }
    });
    let probed =
        (run_id(), site_reports()).prop_map(|(run, sites)| ToCoordinator::Probed { run, sites });
    let profiled =
        (run_id(), profile()).prop_map(|(run, profile)| ToCoordinator::Profiled { run, profile });
    let decoded = (run_id(), any::<(u64, u64)>()).prop_map(|(run, (took_us, waited_us))| {
        let peak_bytes = took_us;
        ToCoordinator::Decoded { run, took_us, waited_us, peak_bytes }
    });
    prop_oneof![
        any::<u64>().prop_map(|resident_bytes| ToCoordinator::Alive { resident_bytes }),
        (run_id(), text()).prop_map(|(run, text)| ToCoordinator::Notice { run, text }),
        (run_id(), phase()).prop_map(|(run, phase)| ToCoordinator::Entered { run, phase }),
        stepped,
        probed,
        profiled,
        decoded,
        (run_id(), fault()).prop_map(|(run, fault)| ToCoordinator::Failed { run, fault }),
        run_id().prop_map(|run| ToCoordinator::Aborted { run }),
        (run_id(), vec((any::<u16>().prop_map(Rank), link_figures()), 0..4))
            .prop_map(|(run, links)| ToCoordinator::Measured { run, links }),
    ]
}

pub(crate) fn to_worker() -> impl Strategy<Value = ToWorker> {
    prop_oneof![
        (plan(), any::<u16>())
            .prop_map(|(plan, rank)| ToWorker::Start { plan: Box::new(plan), rank: Rank(rank) }),
        (plan(), any::<u16>())
            .prop_map(|(plan, rank)| ToWorker::Measure { plan: Box::new(plan), rank: Rank(rank) }),
        (run_id(), fault()).prop_map(|(run, fault)| ToWorker::Abort { run, fault }),
    ]
}

pub(crate) fn from_client() -> impl Strategy<Value = FromClient> {
    prop_oneof![
        request().prop_map(|request| FromClient::Submit(Box::new(request))),
        Just(FromClient::Status),
        vec(prop::sample::select(Fabric::ALL), 0..3)
            .prop_map(|fabrics| FromClient::Netcheck { fabrics }),
    ]
}

fn site_reports() -> impl Strategy<Value = Vec<SiteReport>> {
    let report = (text(), any::<(u32, i8, u64)>(), vec(0.0_f32..2.0, 0..5));
    let report = report.prop_map(|(path, (channels, halvings, bytes), distances)| SiteReport {
        site: SiteSpec { path, ask: Ask::Gather, stage: Stage::Denoise, channels, halvings },
        bytes,
        distances,
    });
    vec(report, 0..3)
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
        (spec(), text(), geometry(), bands).prop_map(|(spec, model, geometry, bands)| {
            let reason = spec.prompt.clone();
            Event::Started { spec: Box::new(spec), model, geometry, bands, reason }
        }),
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
        }),
        fault().prop_map(|fault| Event::Failed { fault }),
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
            identity: (id % 2 == 0).then_some(Fingerprint([7; 32])),
        },
    );
    let job = (any::<u64>(), text(), option::of(any::<(u32, u32)>())).prop_map(
        |(id, prompt, progress)| JobView {
            id: JobId(id),
            reason: prompt.clone(),
            prompt,
            progress,
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
        any::<(u64, u32)>().prop_map(|(job, ahead)| ToClient::Accepted { job: JobId(job), ahead }),
        fault().prop_map(ToClient::Refused),
        (any::<u64>(), event()).prop_map(|(job, event)| ToClient::Event { job: JobId(job), event }),
        cluster().prop_map(|cluster| ToClient::Cluster(Box::new(cluster))),
        (any::<[u64; 2]>(), link_figures().prop_map(Ok), fault().prop_map(Err), any::<bool>())
            .prop_map(|(workers, figures, fault, good)| {
                let figures = if good { figures } else { fault };
                let link =
                    MeasuredLink { workers: workers.map(WorkerId), fabric: Fabric::Shm, figures };
                ToClient::Link(Box::new(link))
            }),
    ]
}

pub(crate) fn peer_hello() -> impl Strategy<Value = PeerHello> {
    (any::<(u16, u16, u16)>(), run_id(), any::<[u8; 32]>()).prop_map(
        |((wire, from, to), run, digest)| PeerHello {
            wire,
            run,
            from: Rank(from),
            to: Rank(to),
            digest: Digest(digest),
        },
    )
}

pub(crate) fn peer_answer() -> impl Strategy<Value = PeerAnswer> {
    prop_oneof![Just(PeerAnswer::Welcome), fault().prop_map(PeerAnswer::Refused)]
}

pub(crate) fn data_head() -> impl Strategy<Value = DataHead> {
    any::<(u32, u16, u32)>().prop_map(|(epoch, site, call)| DataHead {
        epoch: Epoch(epoch),
        site: Site(site),
        call: Call(call),
    })
}
