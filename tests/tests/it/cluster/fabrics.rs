//! Which fabric workers exchange over, that the image does not depend on it, and what is measured of it.

use super::within;
use serde_json::Value;
use std::sync::Arc;
use tests::cluster::{Cluster, Process, command, coordinator, options, text};
use tests::fixture;
use tests::render::{links, plan, render};
use worker::model::checkpoint::Checkpoint;
use worker::model::files::ModelFiles;

/// Ranks of one branch, so that every kind of value crosses between all of them.
const RANKS: usize = 4;

/// The hash of a final latent, as jobs record it.
fn hash(latent: &[f64]) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "they were f32")]
    let bytes: Vec<u8> = latent.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect();
    blake3::hash(&bytes).to_hex().to_string()
}

/// S-5: the bits of the result are the same on every fabric.
#[test]
fn s5_one_job_has_one_hash_over_memory_shm_quic_and_tcp() {
    let case = fixture::case("distri.json", "sdxl-n4-flat-corrected-w1");
    let scratch = tempfile::tempdir().unwrap();
    let model = case.model(scratch.path());
    let files = ModelFiles::Folder(model.clone());
    let checkpoint = Arc::new(Checkpoint::load(&files, protocol::job::Dtype::Auto).unwrap());
    let memory = plan(&checkpoint, &case.spec(), RANKS);
    let memory = render(&checkpoint, &memory, links(&checkpoint, &memory, Some(7))).unwrap();
    let wanted = hash(memory.latents.last().unwrap());
    let model = model.display().to_string();
    for fabric in ["shm", "quic", "tcp"] {
        let out = within(scratch.path(), &format!("{fabric}.png"));
        let workers = RANKS.to_string();
        let what = ["submit", "--local", &workers, "--model", &model, "--out", &out, "--json"];
        let how = ["--cfg-split", "off", "--fabric", fabric];
        let options = options(&case.spec());
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let output = coordinator(&[&what[..], &how, &options].concat());
        assert!(output.status.success(), "{fabric}: {}", text(&output.stderr));
        let printed = text(&output.stdout);
        let events = printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let finished = events.into_iter().find(|event| event["event"] == "finished").unwrap();
        println!("{fabric}: {}", finished["latent"]);
        assert_eq!(finished["latent"], wanted, "{fabric} gives other bits than memory");
    }
}

fn submit(cluster: &Cluster, fabric: &str, out: &str) -> Process {
    let what = ["red apple", "--steps", "40", "--cfg-split", "off", "--json", "--out", out];
    cluster.submit(&[&what[..], &["--fabric", fabric]].concat())
}

#[test]
fn status_shows_what_each_pair_uses_and_why() {
    let cluster = Cluster::start(2);
    let pairs = cluster.status()["pairs"].clone();
    assert_eq!(pairs.as_array().map(Vec::len), Some(1), "{pairs}");
    assert_eq!(pairs[0]["fabric"], "shm");
    assert!(pairs[0]["why"].as_str().unwrap().contains("no nccl, for "), "{pairs}");
    let shown = coordinator(&["status", "--insecure", "--coordinator", &cluster.address]);
    assert!(text(&shown.stdout).contains("shm         between workers 1-2"), "{shown:?}");
    let folder = tempfile::tempdir().unwrap();
    let mut job = submit(&cluster, "quic", &within(folder.path(), "apple.png"));
    job.wait_for(r#""event":"step""#);
    let running = cluster.status()["jobs"][0]["links"].clone();
    assert_eq!(running[0]["fabric"], "quic", "{running}");
    assert_eq!(job.wait(), Some(0), "{}", job.output());
}

#[test]
fn a_fabric_that_no_pair_has_fails_the_job_with_the_cause() {
    let cluster = Cluster::start(2);
    let folder = tempfile::tempdir().unwrap();
    let mut job = submit(&cluster, "nccl", &within(folder.path(), "apple.png"));
    assert_eq!(job.wait(), Some(1));
    for part in ["cannot exchange: no nccl", "they share shm"] {
        assert!(job.output().contains(part), "no {part:?} in {}", job.output());
    }
    let mut job = submit(&cluster, "smoke-signals", &within(folder.path(), "apple.png"));
    assert_eq!(job.wait(), Some(2));
    assert!(job.output().contains("nccl shm rdma quic tcp"), "{}", job.output());
}

#[test]
fn a_worker_that_cannot_have_a_fabric_it_is_told_to_offer_does_not_start() {
    let mut worker = command("worker");
    worker.args(["join", "--coordinator", "127.0.0.1:1", "--threads", "1", "--insecure"]);
    worker.args(["--listen", "127.0.0.1:0", "--fabric", "tcp,nccl"]);
    let mut worker = Process::spawn(&mut worker);
    assert_eq!(worker.wait(), Some(1));
    assert!(worker.output().contains("--fabric nccl: "), "{}", worker.output());
}

#[test]
fn netcheck_measures_every_pair_over_every_fabric_and_status_keeps_it() {
    let cluster = Cluster::start(3);
    let check = |more: &[&str]| {
        let what = ["netcheck", "--insecure", "--coordinator", &cluster.address];
        coordinator(&[&what[..], more].concat())
    };
    let output = check(&["--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let measured: Value = serde_json::from_slice(&output.stdout).unwrap();
    let links = measured["links"].as_array().unwrap();
    assert_eq!(links.len(), 3 * 3, "three pairs, three fabrics: {measured}");
    for link in links {
        let figures = &link["figures"]["Ok"];
        assert!(figures["bytes_per_second"].as_f64().unwrap() > 1e6, "{link}");
        assert!(figures["latency_us"].as_f64().unwrap() > 0.0, "{link}");
    }
    let pairs = cluster.status()["pairs"].clone();
    let known = pairs.as_array().unwrap().iter().filter(|pair| !pair["figures"].is_null());
    assert_eq!(known.count(), 3, "{pairs}");
    let table = check(&["--fabric", "tcp"]);
    assert!(text(&table.stdout).contains("MB/s"), "{table:?}");
    let none = check(&["--fabric", "rdma"]);
    assert!(text(&none.stderr).contains("over rdma"), "{none:?}");
}

#[test]
fn netcheck_does_not_disturb_a_job() {
    let cluster = Cluster::start(2);
    let folder = tempfile::tempdir().unwrap();
    let mut job = submit(&cluster, "tcp", &within(folder.path(), "apple.png"));
    job.wait_for(r#""event":"step""#);
    let refused = coordinator(&["netcheck", "--insecure", "--coordinator", &cluster.address]);
    assert!(text(&refused.stderr).contains("workers are busy"), "{refused:?}");
    assert_eq!(job.wait(), Some(0), "{}", job.output());
}
