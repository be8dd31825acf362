//! An image that others began: R-3 of the coordinator's recovery, for every sampler.

use protocol::Fault;
use protocol::job::{Dtype, GnVariance, JobSpec, Mode, Parallelism, Scheduler, Warmup};
use protocol::plan::{Branch, Plan};
use std::sync::Arc;
use tests::fixture;
use tests::render::{Progress, Rendered, links, plan, plan_of, render, render_from};
use tests::tolerance::relative_l2;
use worker::model::checkpoint::Checkpoint;
use worker::model::files::ModelFiles;

/// Relative L2 of what only the order of additions tells apart.
const ROUNDING: f64 = 2e-5;

fn checkpoint() -> Arc<Checkpoint> {
    let files = ModelFiles::Folder(fixture::golden("models").join("tiny-sdxl"));
    Arc::new(Checkpoint::load(&files, Dtype::Auto).unwrap())
}

fn spec(scheduler: Scheduler, mode: Mode, warmup: u32) -> JobSpec {
    let spec = fixture::case("single.json", "sdxl-ddim").spec();
    let (steps, warmup) = (6, Warmup::Calls(warmup));
    JobSpec { steps, scheduler, mode, warmup, gn_variance: GnVariance::Population, ..spec }
}

fn whole(checkpoint: &Arc<Checkpoint>, plan: &Plan) -> Rendered {
    render(checkpoint, plan, links(checkpoint, plan, None)).unwrap()
}

fn rest(checkpoint: &Arc<Checkpoint>, plan: &Plan, from: &Progress) -> Result<Rendered, Fault> {
    let checkpoints = vec![Arc::clone(checkpoint); plan.world_size()];
    render_from(&checkpoints, plan, links(checkpoint, plan, Some(7)), Some(from))
}

#[test]
fn a_synchronous_image_goes_on_bit_for_bit_after_any_call_of_any_sampler() {
    let checkpoint = checkpoint();
    for scheduler in Scheduler::ALL {
        let plan = plan(&checkpoint, &spec(*scheduler, Mode::FullSync, 0), 2);
        let undisturbed = whole(&checkpoint, &plan);
        for from in &undisturbed.progress {
            let rest = rest(&checkpoint, &plan, from).unwrap();
            let calls = from.calls as usize;
            assert_eq!(rest.progress, undisturbed.progress[calls..], "{scheduler} after {calls}");
            assert!(rest.pixels == undisturbed.pixels, "{scheduler} after {calls}: other pixels");
        }
    }
}

#[test]
fn other_bands_and_branches_go_on_with_the_same_image_to_rounding() {
    let checkpoint = checkpoint();
    for scheduler in [Scheduler::Dpmpp2m, Scheduler::Heun, Scheduler::EulerA] {
        let spec = spec(scheduler, Mode::FullSync, 0);
        let undisturbed = whole(&checkpoint, &plan(&checkpoint, &spec, 3));
        let from = &undisturbed.progress[2];
        let branches = [(Branch::Negative, 2), (Branch::Prompt, 1)];
        for other in [plan(&checkpoint, &spec, 1), plan_of(&checkpoint, &spec, &branches)] {
            let rest = rest(&checkpoint, &other, from).unwrap();
            let ranks = other.world_size();
            assert_eq!(rest.latents.len(), undisturbed.latents.len() - 3);
            for (got, want) in rest.latents.iter().zip(&undisturbed.latents[3..]) {
                let error = relative_l2(got, want);
                assert!(error < ROUNDING, "{scheduler} on {ranks} ranks is off by {error:.2e}");
            }
        }
    }
}

/// What `--deterministic` rests on: [`Plan::resumes_exactly`] says after which calls.
#[test]
fn a_displaced_image_goes_on_bit_for_bit_while_it_is_warming_up_and_close_to_it_later() {
    let checkpoint = checkpoint();
    for mode in Mode::ALL {
        let plan = plan(&checkpoint, &spec(Scheduler::Ddim, *mode, 2), 3);
        let undisturbed = whole(&checkpoint, &plan);
        for from in &undisturbed.progress {
            let rest = rest(&checkpoint, &plan, from).unwrap();
            let calls = from.calls as usize;
            let same = rest.progress == undisturbed.progress[calls..];
            let done = calls == undisturbed.progress.len();
            assert_eq!(same, plan.resumes_exactly(from.calls) || done, "{mode} after {calls}");
            let synchronous = rest.displaced[0].first() == Some(&false);
            assert!(synchronous || done, "{mode}: the first call after {calls} is displaced");
            if let (Some(got), Some(want)) = (rest.latents.last(), undisturbed.latents.last()) {
                let error = relative_l2(got, want);
                println!("{mode} after {calls}: off by {error:.2e}");
                assert!(error < 0.1, "{mode} after {calls}: off by {error:.2e}");
            }
        }
    }
}

#[test]
fn baselines_go_on_bit_for_bit() {
    let checkpoint = checkpoint();
    for parallelism in [Parallelism::Tensor, Parallelism::NaiveAlternate] {
        let spec = JobSpec { parallelism, ..spec(Scheduler::Ddim, Mode::Corrected, 1) };
        let plan = plan(&checkpoint, &spec, 2);
        let undisturbed = whole(&checkpoint, &plan);
        let from = &undisturbed.progress[3];
        assert!(plan.resumes_exactly(from.calls));
        let rest = rest(&checkpoint, &plan, from).unwrap();
        assert_eq!(rest.progress, undisturbed.progress[4..], "{parallelism}");
    }
}

#[test]
fn a_checkpoint_of_another_image_is_refused_by_name() {
    let checkpoint = checkpoint();
    let plan = plan(&checkpoint, &spec(Scheduler::Dpmpp2m, Mode::FullSync, 0), 2);
    let undisturbed = whole(&checkpoint, &plan);
    let from = undisturbed.progress[2].clone();
    let late = rest(&checkpoint, &plan, &Progress { calls: 99, ..from.clone() }).unwrap_err();
    assert!(late.cause.contains("after call 99: there are 6"), "{late}");
    let planes = from.latent();
    let forgetful = rest(&checkpoint, &plan, &Progress { history: 0, planes, ..from }).unwrap_err();
    assert!(forgetful.cause.contains("remembers 1 tensor"), "{forgetful}");
}
