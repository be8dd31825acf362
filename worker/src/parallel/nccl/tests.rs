//! What crosses by NCCL is what crosses over links, bit by bit: ranks in threads, whose communicator is
//! made of channels.

use super::*;
use crate::device::DeviceChoice;
use crate::device::nccl::CommunicatorId;
use crate::model::exchange::{DeviceMoments, Exchange, Rows};
use crate::model::tensor::Tensor;
use crate::parallel::{Displaced, Mesh, Synchronous};
use candle_core::{Device as Candle, WithDType};
use half::{bf16, f16};
use protocol::job::{Decode, Dtype, GnVariance, JobSpec, Mode, Parallelism, Scheduler, Warmup};
use protocol::plan::{
    Ask, Band, Branch, Geometry, Member, NcclDevice, Offer, Plan, SiteSpec, Stage, Step,
};
use protocol::transport::{Links, memory};
use protocol::{RunId, WorkerId};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use tokio::sync::oneshot;

const COLUMNS: u32 = 8;
const CHANNELS: u32 = 4;
/// Calls of a run, of which the first two are synchronous.
const CALLS: u32 = 6;
const WARMUP: u32 = 2;
const PATIENCE: Duration = Duration::from_secs(20);

/// A rank of a communicator between threads. What it sends leaves at once; what it receives arrives when it
/// is followed, so that nothing is read before.
#[derive(Debug)]
struct Threads {
    place: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
    under_way: VecDeque<(Ticket, Vec<Step>, Array)>,
    begun: u64,
}

impl Threads {
    /// Those of a communicator of so many ranks.
    fn of(ranks: usize) -> Vec<Self> {
        let mut all: Vec<Self> = (0..ranks)
            .map(|place| Self {
                place,
                to: Vec::new(),
                from: Vec::new(),
                under_way: VecDeque::new(),
                begun: 0,
            })
            .collect();
        for from in 0..ranks {
            for to in 0..ranks {
                let (sender, receiver) = channel();
                all[from].to.push(sender);
                all[to].from.push(receiver);
            }
        }
        all
    }

    fn parts(&self, step: &Step, received: bool) -> Vec<(usize, Range<usize>)> {
        let ranks = self.to.len();
        match step {
            Step::AllGather(all) => {
                let bytes = all.len() / ranks;
                let part =
                    |place: usize| all.start + place * bytes..all.start + (place + 1) * bytes;
                let peers = (0..ranks).filter(|peer| *peer != self.place);
                peers.map(|peer| (peer, part(if received { peer } else { self.place }))).collect()
            }
            Step::Send(peer, bytes) if !received => vec![(*peer, bytes.clone())],
            Step::Receive(peer, bytes) if received => vec![(*peer, bytes.clone())],
            _ => Vec::new(),
        }
    }
}

impl Collective for Threads {
    fn begin(&mut self, steps: &[Step], buffer: &Array) -> std::result::Result<Ticket, NcclError> {
        let values = bytes_of(buffer);
        for (peer, bytes) in steps.iter().flat_map(|step| self.parts(step, false)) {
            self.to[peer].send(values[bytes].to_vec()).ok(); // it may have ended
        }
        // What is received may arrive from now on: whoever reads it before it is followed reads this.
        for (_, bytes) in steps.iter().flat_map(|step| self.parts(step, true)) {
            write(buffer, bytes.clone(), &vec![0x55; bytes.len()]);
        }
        self.begun += 1;
        self.under_way.push_back((Ticket(self.begun), steps.to_vec(), buffer.clone()));
        Ok(Ticket(self.begun))
    }

    fn follow(&mut self, ticket: Ticket) -> std::result::Result<(), NcclError> {
        while self.under_way.front().is_some_and(|(begun, _, _)| *begun <= ticket) {
            let (_, steps, buffer) = self.under_way.pop_front().unwrap();
            for (peer, bytes) in steps.iter().flat_map(|step| self.parts(step, true)) {
                let value = self.from[peer].recv_timeout(PATIENCE).expect("peers do the same");
                assert_eq!(value.len(), bytes.len(), "operations in another order");
                write(&buffer, bytes, &value);
            }
        }
        Ok(())
    }

