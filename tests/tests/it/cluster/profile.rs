//! Where a job's time went.

use serde_json::Value;
use std::fs;
use tests::cluster::{coordinator, text};

#[test]
fn a_profile_accounts_for_every_call_of_every_rank() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (image, trace) = (file("apple.png"), file("trace.json"));
    let output = coordinator(&[
        "submit",
        "red apple",
        "--local",
        "2",
        "--steps",
        "12",
        "--cfg-split",
        "off",
        "--warmup",
        "1",
        "--width",
        "128",
        "--height",
        "128",
        "--out",
        &image,
        "--profile",
        &trace,
    ]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    let table = printed.lines().skip_while(|line| !line.starts_with("ms of a displaced call"));
    let cells = |line: &str| -> Vec<f64> {
        let cells = line.split_whitespace().rev().take(2);
        cells.map(|cell| if cell == "-" { 0.0 } else { cell.parse().unwrap() }).collect()
    };
    let (mut sums, mut all) = ([0.0; 2], [0.0; 2]);
    let mut names = Vec::new();
    for line in table.skip(1).take_while(|line| !line.starts_with("prompt")) {
        let cells = cells(line);
        if line.starts_with("all") {
            all = [cells[0], cells[1]];
        } else {
            names.push(line.split("  ").next().unwrap_or_default().trim());
            sums.iter_mut().zip(cells).for_each(|(sum, cell)| *sum += cell);
        }
    }
    for name in ["convolution", "linear", "attention", "norm", "rest"] {
        assert!(names.contains(&name), "no {name} in\n{printed}");
    }
    for (sum, all) in sums.iter().zip(all) {
        assert!(all > 0.0 && (sum / all - 1.0).abs() < 0.05, "parts and sum differ in\n{printed}");
    }
    let trace: Value = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for rank in [0, 1] {
        let named = |name: &str| {
            let of = |event: &&Value| event["tid"] == rank && event["name"] == name;
            events.iter().filter(of).count()
        };
        assert_eq!(["prompt", "call 0", "call 11", "decode"].map(named), [1; 4], "rank {rank}");
        assert!(named("attention") >= 12, "rank {rank}");
    }
}

#[test]
fn a_profile_needs_a_file_of_its_own() {
    let output =
        coordinator(&["submit", "x", "--local", "1", "--out", "a.png", "--profile", "a.png"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("--profile a.png"), "{}", text(&output.stderr));
}
