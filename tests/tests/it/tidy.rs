//! The dependency rules of `docs/architecture.md`, read from `use` paths and manifests.

use std::fs;
use std::path::{Path, PathBuf};

/// A file of the workspace: its path from the root, and its code without comments.
struct Source {
    path: String,
    code: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn collect(folder: &Path, into: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let code = text
                .lines()
                .map(|line| line.split("//").next().unwrap_or_default())
                .collect::<Vec<_>>()
                .join("\n");
            let path = path.strip_prefix(root()).unwrap().display().to_string();
            into.push(Source { path, code });
        }
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut all = Vec::new();
    for folder in folders {
        let folder = root().join(folder);
        if folder.with_extension("rs").exists() {
            let mut alone = Vec::new();
            collect(folder.parent().unwrap(), &mut alone);
            let file = folder.with_extension("rs");
            let file = file.strip_prefix(root()).unwrap().display().to_string();
            all.extend(alone.into_iter().filter(|source| source.path == file));
        }
        if folder.is_dir() {
            collect(&folder, &mut all);
        }
    }
    assert!(!all.is_empty(), "no sources in {folders:?}: did they move?");
    all
}

/// Checks that none of `folders` mentions any of `words` followed by `::`.
fn never_mentions(rule: &str, folders: &[&str], words: &[&str]) {
    for source in sources(folders) {
        for word in words {
            let mentioned = source.code.match_indices(&format!("{word}::")).any(|(at, _)| {
                let before = source.code[..at].chars().next_back();
                !before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
            });
            assert!(!mentioned, "{rule}: {} mentions {word}", source.path);
        }
    }
}

fn manifest(package: &str) -> String {
    fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap()
}

fn never_depends(rule: &str, package: &str, crates: &[&str]) {
    let manifest = manifest(package);
    for name in crates {
        let depends = manifest.lines().any(|line| {
            line.starts_with(&format!("{name}.")) || line.starts_with(&format!("{name} "))
        });
        assert!(!depends, "{rule}: {package} depends on {name}");
    }
}

#[test]
fn d1_coordinator_and_worker_never_import_each_other() {
    never_depends("D-1", "coordinator", &["worker"]);
    never_depends("D-1", "worker", &["coordinator"]);
}

#[test]
fn d2_protocol_knows_no_model_actor_or_command_line() {
    never_depends("D-2", "protocol", &["candle-core", "cudarc", "actix", "clap", "anyhow"]);
}

#[test]
fn d3_protocol_is_sans_io_outside_transport() {
    let sans_io = [
        "codec",
        "fault",
        "handshake",
        "id",
        "identity",
        "job",
        "keyfile",
        "message",
        "plan",
        "tls",
    ];
    let folders: Vec<String> = sans_io.iter().map(|name| format!("protocol/src/{name}")).collect();
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    never_mentions("D-3", &folders, &["tokio", "TcpStream", "UdpSocket", "Instant", "SystemTime"]);
}

#[test]
fn d4_coordinator_never_computes_a_tensor() {
    never_depends("D-4", "coordinator", &["candle-core", "cudarc", "half"]);
}

#[test]
fn d5_the_coordinators_decisions_are_pure() {
    let folders = ["job", "planner", "cluster", "director", "probe", "profile"]
        .map(|name| format!("coordinator/src/{name}"));
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    let words = ["tokio", "actix", "Instant::now", "SystemTime", "rand"];
    never_mentions("D-5", &folders, &words);
    for source in sources(&folders) {
        // A lost connection is tried again after a while; no decision is made by it.
        let times = source.path.starts_with("coordinator/src/job/store/postgres");
        assert!(
            times || !source.code.contains("Instant::now"),
            "D-5: {} reads a clock",
            source.path
        );
        // What is kept is kept in a file: the store has one, but given times like the others.
        let allowed = source.path.starts_with("coordinator/src/job/store");
        assert!(allowed || !source.code.contains("fs::"), "D-5: {} reads files", source.path);
    }
}

#[test]
fn a_database_is_known_to_the_store_only() {
    for source in sources(&["protocol/src", "coordinator/src", "worker/src"]) {
        let allowed = source.path.starts_with("coordinator/src/job/store");
        assert!(allowed || !source.code.contains("rusqlite"), "{} uses rusqlite", source.path);
    }
}

#[test]
fn d6_models_know_no_distribution() {
    let words = ["crate::parallel", "crate::engine", "crate::actor", "tokio", "actix", "std::net"];
    let folders = ["worker/src/model", "worker/src/kernels", "worker/src/device"];
    never_mentions("D-6", &folders, &words);
    for source in sources(&["worker/src/model"]) {
        assert!(!source.code.contains("Rank"), "D-6: {} knows ranks", source.path);
    }
}

#[test]
fn d7_parallel_knows_no_unet_scheduler_or_actor() {
    let words = ["model::unet", "model::scheduler", "crate::actor", "actix"];
    never_mentions("D-7", &["worker/src/parallel"], &words);
}

#[test]
fn d8_unsafe_stays_where_it_is_expected() {
    for source in sources(&["protocol/src", "coordinator/src", "worker/src", "tests/src"]) {
        let allowed = source.path.starts_with("worker/src/kernels")
            || source.path == "worker/src/model/files.rs"
            || source.path.starts_with("protocol/src/transport/shm")
            || source.path.starts_with("protocol/src/transport/rdma/verbs")
            || source.path.starts_with("worker/src/device/nccl/")
            || ["conv", "staging"]
                .map(|what| format!("worker/src/device/{what}/cuda.rs"))
                .contains(&source.path);
        let mentioned = source.code.contains("unsafe {") || source.code.contains("unsafe fn");
        assert!(allowed || !mentioned, "D-8: {} is unsafe", source.path);
    }
}

#[test]
fn a_gpus_library_is_known_to_its_device_only() {
    for source in sources(&["protocol/src", "coordinator/src", "worker/src"]) {
        let allowed = source.path.starts_with("worker/src/device");
        let mentioned = ["cudarc", "cuda_backend", "flash_attn"];
        let mentioned = mentioned.iter().find(|word| source.code.contains(**word));
        assert!(allowed || mentioned.is_none(), "{} mentions {mentioned:?}", source.path);
    }
}

#[test]
fn actix_stays_inside_actor_modules() {
    for source in sources(&["coordinator/src", "worker/src"]) {
        let allowed = source.path.contains("/actor");
        assert!(allowed || !source.code.contains("actix::"), "{} uses actix", source.path);
    }
}

#[test]
fn http_is_known_to_its_interface_only() {
    for source in sources(&["protocol/src", "coordinator/src", "worker/src"]) {
        let allowed = source.path.starts_with("coordinator/src/api");
        let mentioned = ["actix_web", "utoipa"].iter().find(|word| source.code.contains(**word));
        assert!(allowed || mentioned.is_none(), "{} mentions {mentioned:?}", source.path);
    }
}

#[test]
fn no_mod_rs_and_no_overlong_file() {
    for source in sources(&["protocol/src", "coordinator/src", "worker/src", "tests/src"]) {
        assert!(!source.path.ends_with("mod.rs"), "{}", source.path);
        let lines = fs::read_to_string(root().join(&source.path)).unwrap().lines().count();
        assert!(lines <= 500, "{} has {lines} lines: split it", source.path);
    }
}
