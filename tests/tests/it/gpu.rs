//! Two GPUs of this machine exchange by NCCL: the golden cases of two ranks, in a build with
//! `--features cuda`.

use protocol::Rank;
use protocol::job::{Dtype, Parallelism};
use protocol::plan::{Fabric, Offer, Plan};
use std::sync::Arc;
use tests::fixture;
use tests::render::{links, plan, render_on};
use tests::tolerance::relative_l2;
use worker::device::{Device, DeviceChoice, nccl};
use worker::model::checkpoint::Checkpoint;
use worker::model::files::ModelFiles;

/// Relative L2 per step against the public DistriFusion code, as that of one GPU (`device`).
const DISTRI_TOLERANCE: f64 = 1e-3;
/// And against the same ranks with links: what crosses is the same bit by bit (`parallel::nccl`), but kernels
/// may add up in another order from run to run.
const LINKS_TOLERANCE: f64 = 1e-5;

/// The first two GPUs, or why there are not two.
fn two_gpus() -> Result<[Device; 2], String> {
    if !cfg!(feature = "cuda") {
        return Err("this is not a build with --features cuda".to_owned());
    }
    let open = |number| match Device::open(DeviceChoice::Cuda(number), Dtype::F32) {
        Ok(Some(device)) => Ok(device),
        Ok(None) => Err(format!("GPU {number} is none")),
        Err(error) => Err(error.to_string()),
    };
    Ok([open(0)?, open(1)?])
}

fn offering(mut plan: Plan, devices: &[Device]) -> Plan {
    for (member, device) in plan.members.iter_mut().zip(devices) {
        // Where there are two GPUs, NCCL is to be there, too.
        member.offers = vec![Offer::Nccl(nccl::offer(device).unwrap())];
    }
    assert_eq!(plan.fabric(Rank(0), Rank(1)), Some(Fabric::Nccl), "{:?}", plan.members);
    plan
}

#[test]
fn two_ranks_exchange_by_nccl_and_agree_with_distrifusion() {
    let devices = match two_gpus() {
        Ok(devices) => devices,
        Err(why) => return println!("SKIPPED: NCCL between two GPUs was not tested: {why}"),
    };
    let cases = fixture::cases("distri.json");
    let cases = cases.iter().filter(|case| {
        let whole = case.n == 2 && !case.split_batch;
        whole && case.spec().parallelism == Parallelism::Patch
    });
    for case in cases {
        let scratch = tempfile::tempdir().unwrap();
        let files = ModelFiles::Folder(case.model(scratch.path()));
        let load =
            |device| Arc::new(Checkpoint::load_on(&files, Dtype::F32, Some(device)).unwrap());
        let checkpoints: Vec<_> = devices.iter().map(load).collect();
        let linked = plan(&checkpoints[0], &case.spec(), 2);
        let by_nccl = offering(linked.clone(), &devices);
        let [linked, by_nccl] = [linked, by_nccl].map(|plan| {
            let links = links(&checkpoints[0], &plan, None);
            render_on(&checkpoints, &plan, links).unwrap()
        });
        let want = &case.tensors("distri")["latents"];
        for (call, latent) in by_nccl.latents.iter().enumerate() {
            let apart = relative_l2(latent, &linked.latents[call]);
            assert!(apart < LINKS_TOLERANCE, "{}: call {call}: {apart:.2e} from links", case.name);
            let error = relative_l2(latent, want.part(call));
            assert!(error < DISTRI_TOLERANCE, "{}: call {call}: {error:.2e}", case.name);
        }
    }
}
