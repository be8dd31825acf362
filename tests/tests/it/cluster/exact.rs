//! The same seed gives the same image on any number of workers, and every time.

use super::within;
use tests::cluster::{coordinator, text};
use tests::picture;
use tests::tolerance::{largest_difference, psnr};
use worker::kernels::Isa;

fn render(workers: &str, mode: &str, split: &str, out: &str) {
    let what = ["submit", "red apple", "--seed", "1", "--steps", "8", "--local", workers];
    let output =
        coordinator(&[&what[..], &["--mode", mode, "--cfg-split", split, "--out", out]].concat());
    assert!(output.status.success(), "{workers} workers, {mode}: {}", text(&output.stderr));
}

#[test]
fn full_sync_images_are_the_same_on_one_to_four_workers_and_twice() {
    let folder = tempfile::tempdir().unwrap();
    let images = ["1", "2", "3", "4"].map(|workers| {
        let [first, again] =
            ["first", "again"].map(|name| within(folder.path(), &format!("{name}-{workers}.png")));
        render(workers, "full-sync", "auto", &first);
        render(workers, "full-sync", "auto", &again);
        let same = std::fs::read(&first).unwrap() == std::fs::read(again).unwrap();
        assert!(same, "{workers} workers give other bytes the second time");
        picture::read(first.as_ref()).pixels
    });
    for (image, workers) in images.iter().zip(1..) {
        let difference = largest_difference(image, &images[0]);
        println!("{workers} workers differ from one by {difference}/255");
        assert!(difference <= 2, "{workers} workers differ from one by {difference}/255");
    }
}

/// One-step staleness is exact: call k waits for just what call k-1 posted (S-5).
#[test]
fn displaced_images_are_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    for workers in ["2", "3"] {
        let files = ["first", "again"].map(|name| {
            let file = within(folder.path(), &format!("{name}-{workers}.png"));
            render(workers, "corrected", "off", &file);
            std::fs::read(file).unwrap()
        });
        assert!(files[0] == files[1], "{workers} workers give other bytes the second time");
    }
}

/// A decode in tiles takes the norms' statistics of the image in small: close, and not the same.
#[test]
fn a_decode_in_tiles_is_close_to_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let image = |how: &str| {
        let out = within(folder.path(), &format!("{how}.png"));
        let what = ["submit", "red apple", "--seed", "1", "--steps", "4", "--local", "2"];
        let size = ["--width", "640", "--height", "640", "--decode", how, "--out", &out];
        let output = coordinator(&[&what[..], &size].concat());
        assert!(output.status.success(), "{how}: {}", text(&output.stderr));
        picture::read(out.as_ref()).pixels
    };
    let (whole, tiled) = (image("whole"), image("tiled"));
    let likeness = psnr(&whole, &tiled);
    println!("{likeness:.1} dB");
    assert!((40.0..90.0).contains(&likeness), "{likeness:.1} dB");
}

/// The kernels of every instruction set that this machine has render the golden image.
#[test]
fn every_instruction_set_renders_the_golden_case() {
    let case = tests::fixture::case("emoji.json", &tests::fixture::cases("emoji.json")[0].name);
    let want = &case.tensors("single")["latents"];
    let folder = tempfile::tempdir().unwrap();
    let latents = within(folder.path(), "latents");
    for isa in Isa::available() {
        let mut command = tests::cluster::command("coordinator");
        command.args(["submit", "--local", "1", "--out", &within(folder.path(), "image.png")]);
        command.args(["--save-latents", &latents]).args(tests::cluster::options(&case.spec()));
        let output = command.env(Isa::VARIABLE, isa.to_string()).output().unwrap();
        assert!(output.status.success(), "{isa}: {}", text(&output.stderr));
        let saved = &tests::fixture::read_safetensors(latents.as_ref())["latents"];
        assert_eq!(saved.shape[0], want.shape[0], "{isa}: calls");
        for call in 0..want.shape[0] {
            let error = tests::tolerance::relative_l2(saved.part(call), want.part(call));
            println!("{isa}: call {call}: {error:.2e}");
            assert!(error < 1e-4, "{isa}: call {call} is off by {error:.2e}");
        }
    }
}