    fn is_done(&mut self) -> std::result::Result<bool, NcclError> {
        Ok(true)
    }

    fn abort(&mut self) {}

    fn leave(self: Box<Self>) -> std::result::Result<(), NcclError> {
        assert!(self.under_way.is_empty(), "it left before it was done");
        Ok(())
    }
}

fn bytes_of(array: &Array) -> Vec<u8> {
    fn of<T: WithDType + bytemuck::Pod>(array: &Array) -> Vec<u8> {
        let values = array.flatten_all().unwrap().to_vec1::<T>().unwrap();
        bytemuck::cast_slice(&values).to_vec()
    }
    match array.dtype() {
        DType::F16 => of::<f16>(array),
        DType::BF16 => of::<bf16>(array),
        _ => of::<f32>(array),
    }
}

fn write(buffer: &Array, bytes: Range<usize>, value: &[u8]) {
    fn of<T: WithDType + bytemuck::Pod>(value: &[u8]) -> Array {
        let values = bytemuck::pod_collect_to_vec::<u8, T>(value);
        let count = values.len();
        Array::from_vec(values, count, &Candle::Cpu).unwrap()
    }
    let part = match buffer.dtype() {
        DType::F16 => of::<f16>(value),
        DType::BF16 => of::<bf16>(value),
        _ => of::<f32>(value),
    };
    let first = bytes.start / buffer.dtype().size_in_bytes();
    buffer.flatten_all().unwrap().slice_set(&part, 0, first).unwrap();
}

/// Bands of these heights; the ranks of `near` have GPUs of one machine.
fn plan(heights: &[u32], near: &[u16], mode: Mode, wire: Wire) -> Plan {
    let spec = JobSpec {
        prompt: String::new(),
        negative: None,
        width: 64,
        height: 64,
        steps: CALLS,
        guidance: 5.0,
        seed: 1,
        scheduler: Scheduler::Euler,
        warmup: Warmup::Calls(WARMUP - 1),
        parallelism: Parallelism::Patch,
        mode,
        gn_variance: GnVariance::Reference,
        wire,
        decode: Decode::Whole,
        probe: false,
        profile: false,
        loras: Vec::new(),
        init: None,
    };
    let mut top = 0;
    let members = heights.iter().zip(0_u16..).map(|(rows, number)| {
        let band = Band { top, rows: *rows };
        top += rows;
        let gpu = NcclDevice { host: "a".to_owned(), gpu: number.to_string(), version: 22_803 };
        Member {
            worker: WorkerId(number.into()),
            name: String::new(),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
            offers: near.contains(&number).then_some(Offer::Nccl(gpu)).into_iter().collect(),
            branch: Branch::Whole,
            band,
            decodes: band,
            identity: None,
        }
    });
    let members: Vec<Member> = members.collect();
    let geometry =
        Geometry { rows: top, columns: COLUMNS, channels: 4, row_unit: 4, vae_factor: 8 };
    Plan { run: RunId::default(), spec, geometry, members, fabrics: Vec::new(), broken: Vec::new() }
}

const INPUT: Site = Site(0);
const HALO: Site = Site(1);
const NORM: Site = Site(2);
const TOKENS: Site = Site(3);

fn sites() -> Vec<SiteSpec> {
    let site =
        |ask, stage| SiteSpec { path: String::new(), ask, stage, channels: CHANNELS, halvings: 0 };
    vec![
        site(Ask::Halo { rows: 1 }, Stage::Input),
        site(Ask::Halo { rows: 1 }, Stage::Denoise),
        site(Ask::Moments { groups: 2 }, Stage::Denoise),
        site(Ask::Gather, Stage::Denoise),
        site(Ask::Communicator, Stage::Latent),
    ]
}

