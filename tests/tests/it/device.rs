//! What a device is given, in candle's operations: the golden cases, on the processor and, in a build with
//! `--features cuda`, on the first GPU.

use protocol::job::{Dtype, Parallelism};
use protocol::plan::{Branch, Plan};
use std::path::Path;
use std::sync::Arc;
use tests::fixture::{self, Case, Values};
use tests::render::{links, plan, plan_of, render, render_on};
use tests::tolerance::{psnr, relative_l2};
use worker::device::{Device, DeviceChoice};
use worker::model::checkpoint::Checkpoint;
use worker::model::files::ModelFiles;

/// Relative L2 per step of one rank against stock diffusers.
const SINGLE_TOLERANCE: f64 = 1e-4;
/// Of several against the public DistriFusion code, as our own kernels' (`golden_distri`).
const DISTRI_TOLERANCE: f64 = 1e-3;
/// Relative L2 per step of what halves may lose.
const HALF_TOLERANCE: f64 = 0.02;

/// The devices there are to test.
fn devices() -> Vec<DeviceChoice> {
    let mut devices = vec![DeviceChoice::Candle];
    if cfg!(feature = "cuda") {
        devices.push(DeviceChoice::Cuda(0));
    } else {
        println!("skipped on a GPU: this is not a build with --features cuda");
    }
    devices
}

fn load(case: &Case, scratch: &Path, dtype: Dtype, device: DeviceChoice) -> Arc<Checkpoint> {
    let files = ModelFiles::Folder(case.model(scratch));
    let device = Device::open(device, dtype).unwrap();
    Arc::new(Checkpoint::load_on(&files, dtype, device.as_ref()).unwrap())
}

fn plan_for(case: &Case, checkpoint: &Checkpoint) -> Plan {
    let ranks = usize::from(case.n);
    let parts = match case.split_batch {
        true => vec![(Branch::Negative, ranks / 2), (Branch::Prompt, ranks / 2)],
        false => vec![(Branch::Whole, ranks)],
    };
    plan_of(checkpoint, &case.spec(), &parts)
}

/// The latent after each call against what it should be.
fn check_steps(
    device: DeviceChoice,
    case: &Case,
    latents: &[Vec<f64>],
    want: &Values,
    tolerance: f64,
) {
    assert_eq!(latents.len(), want.shape[0], "{device}: {}: calls", case.name);
    for (call, latent) in latents.iter().enumerate() {
        let error = relative_l2(latent, want.part(call));
        println!("{device}: {}: call {call}: {error:.2e}", case.name);
        assert!(error < tolerance, "{device}: {}: call {call}: {error:.2e}", case.name);
    }
}

#[test]
fn one_rank_agrees_with_diffusers() {
    for device in devices() {
        for case in fixture::cases("single.json").iter().chain(&fixture::cases("emoji.json")) {
            let scratch = tempfile::tempdir().unwrap();
            // As our own kernels compute: the weights' halves are exact in f32.
            let checkpoint = load(case, scratch.path(), Dtype::F32, device);
            let own = load(case, scratch.path(), Dtype::F32, DeviceChoice::Cpu);
            let plan = plan(&checkpoint, &case.spec(), 1);
            let rendered = render(&checkpoint, &plan, links(&checkpoint, &plan, None)).unwrap();
            let want = &case.tensors("single")["latents"];
            check_steps(device, case, &rendered.latents, want, SINGLE_TOLERANCE);
            let image = render(&own, &plan, links(&own, &plan, None)).unwrap().pixels;
            let alike = psnr(&rendered.pixels, &image);
            assert!(alike > 55.0, "{device}: {}: the images are {alike:.1} dB apart", case.name);
        }
    }
}

#[test]
fn several_ranks_agree_with_distrifusion() {
    for device in devices() {
        let cases = fixture::cases("distri.json");
        let banded = cases.iter().filter(|case| case.spec().parallelism != Parallelism::Tensor);
        for case in banded {
            let scratch = tempfile::tempdir().unwrap();
            let checkpoint = load(case, scratch.path(), Dtype::F32, device);
            let plan = plan_for(case, &checkpoint);
            let rendered = render(&checkpoint, &plan, links(&checkpoint, &plan, None)).unwrap();
            let want = &case.tensors("distri")["latents"];
            check_steps(device, case, &rendered.latents, want, DISTRI_TOLERANCE);
        }
    }
}

#[test]
fn ranks_on_a_device_and_on_our_own_kernels_render_one_image() {
    for device in devices() {
        let case = fixture::case("distri.json", "sdxl-n2-flat-corrected-w1");
        let scratch = tempfile::tempdir().unwrap();
        let checkpoints =
            [DeviceChoice::Cpu, device].map(|on| load(&case, scratch.path(), Dtype::F32, on));
        let plan = plan_for(&case, &checkpoints[0]);
        let links = links(&checkpoints[0], &plan, None);
        let rendered = render_on(&checkpoints, &plan, links).unwrap();
        let want = &case.tensors("distri")["latents"];
        check_steps(device, &case, &rendered.latents, want, DISTRI_TOLERANCE);
    }
}

#[test]
fn halves_stay_near_the_exact_image() {
    for device in devices() {
        let case = fixture::case("distri.json", "sdxl-n2-flat-corrected-w1");
        let scratch = tempfile::tempdir().unwrap();
        let checkpoint = load(&case, scratch.path(), Dtype::F16, device);
        let plan = plan_for(&case, &checkpoint);
        let rendered = render(&checkpoint, &plan, links(&checkpoint, &plan, None)).unwrap();
        let want = &case.tensors("distri")["latents"];
        let errors = rendered.latents.iter().enumerate();
        let errors = errors.map(|(call, latent)| relative_l2(latent, want.part(call)));
        let worst = errors.fold(0.0, f64::max);
        println!("{device}: f16: {worst:.2e}");
        // Were nothing rounded, this would test nothing.
        assert!((1e-5..HALF_TOLERANCE).contains(&worst), "{device}: {worst:.2e}");
    }
}

#[test]
fn tensor_parallelism_is_refused_by_name() {
    let case = fixture::case("distri.json", "sdxl-n2-tensor");
    let scratch = tempfile::tempdir().unwrap();
    let checkpoint = load(&case, scratch.path(), Dtype::F32, DeviceChoice::Candle);
    let plan = plan_for(&case, &checkpoint);
    let fault = render(&checkpoint, &plan, links(&checkpoint, &plan, None)).unwrap_err();
    assert!(fault.cause.contains("--parallelism tensor"), "{fault}");
    assert!(fault.cause.contains("--device candle"), "{fault}");
}
