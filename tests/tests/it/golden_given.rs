//! LoRA files and pictures to begin with, against stock diffusers; and the same on several ranks.

use protocol::job::{Dtype, JobSpec, Lora, Parallelism};
use protocol::{Fault, FaultKind};
use std::sync::Arc;
use tests::fixture::given::{self, Given};
use tests::render::{self, Progress, Rendered, links, plan};
use tests::tolerance::relative_l2;
use worker::engine::Files;
use worker::model::checkpoint::Checkpoint;
use worker::model::files::ModelFiles;

/// Relative L2 of the latent after each call: all are within 3e-6.
const TOLERANCE: f64 = 1e-4;

/// Root mean square of the image in 0..1, 8 bits a channel on our side: rounding to them alone is half of it.
const IMAGE_TOLERANCE: f64 = 2e-3;
/// What ranks' group statistics, added up in another order, may cost: relative L2 of a latent.
const ROUNDING: f64 = 1e-4;

fn load(given: &Given) -> Arc<Checkpoint> {
    load_as(given, Dtype::Auto)
}

fn load_as(given: &Given, dtype: Dtype) -> Arc<Checkpoint> {
    let files = ModelFiles::Folder(tests::fixture::golden("models").join(&given.case.model));
    Arc::new(Checkpoint::load(&files, dtype).unwrap())
}

fn render_from(
    checkpoint: &Arc<Checkpoint>,
    (spec, files): (&JobSpec, &Files),
    ranks: usize,
    from: Option<&Progress>,
) -> Result<Rendered, Fault> {
    let plan = plan(checkpoint, spec, ranks);
    let checkpoints = vec![Arc::clone(checkpoint); ranks];
    render::render_with(&checkpoints, &plan, links(checkpoint, &plan, None), (from, files))
}

fn render(checkpoint: &Arc<Checkpoint>, given: &Given, ranks: usize) -> Rendered {
    render_from(checkpoint, (&given.spec(), &given.files()), ranks, None).unwrap()
}

fn check(given: &Given) {
    let (name, want) = (&given.case.name, given.tensors());
    let rendered = render(&load(given), given, 1);
    let latents = &want["latents"];
    assert_eq!(rendered.latents.len(), latents.shape[0], "{name}: calls");
    for (call, latent) in rendered.latents.iter().enumerate() {
        let error = relative_l2(latent, latents.part(call));
        println!("{name}: call {call}: {error:.2e}");
        assert!(error < TOLERANCE, "{name}: call {call} is off by {error:.2e}");
    }
    let (image, pixels) = (&want["image"].values, &rendered.pixels);
    let plane = pixels.len() / 3;
    let squares = pixels.iter().enumerate().map(|(index, pixel)| {
        (f64::from(*pixel) / 255.0 - image[index % 3 * plane + index / 3]).powi(2)
    });
    let error = (squares.sum::<f64>() / pixels.len() as f64).sqrt();
    println!("{name}: image: {error:.2e}");
    assert!(error < IMAGE_TOLERANCE, "{name}: the image is off by {error:.2e}");
}

#[test]
fn loras_are_those_of_diffusers() {
    given::all().iter().filter(|given| given.picture.is_none()).for_each(check);
}

#[test]
fn pictures_to_begin_with_are_those_of_diffusers() {
    given::all().iter().filter(|given| given.picture.is_some()).for_each(check);
}

#[test]
fn a_lora_changes_the_image_and_leaves_the_model_as_it_was() {
    for name in ["lora-peft", "lora-kohya"] {
        let given = given::named(name);
        let checkpoint = load(&given);
        let plain = Given { loras: Vec::new(), ..given.clone() };
        let before = render(&checkpoint, &plain, 1);
        let changed = render(&checkpoint, &given, 1);
        let moved = relative_l2(&changed.latents[0], &before.latents[0]);
        assert!(moved > 0.01, "{name}: {moved:.2e}: this would test nothing");
        assert_eq!(render(&checkpoint, &plain, 1).latents, before.latents, "{name}");
    }
}

