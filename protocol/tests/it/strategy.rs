//! Every message there is, at random.

mod client;

pub(crate) use client::to_client;

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use protocol::identity::Fingerprint;
use protocol::job::{
    Bands, CfgSplit, Decode, Dtype, Field, FileDigest, GnVariance, Init, InitWish, JobRequest,
    JobSpec, Lora, Mode, ModelCard, ModelWork, Parallelism, PreviewMap, Priority, Scheduler, Terms,
    Warmup, Wire,
};
use protocol::message::{
    DataHead, Enrolment, FromClient, Greeting, Hello, JobStage, Join, Part, PeerAnswer, PeerHello,
    Phase, Profile, Pulse, Resume, Role, Span, ToCoordinator, ToWorker, Traffic, Work,
};
use protocol::plan::netcheck::LinkFigures;
use protocol::plan::{
    Band, Branch, Digest, Fabric, Geometry, Kind, Lack, Member, Offer, Plan, SharedMemory,
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
        FaultKind::UnknownJob,
        FaultKind::Conflict,
    ]);
    let field = option::of(prop::sample::select(Field::ALL));
    (kinds, option::of(any::<u16>()), option::of(any::<u32>()), field, text()).prop_map(
        |(kind, rank, call, field, cause)| Fault {
            kind,
            rank: rank.map(Rank),
            call: call.map(Call),
            peer: call.map(|_| Rank(3)),
            field,
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
                loras: loras(warmup),
                init: (warmup % 3 == 1)
                    .then_some(Init { file: FileDigest([9; 32]), strength: 0.5 }),
            }
        },
    )
}

