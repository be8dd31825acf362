//! What `bench` measures and prints.

use serde_json::Value;
use tests::cluster::{coordinator, text};

const BENCH: [&str; 10] =
    ["bench", "red apple", "--steps", "4", "--width", "128", "--height", "128", "--warmup", "1"];

fn bench(options: &[&str]) -> String {
    let output = coordinator(&[&BENCH[..], options].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn every_way_is_measured_and_told() {
    let printed = bench(&["--local", "2", "--rounds", "2", "--json"]);
    let measured: Value = serde_json::from_str(&printed).unwrap();
    let ways = measured["ways"].as_array().unwrap();
    let names: Vec<_> = ways.iter().map(|way| way["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["one worker", "full-sync", "corrected", "corrected, split"]);
    for (way, workers) in ways.iter().zip([1, 2, 2, 2]) {
        assert_eq!(way["workers"], workers, "{way}");
        assert_eq!(way["seconds_per_step_of_each_round"].as_array().unwrap().len(), 2, "{way}");
        assert!(way["seconds_per_step"].as_f64().unwrap() > 0.0, "{way}");
        assert!((0.0..1.0).contains(&way["exposed"].as_f64().unwrap()), "{way}");
        assert_eq!(way["posted_bytes_per_call"].as_f64().unwrap() > 0.0, workers > 1, "{way}");
        // The built-in model's weights alone are more than this.
        assert!(way["peak_bytes"].as_u64().unwrap() > 64 << 20, "{way}");
    }
    assert_eq!(ways[0]["exposed"], 0.0);
}

#[test]
fn one_worker_is_compared_with_nothing() {
    let table = bench(&["--local", "1", "--rounds", "1"]);
    assert!(table.contains("one worker") && !table.contains("full-sync"), "{table}");
}