#[test]
fn any_number_of_ranks_gives_the_same_image() {
    for name in ["lora-two", "lora-kohya", "sdxl-both", "sdxl-euler_a"] {
        let given = given::named(name);
        let checkpoint = load(&given);
        let one = render(&checkpoint, &given, 1);
        for ranks in [2, 3] {
            let many = render(&checkpoint, &given, ranks);
            for (many, one) in many.latents.iter().zip(&one.latents) {
                let error = relative_l2(many, one);
                assert!(error < ROUNDING, "{name} on {ranks} is off by {error:.2e}");
            }
        }
    }
}

#[test]
fn a_picture_is_not_needed_to_go_on() {
    for name in ["sdxl-lcm", "sdxl-heun", "sdxl-pndm", "sdxl-euler_a"] {
        let given = given::named(name);
        let checkpoint = load(&given);
        let whole = render(&checkpoint, &given, 1);
        for from in &whole.progress[..whole.progress.len() - 1] {
            let spec = given.spec();
            let rest = render_from(&checkpoint, (&spec, &Files::new()), 1, Some(from)).unwrap();
            let done = whole.latents.len() - rest.latents.len();
            assert_eq!(rest.latents, whole.latents[done..], "{name} from {}", from.calls);
            assert_eq!(rest.pixels, whole.pixels, "{name} from {}", from.calls);
        }
    }
}

#[test]
fn loras_are_exact_beside_weights_that_are_not() {
    let given = given::named("lora-peft");
    let plain = Given { loras: Vec::new(), ..given.clone() };
    let exact = load(&given);
    let change = |checkpoint: &Arc<Checkpoint>| -> Vec<f64> {
        let [with, without] = [&given, &plain].map(|given| render(checkpoint, given, 1));
        with.latents[0]
            .iter()
            .zip(&without.latents[0])
            .map(|(with, without)| with - without)
            .collect()
    };
    let want = change(&exact);
    for dtype in [Dtype::Int8, Dtype::Bf16] {
        let error = relative_l2(&change(&load_as(&given, dtype)), &want);
        println!("{dtype}: the change is off by {error:.2e}");
        assert!(error < 0.2, "{dtype}: the change is off by {error:.2e}");
    }
}

#[test]
fn what_cannot_be_rendered_is_refused() {
    let given = given::named("lora-peft");
    let checkpoint = load(&given);
    let refused = |spec: JobSpec, files: &Files| -> Fault {
        render_from(&checkpoint, (&spec, files), 1, None).unwrap_err()
    };
    let (spec, files) = (given.spec(), given.files());
    // Another model's.
    let other = given::named("lora-kohya");
    let fault = refused(JobSpec { loras: other.spec().loras, ..spec.clone() }, &other.files());
    assert_eq!(fault.kind, FaultKind::InvalidRequest);
    assert!(fault.cause.contains("kohya.safetensors"), "{fault}");
    // No LoRA at all.
    let picture = given::named("sdxl-euler");
    let (file, name) = (given::digest("picture.png"), "picture.png".to_owned());
    let loras = vec![Lora { file, name, scale: 1.0 }];
    let fault = refused(JobSpec { loras, ..spec.clone() }, &picture.files());
    assert_eq!(fault.kind, FaultKind::InvalidRequest);
    assert!(fault.cause.contains("picture.png"), "{fault}");
    // No picture.
    let mut strange = picture.spec();
    strange.init.as_mut().unwrap().file = spec.loras[0].file;
    let fault = refused(strange, &files);
    assert_eq!(fault.kind, FaultKind::InvalidRequest);
    // A baseline.
    let fault = refused(JobSpec { parallelism: Parallelism::Tensor, ..spec.clone() }, &files);
    assert!(fault.cause.contains("tensor"), "{fault}");
    // A file that never came.
    let fault = refused(spec, &Files::new());
    assert_eq!(fault.kind, FaultKind::Storage);
}