/// What a rank computes at a place: some numbers, always the same.
fn computed(device: &Device, dims: &[usize], seed: [u32; 3], dtype: DType) -> Tensor {
    let count: usize = dims.iter().product();
    let seed = seed.iter().fold(17_u32, |seed, part| seed.wrapping_mul(31).wrapping_add(*part));
    let values = (0..u32::try_from(count).unwrap()).map(|index| {
        let mixed = (index ^ seed).wrapping_mul(0x9e37_79b9) >> 16;
        f32::from(u16::try_from(mixed).unwrap()) / 7777.0 - 4.0
    });
    let values: Vec<f32> = values.collect();
    let array = device.upload(&values, dims).unwrap().to_dtype(dtype).unwrap();
    Tensor::of_array(device, array).unwrap()
}

fn device(dtype: DType) -> Device {
    let dtype = if dtype == DType::F16 { Dtype::F16 } else { Dtype::F32 };
    Device::open(DeviceChoice::Candle, dtype).unwrap().unwrap()
}

fn values(array: &Array) -> Vec<f32> {
    array.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// All that a rank is answered in a run, in its order.
fn answers(
    plan: &Plan,
    rank: Rank,
    links: Links,
    near: Option<Threads>,
    dtype: DType,
) -> Vec<Vec<f32>> {
    let (held, cancel) = oneshot::channel();
    let (sites, device) = (sites(), device(dtype));
    let mut mesh = Mesh::new(plan, &sites, rank, links, cancel).unwrap();
    if let Some(near) = near {
        let collectives = Collectives::new(plan, &sites, rank).unwrap();
        mesh.reach(Near::new(collectives, rank, device.clone(), Box::new(near)).unwrap());
    }
    let rows = plan.members[rank.index()].band.rows;
    let mut answers = Vec::new();
    for call in 0..CALLS {
        let from = match plan.spec.mode {
            _ if call < WARMUP => None,
            Mode::FullSync => None,
            Mode::NoSync => Some(Call(WARMUP - 1)),
            _ => Some(Call(call - 1)),
        };
        let mode = plan.spec.mode;
        let mut exchange: Box<dyn Exchange + '_> = match from {
            None => Box::new(Synchronous::new(&mut mesh, Call(call))),
            Some(from) => {
                Box::new(Displaced::new(&mut mesh, mode, Call(call), from, call + 1 == CALLS))
            }
        };
        for site in [INPUT, NORM, HALO, TOKENS] {
            let seed = [rank.0.into(), call, site.0.into()];
            let x = |dims: &[usize], dtype| computed(&device, dims, seed, dtype);
            answers.extend(asked(&mut *exchange, site, rows as usize, dtype, x));
        }
        drop(exchange);
        mesh.leave().unwrap();
    }
    mesh.part().unwrap();
    drop(held);
    answers
}

fn asked(
    exchange: &mut dyn Exchange,
    site: Site,
    rows: usize,
    dtype: DType,
    computed: impl Fn(&[usize], DType) -> Tensor,
) -> Vec<Vec<f32>> {
    let (columns, channels) = (COLUMNS as usize, CHANNELS as usize);
    match site {
        NORM => {
            // Means of either sign, squared deviations of one.
            let mut groups = computed(&[4, 2], DType::F32).to_host().unwrap().into_owned();
            groups.iter_mut().skip(1).step_by(2).for_each(|m2| *m2 = m2.abs() * 100.0);
            let x = computed(&[4, 2], DType::F32);
            let memory = x.memory();
            let own = DeviceMoments {
                count: (rows * columns * 2) as f64,
                groups: Tensor::new(&memory, &groups, [4, 2]).unwrap(),
            };
            let whole = exchange.moments_on_device(site, &own).unwrap();
            vec![whole.groups.to_host().unwrap().into_owned()]
        }
        TOKENS => {
            let own = computed(&[2, rows * columns, channels], dtype);
            let all = exchange.gather(site, &own).unwrap();
            let own = own.on_device().unwrap();
            vec![values(&Rows::joined_on_device(&all, own, [2, channels]).unwrap())]
        }
        _ => {
            let x = computed(&[2, rows, columns, channels], dtype);
            let halo = exchange.halo(site, &x, 1).unwrap();
            let device = x.on_device().unwrap().device;
            let row = |rows: Option<Rows>| {
                let row =
                    rows.map(|rows| rows.on_device(device, &[2, 1, columns, channels]).unwrap());
                row.map_or_else(Vec::new, |row| values(&row))
            };
            vec![row(halo.above), row(halo.below)]
        }
    }
}

