//! Replays of diffusers' schedulers, and what is refused.
//!
//! Every call starts from diffusers' latent, not ours, so that the made-up model cannot amplify
//! rounding; what a scheduler remembers between calls is its own.

mod resume;

use std::collections::HashMap;

use candle_core::{Device, Result, Tensor};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::{Scheduler, SchedulerConfig, SchedulerKind};
use crate::model::noise::TorchGenerator;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

fn replays() -> (HashMap<String, Tensor>, Value, Vec<Value>) {
    let bytes = std::fs::read(format!("{FIXTURES}/schedulers.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).unwrap();
    let read = |key: &str| serde_json::from_str(&metadata[key]).unwrap();
    let Value::Array(cases) = read("cases") else { panic!("cases is not a list") };
    (tensors, read("base"), cases)
}

fn changed(base: &Value, change: &Value) -> Value {
    let mut config = base.clone();
    for (key, value) in change.as_object().unwrap() {
        if value.is_null() {
            config.as_object_mut().unwrap().remove(key);
        } else {
            config[key] = value.clone();
        }
    }
    config
}

fn build(config: &Value, kind: &str, steps: usize) -> Box<dyn Scheduler> {
    let config = SchedulerConfig::parse(config).unwrap();
    config.build(kind.parse().unwrap(), steps).unwrap()
}

/// The largest difference, relative to the largest value of `expected`.
fn difference(ours: &Tensor, expected: &Tensor) -> f32 {
    let max = |x: &Tensor| -> Result<f32> { x.abs()?.flatten_all()?.max(0)?.to_scalar() };
    max(&(ours - expected).unwrap()).unwrap() / max(expected).unwrap()
}

fn vector(tensor: &Tensor) -> Vec<f32> {
    tensor.to_vec1().unwrap()
}

/// Karras timesteps with fractions go through logarithms and powers; all others are exact.
fn assert_same_timesteps(ours: &[f32], expected: &[f32], case: &str) {
    assert_eq!(ours.len(), expected.len(), "{case}");
    for (ours, expected) in ours.iter().zip(expected) {
        let fraction = expected.fract() != 0.0 && case.contains("karras");
        let tolerance = if fraction { 1e-5 * expected } else { 0.0 };
        assert!((ours - expected).abs() <= tolerance, "{case}: timestep {ours} is not {expected}");
    }
}

/// Three cases have a step in which diffusers itself, in f32, subtracts numbers far larger than
/// their difference; it is as far from the same formulas in f64 as it is from us.
fn tolerance(case: &str) -> f32 {
    match case {
        "heun/epsilon/linspace/2" | "euler/zero-snr" | "euler-a/zero-snr" => 5e-5,
        _ => 1e-5,
    }
}

#[test]
fn every_call_is_diffusers() {
    let (tensors, base, cases) = replays();
    assert!(cases.len() > 200);
    let mut worst = (0.0, String::new());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let steps = usize::try_from(case["steps"].as_u64().unwrap()).unwrap();
        let config = changed(&base, &case["change"]);
        let mut scheduler = build(&config, case["kind"].as_str().unwrap(), steps);
        let timesteps = vector(&tensors[&format!("{name}/timesteps")]);
        assert_same_timesteps(scheduler.timesteps(), &timesteps, name);

        let latents = &tensors[&format!("{name}/latents")];
        let mut generator = TorchGenerator::new(case["seed"].as_u64().unwrap());
        let mut noise = || Tensor::from_vec(generator.randn(16), (1, 2, 2, 4), &Device::Cpu);
        let first = (noise().unwrap() * scheduler.init_noise_sigma()).unwrap();
        let mut check = |ours: &Tensor, call: usize| {
            let off = difference(ours, &latents.get(call).unwrap());
            assert!(off < tolerance(name), "{name}: latent {call} is off by {off}");
            if off > worst.0 {
                worst = (off, format!("{name} latent {call}"));
            }
        };
        check(&first, 0);
        for call in 0..timesteps.len() {
            let sample = latents.get(call).unwrap();
            let scaled = scheduler.scale_model_input(call, &sample).unwrap();
            let prediction = scaled.affine(3.0, call as f64).unwrap().sin().unwrap();
            let next = scheduler.step(call, &prediction, &sample, &mut noise).unwrap();
            check(&next, call + 1);
        }
    }
    println!("worst: {worst:?}");
}

#[test]
fn timesteps_of_any_number_of_steps_are_diffusers() {
    let (tensors, base, _) = replays();
    for (name, expected) in tensors.iter().filter(|(name, _)| name.starts_with("timesteps/")) {
        let (kind, spacing) = name["timesteps/".len()..].split_once('/').unwrap();
        let config = changed(&base, &json!({ "timestep_spacing": spacing }));
        let steps = 1..=50;
        let ours: Vec<f32> =
            steps.flat_map(|n| build(&config, kind, n).timesteps().to_vec()).collect();
        assert_same_timesteps(&ours, &vector(expected), name);
    }
}

#[test]
fn golden_timesteps_and_sigmas_are_those_of_their_scheduler() {
    let golden = format!("{FIXTURES}/golden");
    for list in ["single.json", "emoji.json"] {
        let cases: Vec<Value> =
            serde_json::from_slice(&std::fs::read(format!("{golden}/{list}")).unwrap()).unwrap();
        for case in cases {
            let (name, model) = (case["name"].as_str().unwrap(), case["model"].as_str().unwrap());
            let folder = if model == "emoji-xl" { "../../deploy/models" } else { "golden/models" };
            let path = format!("{FIXTURES}/{folder}/{model}/scheduler/scheduler_config.json");
            let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            let (kind, config) = match case["scheduler"].as_str().unwrap() {
                "euler_trailing" => {
                    ("euler".into(), changed(&config, &json!({ "timestep_spacing": "trailing" })))
                }
                "euler_a" => ("euler-a".into(), config),
                kind => (kind.replace("pp_2m", "pp-2m").replace("_karras", "-karras"), config),
            };
            let steps = usize::try_from(case["steps"].as_u64().unwrap()).unwrap();
            let path = format!("{golden}/single/{name}.safetensors");
            let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
            let ours = build(&config, &kind, steps);
            assert_same_timesteps(ours.timesteps(), &vector(&tensors["timesteps"]), name);
            if let Some(expected) = tensors.get("sigmas") {
                let config = SchedulerConfig::parse(&config).unwrap();
                let ours = config.sigmas(kind.parse().unwrap(), steps).unwrap().ratios;
                let mut expected = vector(expected);
                expected.dedup(); // Heun's list has the inner ones twice
                let len = ours.len();
                let ours = Tensor::from_vec(ours, len, &Device::Cpu).unwrap();
                let expected = Tensor::from_vec(expected, len, &Device::Cpu).unwrap();
                assert!(difference(&ours, &expected) < 1e-6, "{name}");
            }
        }
    }
}

#[test]
fn kinds_are_named_as_they_parse() {
    for kind in SchedulerKind::ALL.iter() {
        assert_eq!(kind.to_string().parse::<SchedulerKind>().unwrap(), *kind);
    }
    let error = "ddpm".parse::<SchedulerKind>().unwrap_err().to_string();
    assert!(error.starts_with("unknown scheduler `ddpm`; supported: ddim euler "), "{error}");
}

fn refusal(change: &Value) -> String {
    let config = changed(&replays().1, change);
    SchedulerConfig::parse(&config).unwrap_err().to_string()
}

#[test]
fn what_would_change_the_image_is_refused_by_name() {
    let file = "scheduler/scheduler_config.json";
    for (change, expected) in [
        (json!({"thresholding": true}), "`thresholding` is true; supported: false"),
        (json!({"solver_order": 3}), "`solver_order` is 3; supported: 2"),
        (json!({"trained_betas": [0.1]}), "`trained_betas` is [0.1]; supported: null"),
        (json!({"beta_start": "x"}), "`beta_start` is \"x\"; supported: above 0, below 1e0"),
        (json!({"num_train_timesteps": 1}), "`num_train_timesteps` is 1; supported: 2 to 100000"),
        (
            json!({"prediction_type": "sample"}),
            "`prediction_type` is \"sample\"; supported: epsilon, v_prediction",
        ),
        (
            json!({"beta_schedule": "squaredcos_cap_v2"}),
            "`beta_schedule` is \"squaredcos_cap_v2\"; supported: linear, scaled_linear",
        ),
        (json!({"sigma_maximum": 3}), "`sigma_maximum` is 3; supported: no such key"),
    ] {
        assert_eq!(refusal(&change), format!("{file}: {expected}"));
    }
    let class = refusal(&json!({"_class_name": "DEISMultistepScheduler"}));
    assert!(
        class.contains("`_class_name` is \"DEISMultistepScheduler\"; supported: DDIM"),
        "{class}"
    );
    assert!(refusal(&json!({"_class_name": null})).contains("`_class_name` is null; supported"));
    assert!(
        SchedulerConfig::from_json("[1]").unwrap_err().to_string().contains("not a JSON object")
    );
    assert!(SchedulerConfig::from_json("{").unwrap_err().to_string().contains("not a JSON object"));
}

#[test]
fn what_a_kind_cannot_do_is_refused_by_name() {
    let base = replays().1;
    for (change, kind, steps, expected) in [
        (
            json!({}),
            "euler",
            0,
            "0 steps of scheduler euler; supported with this checkpoint: 1 to 1000",
        ),
        (
            json!({}),
            "lcm",
            51,
            "51 steps of scheduler lcm; supported with this checkpoint: 1 to 50",
        ),
        (json!({}), "dpmpp-2m", 1000, "1000 steps of scheduler dpmpp-2m; supported"),
        (json!({}), "ddim", 1000, "1000 steps of scheduler ddim; supported"),
        (
            json!({"rescale_betas_zero_snr": true}),
            "heun",
            8,
            "supported: false with scheduler heun",
        ),
        (json!({"skip_prk_steps": false}), "pndm", 8, "supported: true with scheduler pndm"),
        (json!({"lower_order_final": false}), "unipc", 8, "supported: true with scheduler unipc"),
        (json!({"clip_sample": true}), "heun", 8, "supported: false with scheduler heun"),
        (
            json!({"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}),
            "ddim",
            8,
            "`rescale_betas_zero_snr` is true; supported: false with prediction_type epsilon",
        ),
        (
            json!({"beta_end": 0.9}),
            "dpmpp-2m-karras",
            1,
            "`beta_end` is 0.9; supported: what leaves",
        ),
        (json!({"beta_start": 1e-9}), "ddim", 8, "`beta_start` is 1e-9; supported: what leaves"),
    ] {
        let config = SchedulerConfig::parse(&changed(&base, &change)).unwrap();
        let error = config.build(kind.parse().unwrap(), steps).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_checkpoint_has_a_kind_of_its_own() {
    let base = replays().1;
    let kind = |change| SchedulerConfig::parse(&changed(&base, &change)).unwrap().kind();
    assert_eq!(kind(json!({})), SchedulerKind::Euler);
    let dpm = "DPMSolverMultistepScheduler";
    assert_eq!(kind(json!({ "_class_name": dpm })), SchedulerKind::Dpmpp2m);
    let karras = json!({ "_class_name": dpm, "use_karras_sigmas": true });
    assert_eq!(kind(karras), SchedulerKind::Dpmpp2mKarras);
}

/// Python's JSON writes a number that JSON does not have.
#[test]
fn negative_infinity_passes_as_diffusers_writes_it() {
    let text = r#"{"_class_name": "PNDMScheduler", "lambda_min_clipped": -Infinity}"#;
    assert_eq!(SchedulerConfig::from_json(text).unwrap().kind(), SchedulerKind::Pndm);
    let clipped = refusal(&json!({"lambda_min_clipped": -5.1}));
    assert!(
        clipped.contains("`lambda_min_clipped` is -5.1; supported: -Infinity, null"),
        "{clipped}"
    );
}

/// A rank steps its own rows only.
#[test]
fn a_band_steps_to_the_same_rows_as_the_whole() {
    let base = replays().1;
    let whole = TorchGenerator::new(3).randn(64);
    let whole = Tensor::from_vec(whole, (1, 2, 4, 8), &Device::Cpu).unwrap();
    let band = |x: &Tensor| x.narrow(2, 1, 2);
    for kind in SchedulerKind::ALL.iter() {
        let config = SchedulerConfig::parse(&base).unwrap();
        let mut of_whole = config.build(*kind, 5).unwrap();
        let mut of_band = config.build(*kind, 5).unwrap();
        let (mut x, mut part) = (whole.clone(), band(&whole).unwrap());
        for call in 0..of_whole.timesteps().len() {
            let (p, q) = (x.sin().unwrap(), part.sin().unwrap());
            x = of_whole.step(call, &p, &x, &mut || Ok(whole.clone())).unwrap();
            part = of_band.step(call, &q, &part, &mut || band(&whole)).unwrap();
        }
        assert_eq!(difference(&part, &band(&x).unwrap()).to_bits(), 0, "{kind}");
    }
}
