//! What fuzzers start from, and what once broke something, without a fuzzer.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use tests::fuzzing::{TARGETS, folder, seeds};

/// Set, seeds that have changed are written anew.
const WRITE: &str = "TESSERA_WRITE_SEEDS";

/// All inputs that are kept, of both kinds: a corpus is cloned with the repository, so it is small.
const BYTES_MAX: u64 = 300_000;

fn kept(target: &str) -> Vec<PathBuf> {
    let files = |kind| {
        fs::read_dir(folder(kind, target)).into_iter().flatten().map(|entry| entry.unwrap().path())
    };
    let mut files: Vec<PathBuf> = ["corpus", "regressions"].into_iter().flat_map(files).collect();
    files.sort_unstable();
    files
}

#[test]
fn every_input_that_is_kept_passes() {
    for (name, target) in TARGETS {
        let files = kept(name);
        assert!(!files.is_empty(), "{name} has no corpus");
        for file in files {
            println!("{}", file.display());
            target(&fs::read(&file).unwrap());
        }
    }
}

#[test]
fn seeds_are_what_is_said_today() {
    let seeds = seeds();
    let write = env::var_os(WRITE).is_some();
    for seed in seeds.iter().filter(|seed| !seed.is_kept()) {
        assert!(write, "{}/{} has changed: run this with {WRITE}=1", seed.target, seed.name);
        seed.keep().unwrap();
    }
    let bytes = TARGETS.iter().flat_map(|(name, _)| kept(name));
    let bytes: u64 = bytes.map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(bytes <= BYTES_MAX, "{bytes} bytes of inputs are kept");
}

#[test]
fn every_target_has_a_fuzzer() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(package.join("Cargo.toml")).unwrap();
    let mut fuzzers: Vec<String> = fs::read_dir(package.join("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    fuzzers.sort_unstable();
    let names: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(fuzzers, names);
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
}