/// What all ranks of a run are answered, and how many exchanged by NCCL.
fn run(plan: &Plan, dtype: DType) -> (Vec<Vec<Vec<f32>>>, usize) {
    let sites = sites();
    let group = plan.ranks().map(|rank| plan.nccl_group(rank)).find(|group| !group.is_empty());
    let group = group.unwrap_or_default();
    let mut communicator: VecDeque<Threads> = Threads::of(group.len()).into();
    let mut threads = Vec::new();
    for (rank, links) in plan.ranks().zip(memory::mesh(plan, &sites, Some(5))) {
        let near = group.contains(&rank).then(|| communicator.pop_front().unwrap());
        let plan = plan.clone();
        threads.push(std::thread::spawn(move || answers(&plan, rank, links, near, dtype)));
    }
    (threads.into_iter().map(|thread| thread.join().unwrap()).collect(), group.len())
}

fn check(heights: &[u32], near: &[u16], (mode, wire, dtype): (Mode, Wire, DType)) {
    let (linked, none) = run(&plan(heights, &[], mode, wire), dtype);
    let (by_nccl, group) = run(&plan(heights, near, mode, wire), dtype);
    assert_eq!((none, group), (0, near.len()));
    for (rank, (by_nccl, linked)) in by_nccl.iter().zip(&linked).enumerate() {
        for (answer, (by_nccl, linked)) in by_nccl.iter().zip(linked).enumerate() {
            let place =
                format!("{heights:?} {near:?} {mode} {wire} {dtype:?}: rank {rank}: {answer}");
            assert!(by_nccl == linked, "{place}: {by_nccl:?}, not {linked:?}");
        }
        assert_eq!(by_nccl.len(), linked.len());
    }
}

#[test]
fn s5_every_mode_computes_the_same_by_nccl_as_over_links() {
    for mode in Mode::ALL {
        check(&[8, 8], &[0, 1], (*mode, Wire::F32, DType::F32));
        check(&[4, 8, 4], &[0, 1, 2], (*mode, Wire::F32, DType::F32));
    }
}

#[test]
fn s5_part_of_a_branch_by_nccl_and_the_rest_over_links() {
    for near in [&[0, 1][..], &[1, 2], &[0, 2], &[0, 1, 3]] {
        check(&[4, 8, 4, 4], near, (Mode::Corrected, Wire::F32, DType::F32));
    }
}

#[test]
fn s5_values_that_are_rounded_on_their_way_are_rounded_alike() {
    for (wire, dtype) in [
        (Wire::F16, DType::F32),
        (Wire::F16, DType::F16),
        (Wire::Bf16, DType::F32),
        (Wire::F32, DType::F16),
    ] {
        check(&[8, 8], &[0, 1], (Mode::Corrected, wire, dtype));
        check(&[4, 8], &[0, 1], (Mode::Stale, wire, dtype));
    }
}

/// A communicator whose operations never end.
#[derive(Debug)]
struct Stuck(Arc<AtomicBool>);

impl Collective for Stuck {
    fn begin(&mut self, _: &[Step], _: &Array) -> std::result::Result<Ticket, NcclError> {
        Ok(Ticket(1))
    }

    fn follow(&mut self, _: Ticket) -> std::result::Result<(), NcclError> {
        Ok(())
    }

    fn is_done(&mut self) -> std::result::Result<bool, NcclError> {
        Ok(false)
    }

    fn abort(&mut self) {
        self.0.store(true, Ordering::Release);
    }

    fn leave(self: Box<Self>) -> std::result::Result<(), NcclError> {
        Ok(())
    }
}

