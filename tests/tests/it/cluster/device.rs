//! Workers that compute on a device, as processes.

use super::within;
use tests::cluster::{command, coordinator, text};
use tests::picture;
use tests::tolerance::psnr;

fn render(out: &str, device: &[&str]) -> String {
    let mut arguments = vec!["submit", "red apple", "--local", "2", "--steps", "4", "--out", out];
    arguments.extend(["--mode", "corrected", "--warmup", "1", "--seed", "1"]);
    arguments.extend(device);
    let output = coordinator(&arguments);
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn what_a_gpu_would_be_given_renders_the_same_image_on_two_workers() {
    let folder = tempfile::tempdir().unwrap();
    let [own, candle] = ["own.png", "candle.png"].map(|name| within(folder.path(), name));
    render(&own, &[]);
    render(&candle, &["--device", "candle"]);
    let [own, candle] = [own, candle].map(|path| picture::read(path.as_ref()));
    let alike = psnr(&own.pixels, &candle.pixels);
    assert!(alike > 45.0, "{alike:.1} dB");
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_with_its_name() {
    if cfg!(feature = "cuda") {
        println!("skipped: this is a build with --features cuda");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let output =
        coordinator(&["submit", "red apple", "--local", "2", "--device", "cuda", "--out", &out]);
    let said = text(&output.stderr);
    assert!(!output.status.success() && !std::path::Path::new(&out).exists());
    for part in ["--device cuda:", "built for the CPU", "--features cuda"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[test]
fn what_a_device_cannot_do_is_refused_with_what_it_can() {
    for (device, dtype, part) in [
        ("candle", "int8", "--dtype int8 cannot be had on --device candle: use f32 or f16"),
        ("candle", "bf16", "--dtype bf16 cannot be had"),
        ("gpu", "auto", "give cpu, cuda, cuda:N, or candle"),
    ] {
        let output =
            command("worker").args(["info", "--device", device, "--dtype", dtype]).output();
        let output = output.unwrap();
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(part), "{said}");
    }
}
