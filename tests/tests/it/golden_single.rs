//! One rank against stock diffusers: every case of `single.json` and `emoji.json`.

use protocol::job::Dtype;
use std::sync::Arc;
use tests::fixture::{self, Case};
use tests::render::{links, plan, render};
use tests::tolerance::relative_l2;
use worker::model::checkpoint::Checkpoint;
use worker::model::files::ModelFiles;
use worker::model::tensor::Memory;

/// Relative L2 per step. f64 against f32 differ by 2e-6 there.
const STEP_TOLERANCE: f64 = 1e-4;
/// Per text embedding.
const EMBEDDING_TOLERANCE: f64 = 1e-5;
/// Root mean square of the decoded image in 0..1, 8 bits a channel on our side.
const IMAGE_TOLERANCE: f64 = 2e-3;

fn load(case: &Case) -> (tempfile::TempDir, Arc<Checkpoint>) {
    load_as(case, Dtype::Auto)
}

fn load_as(case: &Case, dtype: Dtype) -> (tempfile::TempDir, Arc<Checkpoint>) {
    let scratch = tempfile::tempdir().unwrap();
    let files = ModelFiles::Folder(case.model(scratch.path()));
    let checkpoint = Checkpoint::load(&files, dtype).unwrap();
    (scratch, Arc::new(checkpoint))
}

fn check(list: &str, name: &str) {
    let case = fixture::case(list, name);
    let want = case.tensors("single");
    let (_scratch, checkpoint) = load(&case);
    check_text(&case, &checkpoint, &want);
    let plan = plan(&checkpoint, &case.spec(), 1);
    let rendered = render(&checkpoint, &plan, links(&checkpoint, &plan, None));
    let rendered = rendered.unwrap();
    let latents = &want["latents"];
    assert_eq!(rendered.latents.len(), latents.shape[0], "{name}: calls");
    for (call, latent) in rendered.latents.iter().enumerate() {
        let error = relative_l2(latent, latents.part(call));
        println!("{name}: call {call}: {error:.2e}");
        assert!(error < STEP_TOLERANCE, "{name}: call {call} is off by {error:.2e}");
    }
    check_image(name, &rendered.pixels, &want["image"].values);
}

/// What the lossy types may lose of the latent after each call, and their weights weigh.
#[test]
fn lossy_types_stay_near_the_exact_image_and_weigh_less() {
    let case = &fixture::cases("emoji.json")[0];
    let want = &case.tensors("single")["latents"];
    let weight = |dtype| load_as(case, dtype).1.card().weight_bytes;
    assert!(weight(Dtype::Int8) < weight(Dtype::F16) * 9 / 10);
    for (dtype, tolerance) in [(Dtype::Bf16, 0.05), (Dtype::Int8, 0.15)] {
        let (_scratch, checkpoint) = load_as(case, dtype);
        let plan = plan(&checkpoint, &case.spec(), 1);
        let rendered = render(&checkpoint, &plan, links(&checkpoint, &plan, None)).unwrap();
        let mut lost = 0.0_f64;
        for (call, latent) in rendered.latents.iter().enumerate() {
            let error = relative_l2(latent, want.part(call));
            println!("{dtype}: call {call}: {error:.2e}");
            assert!(error < tolerance, "{dtype}: call {call} is off by {error:.2e}");
            lost = lost.max(error);
        }
        // Were nothing rounded, this would test nothing.
        assert!(lost > 1e-4, "{dtype}: only {lost:.2e}");
    }
}

fn check_text(
    case: &Case,
    checkpoint: &Checkpoint,
    want: &std::collections::BTreeMap<String, fixture::Values>,
) {
    let ids = checkpoint.token_ids(&case.prompt);
    for (ids, key) in ids.iter().zip(["token_ids", "token_ids_2"]) {
        let ids: Vec<f64> = ids.iter().map(|id| f64::from(*id)).collect();
        assert_eq!(ids, want[key].values, "{}: {key}", case.name);
    }
    let memory = Memory::default();
    let prompt = checkpoint.embed(&case.prompt, &memory).unwrap();
    let negative = checkpoint.embed_negative(case.negative.as_deref(), &memory).unwrap();
    let pairs = [
        ("prompt_embeds", Some(&prompt.tokens)),
        ("pooled", prompt.pooled.as_ref()),
        ("negative_prompt_embeds", Some(&negative.tokens)),
        ("negative_pooled", negative.pooled.as_ref()),
    ];
    for (key, got) in pairs {
        let (Some(got), Some(want)) = (got, want.get(key)) else { continue };
        let got: Vec<f64> = got.view().iter().map(|value| f64::from(*value)).collect();
        if want.values.iter().all(|value| *value == 0.0) {
            assert!(got.iter().all(|value| *value == 0.0), "{}: {key} is not zero", case.name);
            continue;
        }
        let error = relative_l2(&got, &want.values);
        assert!(error < EMBEDDING_TOLERANCE, "{}: {key} is off by {error:.2e}", case.name);
    }
}

/// `want` is [3, height, width] in 0..1.
fn check_image(name: &str, pixels: &[u8], want: &[f64]) {
    let plane = pixels.len() / 3;
    let squares: f64 = (0..pixels.len())
        .map(|index| {
            let (pixel, channel) = (index / 3, index % 3);
            (f64::from(pixels[index]) / 255.0 - want[channel * plane + pixel]).powi(2)
        })
        .sum();
    let error = (squares / pixels.len() as f64).sqrt();
    println!("{name}: image: {error:.2e}");
    assert!(error < IMAGE_TOLERANCE, "{name}: the image is off by {error:.2e}");
}

macro_rules! golden {
    ($list:literal: $($test:ident = $name:literal),+ $(,)?) => {
        $(#[test]
        fn $test() {
            check($list, $name);
        })+

        #[test]
        fn cases_without_a_test_of_their_own() {
            for case in super::fixture::cases_beyond($list, &[$($name),+]) {
                check($list, &case.name);
            }
        }
    };
}

mod single {
    use super::check;

    golden!("single.json":
        sdxl_ddim = "sdxl-ddim",
        sdxl_euler = "sdxl-euler",
        sdxl_euler_a = "sdxl-euler_a",
        sdxl_dpmpp_2m = "sdxl-dpmpp_2m",
        sdxl_dpmpp_2m_karras = "sdxl-dpmpp_2m_karras",
        sdxl_unipc = "sdxl-unipc",
        sdxl_lcm = "sdxl-lcm",
        sdxl_heun = "sdxl-heun",
        sdxl_turbo_like = "sdxl-turbo-like",
        sdxl_128x192 = "sdxl-128x192",
        sd15_ddim = "sd15-ddim",
        sdxl_noneg = "sdxl-noneg",
        sdxl_longprompt = "sdxl-longprompt",
    );
}

mod emoji {
    use super::check;

    golden!("emoji.json":
        euler = "emoji-euler",
        ddim_wide = "emoji-ddim-wide",
        dpmpp_2m_karras = "emoji-dpmpp_2m_karras",
    );
}