/// Rank 0 of two, whose communicator is stuck; the links of the other, what cancels the run, and whether the
/// communicator was aborted.
fn stuck() -> (Mesh, Links, oneshot::Sender<Fault>, Arc<AtomicBool>) {
    let plan = plan(&[8, 8], &[0, 1], Mode::Corrected, Wire::F16);
    let mut links = memory::mesh(&plan, &sites(), None);
    let theirs = links.pop().unwrap();
    let (canceller, cancel) = oneshot::channel();
    let mut mesh = Mesh::new(&plan, &sites(), Rank(0), links.pop().unwrap(), cancel).unwrap();
    let aborted = Arc::new(AtomicBool::new(false));
    let collectives = Collectives::new(&plan, &sites(), Rank(0)).unwrap();
    let collective = Box::new(Stuck(Arc::clone(&aborted)));
    mesh.reach(Near::new(collectives, Rank(0), device(DType::F32), collective).unwrap());
    (mesh, theirs, canceller, aborted)
}

#[test]
fn a_peer_that_is_lost_ends_the_wait_for_the_device() {
    let (mut mesh, theirs, _canceller, aborted) = stuck();
    let lost = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        drop(theirs);
    });
    let error = mesh.settle().unwrap_err();
    lost.join().unwrap();
    assert!(
        matches!(error, crate::model::Error::Exchange(fault) if fault.kind == FaultKind::PeerLost)
    );
    assert!(aborted.load(Ordering::Acquire), "nothing may wait for it any more");
}

#[test]
fn a_run_that_is_cancelled_ends_the_wait_for_the_device() {
    let (mut mesh, _theirs, canceller, aborted) = stuck();
    canceller.send(Fault::new(FaultKind::Cancelled, "enough".to_owned())).unwrap();
    let error = mesh.settle().unwrap_err();
    assert!(error.to_string().contains("enough"), "{error}");
    assert!(aborted.load(Ordering::Acquire), "nothing may wait for it any more");
}

#[test]
fn what_f16_cannot_hold_is_named_a_call_later() {
    let (mut mesh, _theirs, _canceller, _) = stuck();
    let device = device(DType::F32);
    let tokens = 8 * COLUMNS as usize;
    let large = vec![7e4; 2 * tokens * CHANNELS as usize];
    let large = device.upload(&large, &[2, tokens, CHANNELS as usize]).unwrap();
    mesh.share(TOKENS, Call(0), &Tensor::of_array(&device, large).unwrap()).unwrap();
    mesh.leave().unwrap();
    let error = mesh.leave().unwrap_err().to_string();
    assert!(error.contains("at site 3"), "{error}");
}

#[test]
fn a_rank_that_cannot_do_what_the_plan_relies_on_says_why() {
    let plan = plan(&[8, 8], &[0, 1], Mode::Corrected, Wire::F32);
    let join = |device: Option<&Device>| {
        let (_held, cancel) = oneshot::channel();
        let links = memory::mesh(&plan, &sites(), None).swap_remove(0);
        let mut mesh = Mesh::new(&plan, &sites(), Rank(0), links, cancel).unwrap();
        mesh.join(&plan, &sites(), device).unwrap_err().to_string()
    };
    assert!(join(None).contains("computes on its processor"));
    assert!(join(Some(&device(DType::F32))).contains("use cuda:N"));
}

#[test]
fn an_identity_crosses_as_it_is() {
    let id: CommunicatorId = std::array::from_fn(|at| match at % 4 {
        0 => u8::try_from(at).unwrap(),
        1 => 0,
        2 => 0xa0,
        _ => 0x7f,
    });
    let words = bytemuck::pod_collect_to_vec::<u8, f32>(&id);
    assert!(words.iter().any(|word| word.is_nan()), "as arithmetic would change it");
    let plan = plan(&[8, 8], &[0, 1], Mode::Corrected, Wire::F16);
    let mut links = memory::mesh(&plan, &sites(), None);
    let cancels = [0, 1].map(|_| oneshot::channel());
    let ([one, other], [held, kept]) = {
        let [(held, one), (kept, other)] = cancels;
        ([one, other], [held, kept])
    };
    let mut meshes = [(1_u16, other), (0, one)].map(|(rank, cancel)| {
        Mesh::new(&plan, &sites(), Rank(rank), links.pop().unwrap(), cancel).unwrap()
    });
    let [theirs, own] = &mut meshes;
    own.post(Rank(1), Site(4), Call(0), &words).unwrap();
    assert_eq!(theirs.receive(Rank(0), Site(4), Call(0)).unwrap()[..], id);
    drop((held, kept));
}
