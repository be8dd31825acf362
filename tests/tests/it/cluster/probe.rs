//! What `probe` measures and writes.

use super::{files, within};
use serde_json::Value;
use tests::cluster::{coordinator, text};

const QUICK: [&str; 10] =
    ["probe", "red apple", "--steps", "6", "--seed", "7", "--width", "128", "--height", "128"];

fn probe(options: &[&str]) -> (bool, String, String) {
    let output = coordinator(&[&QUICK[..], options].concat());
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

fn numbers(values: &Value) -> Vec<f64> {
    values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

#[test]
fn every_mode_is_compared_and_every_site_measured() {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "chart.svg");
    let (done, printed, errors) =
        probe(&["--local", "2", "--warmup", "1", "--json", "--out", &out]);
    assert!(done, "{errors}");
    let probed: Value = serde_json::from_str(&printed).unwrap();
    // 1. Images: synchronous calls are exact, old values are not, and none at all are worst.
    let mode = |name: &str| -> Value {
        let modes = probed["modes"].as_array().unwrap();
        modes.iter().find(|mode| mode["mode"] == name).unwrap().clone()
    };
    let similarity = |name: &str| {
        let mode = mode(name);
        (mode["psnr"].as_f64().unwrap_or(f64::INFINITY), mode["ssim"].as_f64().unwrap())
    };
    let [exact, corrected, none] = ["full-sync", "corrected", "no-sync"].map(similarity);
    assert!(exact.0 > 60.0 && exact.1 > 0.999, "full-sync: {exact:?}");
    assert!(exact.0 > corrected.0 && exact.1 >= corrected.1, "corrected: {corrected:?}");
    assert!(corrected.0 > none.0 && corrected.1 > none.1, "no-sync: {none:?}");
    assert_eq!(mode("corrected")["displaced"].to_string(), "[false,false,true,true,true,true]");
    // 2. Sites: what moves between calls, and the bytes of all that is sent.
    let sites = probed["sites"].as_array().unwrap();
    let kind = |name: &str| sites.iter().filter(|site| site["kind"] == name).count();
    assert_eq!((kind("conv"), kind("attention"), kind("norm")), (27, 7, 30), "emoji-xl's sites");
    for site in sites {
        let distances = numbers(&site["distances"]);
        assert_eq!(distances.len(), 5, "{site}");
        assert!(distances.iter().all(|distance| (0.0..2.0).contains(distance)), "{site}");
        assert!(distances.iter().any(|distance| *distance > 0.0), "{site}");
    }
    let bytes: f64 = sites.iter().map(|site| site["bytes"].as_f64().unwrap()).sum();
    let all = mode("corrected")["bytes_per_call"].as_f64().unwrap();
    assert!(
        (0.95..1.0).contains(&(bytes / all)),
        "{bytes} of {all}: the input's edges are the rest"
    );
    // 3. The chart.
    assert_eq!(files(folder.path()), ["chart.svg"]);
    let svg = std::fs::read_to_string(out).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("red apple") && svg.contains("corrected"));
}

#[test]
fn the_table_names_modes_kinds_and_sites() {
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "chart.svg");
    let (done, printed, errors) =
        probe(&["--local", "4", "--mode", "stale", "--cfg-split", "on", "--out", &out]);
    assert!(done, "{errors}");
    for words in ["4 workers", "no-sync", "With stale", "attention", "mid_block.resnets.0.conv1"] {
        assert!(printed.contains(words), "{words:?} is missing in:\n{printed}");
    }
}

#[test]
fn what_cannot_be_probed_is_refused_at_once() {
    let refused = |options: &[&str]| {
        let (done, printed, errors) = probe(options);
        assert!(!done && printed.is_empty(), "{options:?}: {printed}");
        errors
    };
    assert!(refused(&["--local", "2", "--out", "chart.png"]).contains("chart.png"));
    assert!(refused(&["--local", "2", "--parallelism", "tensor"]).contains("--parallelism tensor"));
    assert!(refused(&["--local", "1"]).contains("two or more"));
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "chart.svg");
    let alone = refused(&["--local", "2", "--cfg-split", "on", "--out", &out]);
    assert!(alone.contains("--cfg-split"), "{alone}");
    assert!(files(folder.path()).is_empty(), "nothing is left behind");
}