fn loras(number: u32) -> Vec<Lora> {
    let lora = |scale| Lora { file: FileDigest([7; 32]), name: format!("{number}"), scale };
    [0.5, -1.5].into_iter().take(usize::try_from(number % 3).expect("small")).map(lora).collect()
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
            deterministic: given,
            rebalance: !given,
            probe: spec.probe,
            profile: !spec.probe,
            loras: spec.loras,
            init: spec.init.map(|Init { file, strength }| InitWish {
                file,
                width: spec.width,
                height: spec.height,
                strength: given.then_some(strength),
            }),
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

fn preview() -> impl Strategy<Value = PreviewMap> {
    let colour = || prop::array::uniform3(-2.0..2.0_f32);
    (vec(colour(), 0..20), colour()).prop_map(|(weights, offset)| PreviewMap { weights, offset })
}

fn card() -> impl Strategy<Value = ModelCard> {
    let sizes = any::<(u32, u32, u32, (u32, u32), u64, (u32, u32))>();
    let counted = (model_work(), option::of(preview()));
    (text(), text(), text(), dtype(), scheduler(), sizes, counted).prop_map(
        |(name, digest, family, dtype, scheduler, sizes, (work, preview))| {
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
                preview,
                encode_bytes: most.0,
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
            let broken = vec![([Rank(0), Rank(1)], Fabric::Quic)];
            Plan { run, spec, geometry, members, fabrics, broken }
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
    let posted = vec(any::<(u16, u64)>().prop_map(|(rank, bytes)| (Rank(rank), bytes)), 0..4);
    (phase(), any::<(u32, bool, u64, u64)>(), spans, posted).prop_map(
        |(phase, (call, displaced, start_us, took_us), spans, posted)| Profile {
            phase,
            call,
            displaced,
            start_us,
            took_us,
            spans,
            posted,
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
        let (call, calls, took_us, waited_us, bytes) = numbers;
        let posted = vec![(Fabric::Tcp, Kind::Halo, bytes), (Fabric::Nccl, Kind::KeysValues, 1)];
        let traffic = Traffic { posted, read: [waited_us, took_us] };
        let (displaced, change) = (call % 2 == 0, (calls % 2 == 0).then_some(0.5));
        ToCoordinator::Stepped {
            run,
            call,
            calls,
            took_us,
            waited_us,
            traffic,
            displaced,
            change,
            history: 3,
        }
    });
    let probed = (run_id(), client::site_reports())
        .prop_map(|(run, sites)| ToCoordinator::Probed { run, sites });
    let profiled =
        (run_id(), profile()).prop_map(|(run, profile)| ToCoordinator::Profiled { run, profile });
    let decoded = (run_id(), any::<(u64, u64)>()).prop_map(|(run, (took_us, waited_us))| {
        let peak_bytes = took_us;
        ToCoordinator::Decoded { run, took_us, waited_us, peak_bytes }
    });
    prop_oneof![
        (any::<u64>(), option::of((run_id(), any::<u64>(), option::of(any::<u16>())))).prop_map(
            |(resident_bytes, pulse)| {
                let pulse =
                    pulse.map(|(run, beats, peer)| Pulse { run, beats, waits_for: peer.map(Rank) });
                ToCoordinator::Alive { resident_bytes, pulse }
            }
        ),
        Just(ToCoordinator::Leaving),
        (run_id(), text()).prop_map(|(run, text)| ToCoordinator::Notice { run, text }),
        (run_id(), phase()).prop_map(|(run, phase)| ToCoordinator::Entered { run, phase }),
        stepped,
        probed,
        profiled,
        decoded,
        (run_id(), fault(), vec(any::<u16>().prop_map(Rank), 0..4))
            .prop_map(|(run, fault, unopened)| ToCoordinator::Failed { run, fault, unopened }),
        run_id().prop_map(|run| ToCoordinator::Aborted { run }),
        (run_id(), vec((any::<u16>().prop_map(Rank), link_figures()), 0..4))
            .prop_map(|(run, links)| ToCoordinator::Measured { run, links }),
        vec(file(), 0..4).prop_map(|files| ToCoordinator::Holds { files }),
        (file(), fault()).prop_map(|(file, fault)| ToCoordinator::Unheld { file, fault }),
    ]
}

pub(crate) fn file() -> impl Strategy<Value = FileDigest> {
    any::<[u8; 32]>().prop_map(FileDigest)
}

pub(crate) fn to_worker() -> impl Strategy<Value = ToWorker> {
    prop_oneof![
        (plan(), any::<u16>(), option::of(any::<(u32, u8)>())).prop_map(|(plan, rank, resume)| {
            let resume = resume.map(|(calls, history)| Resume { calls, history });
            ToWorker::Start { plan: Box::new(plan), rank: Rank(rank), resume }
        }),
        Just(ToWorker::Alive),
        Just(ToWorker::Leave),
        (plan(), any::<u16>())
            .prop_map(|(plan, rank)| ToWorker::Measure { plan: Box::new(plan), rank: Rank(rank) }),
        (run_id(), fault()).prop_map(|(run, fault)| ToWorker::Abort { run, fault }),
        (file(), any::<(u64, u64)>()).prop_map(|(file, (offset, total))| ToWorker::File {
            file,
            offset,
            total
        }),
    ]
}

pub(crate) fn from_client() -> impl Strategy<Value = FromClient> {
    prop_oneof![
        (request(), any::<bool>(), option::of(text())).prop_map(|(request, detached, key)| {
            let terms = Terms { detached, priority: Priority::High, idempotency_key: key };
            FromClient::Submit { request: Box::new(request), terms }
        }),
        Just(FromClient::Status),
        any::<u64>().prop_map(|job| FromClient::Follow(JobId(job))),
        text().prop_map(FromClient::Drain),
        vec(prop::sample::select(Fabric::ALL), 0..3)
            .prop_map(|fabrics| FromClient::Netcheck { fabrics }),
        any::<(u64, bool)>()
            .prop_map(|(job, payloads)| FromClient::Watch { job: JobId(job), payloads }),
        any::<u64>().prop_map(|job| FromClient::Cancel(JobId(job))),
        any::<u64>().prop_map(|job| FromClient::Show { job: JobId(job), with: Part::Latent }),
        any::<u64>().prop_map(|job| FromClient::Show { job: JobId(job), with: Part::Trace }),
        (option::of(any::<u64>()), any::<u16>(), vec(prop::sample::select(JobStage::ALL), 0..3))
            .prop_map(|(before, limit, stages)| FromClient::Jobs {
                before: before.map(JobId),
                limit,
                stages
            }),
        (file(), any::<(u64, u64)>()).prop_map(|(file, (offset, total))| FromClient::Put {
            file,
            offset,
            total
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
