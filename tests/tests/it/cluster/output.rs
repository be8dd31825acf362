//! What `submit` prints and writes.

use super::{files, within};
use serde_json::{Value, json};
use tests::cluster::{coordinator, text};
use tests::{fixture, picture};

const QUICK: [&str; 6] = ["submit", "red apple", "--steps", "6", "--seed", "7"];

#[test]
fn a_pipe_gets_plain_lines_and_the_end_names_what_matters() {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let output = coordinator(&[&QUICK[..], &["--local", "2", "--out", &out]].concat());
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for words in ["text encoding", "denoising", "decoding", "step 6/6", "s/step", "seed 7", &out] {
        assert!(printed.contains(words), "{words:?} is missing in:\n{printed}");
    }
    assert!(printed.contains("waited for peers: "), "{printed}");
    assert!(!printed.contains('\u{1b}'), "a pipe gets no terminal codes:\n{printed}");
    assert_eq!(files(folder.path()), ["apple.png"]);
}

#[test]
fn json_is_one_object_per_event() {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let output = coordinator(&[&QUICK[..], &["--local", "2", "--json", "--out", &out]].concat());
    let events: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names.iter().filter(|name| **name == "step").count(), 6, "{names:?}");
    for name in ["accepted", "started", "phase", "finished", "written"] {
        assert!(names.contains(&name), "no {name} in {names:?}");
    }
    let started = events.iter().find(|event| event["event"] == "started").unwrap();
    assert_eq!(started["spec"]["seed"], 7);
    let bands: Vec<Value> = started["bands"]
        .as_array()
        .unwrap()
        .iter()
        .map(|band| json!([band["branch"], band["top"], band["rows"]]))
        .collect();
    assert_eq!(bands, [json!(["negative", 0, 256]), json!(["prompt", 0, 256])]);
    assert!(started["reason"].as_str().unwrap().contains("branches"), "{started}");
    assert_eq!(events.last().unwrap()["file"], out.as_str());
}

#[test]
fn the_picture_carries_its_parameters() {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let options = ["--negative", "dull, grün", "--guidance", "4.5", "--width", "128"];
    let output = coordinator(
        &[&QUICK[..], &options, &["--scheduler", "euler", "--local", "2", "--out", &out]].concat(),
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let picture = picture::read(out.as_ref());
    assert_eq!(picture.size, (128, 256));
    let parameters = &picture.texts["parameters"];
    let words = "red apple\nNegative prompt: dull, grün\nSteps: 6, Sampler: Euler, CFG scale: 4.5, \
                 Seed: 7, Size: 128x256, Model: emoji-xl, Workers: 2, Mode: full-sync";
    assert!(parameters.starts_with(words), "{parameters}");
    let json: Value = serde_json::from_str(&picture.texts["tessera"]).unwrap();
    assert_eq!((&json["prompt"], &json["workers"]), (&"red apple".into(), &2.into()));
    let hash = json["latent"].as_str().unwrap();
    assert!(hash.len() == 64 && hash.chars().all(|digit| digit.is_ascii_hexdigit()), "{hash}");
}

#[test]
fn saved_latents_are_those_of_every_step() {
    let folder = tempfile::tempdir().unwrap();
    let (out, latents) = (within(folder.path(), "a.png"), within(folder.path(), "latents"));
    let more = ["--local", "3", "--out", &out, "--save-latents", &latents, "--scheduler", "heun"];
    let output = coordinator(&[&QUICK[..], &more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let saved = fixture::read_safetensors(latents.as_ref());
    // Heun's six steps take eleven calls.
    assert_eq!(saved["latents"].shape, [11, 8, 32, 32]);
}

#[test]
fn a_long_prompt_is_cut_off_with_a_warning_and_an_empty_one_renders() {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let long = format!("{}zebra", "red apple, ".repeat(40));
    let steps = ["--steps", "1", "--local", "2", "--out", &out];
    let output = coordinator(&[&["submit", &long][..], &steps].concat());
    let printed = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        printed.contains("longer than the 77 tokens") && printed.contains("zebra"),
        "{printed}"
    );
    for prompt in ["", "\u{1f34e} \u{7} \u{200b} ﷽"] {
        let output = coordinator(&[&["submit", prompt][..], &steps].concat());
        assert!(output.status.success(), "{prompt:?}: {}", text(&output.stderr));
    }
}
