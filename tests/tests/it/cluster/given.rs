//! LoRA files and pictures to begin with, from the command line to the workers.

use super::{files, within};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tests::cluster::{Cluster, Process, command, coordinator, free_address, join, text};
use tests::fixture::given;

/// Synchronous, so that its bits depend on nothing but what was asked for.
pub(super) const JOB: [&str; 7] = [
    "red apple",
    "--json",
    "--seed=1",
    "--mode=full-sync",
    "--cfg-split=off",
    "--bands=even",
    "--width=256",
];

/// Layers of emoji-xl's UNet, their outputs and inputs.
const LAYERS: [(&str, usize, usize); 4] = [
    ("down_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q", 192, 192),
    ("mid_block.attentions.0.transformer_blocks.0.attn2.to_v", 192, 96),
    ("up_blocks.0.attentions.1.transformer_blocks.0.ff.net.0.proj", 1536, 192),
    ("up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0", 128, 128),
];

/// A LoRA of rank `rank` for emoji-xl, in `folder`: several parts long.
pub(super) fn lora(folder: &Path, rank: usize) -> PathBuf {
    let values = |count: usize, size: f32| -> Vec<u8> {
        let values = (0..count).map(|at| ((at * 7919 % 1009) as f32 / 1009.0 - 0.5) * size);
        values.flat_map(f32::to_le_bytes).collect()
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = LAYERS
        .iter()
        .flat_map(|(path, outputs, inputs)| {
            [
                (
                    format!("unet.{path}.lora_A.weight"),
                    vec![rank, *inputs],
                    values(rank * inputs, 0.3),
                ),
                (
                    format!("unet.{path}.lora_B.weight"),
                    vec![*outputs, rank],
                    values(outputs * rank, 0.1),
                ),
            ]
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (name, view.unwrap())
    });
    let path = folder.join("ink.safetensors");
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    path
}

/// The last event of a job that ends well.
pub(super) fn finished(job: &mut Process) -> Value {
    assert_eq!(job.wait(), Some(0), "{}", job.output());
    let events = job.events();
    let found = events.into_iter().find(|(_, event)| event["event"] == "finished");
    found.unwrap_or_else(|| panic!("{}", job.output())).1
}

pub(super) fn latent(cluster: &Cluster, arguments: &[&str]) -> String {
    let job = finished(&mut cluster.submit(&[&JOB[..], arguments].concat()));
    job["latent"].as_str().unwrap().to_owned()
}

/// The parameters in a PNG.
fn parameters(path: &str) -> (String, Value) {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    reader.finish().unwrap();
    let info = reader.info();
    let json = info.utf8_text[0].get_text().unwrap();
    (info.uncompressed_latin1_text[0].text.clone(), serde_json::from_str(&json).unwrap())
}

#[test]
fn a_lora_is_rendered_in_its_job_and_in_no_other() {
    let cluster = Cluster::start(2);
    let folder = tempfile::tempdir().unwrap();
    let ink = lora(folder.path(), 40).display().to_string();
    let out = within(folder.path(), "apple.png");
    let with = |scale: &str| format!("--lora={ink}{scale}");
    let steps = ["--steps=4", "--out", &out];
    let of = |loras: &[&str]| latent(&cluster, &[&steps[..], loras].concat());
    let plain = of(&[]);
    let changed = of(&[&with(":0.8")]);
    let (automatic, json) = parameters(&out);
    assert_ne!(changed, plain);
    assert_eq!(json["loras"][0]["name"], "ink.safetensors");
    let scale = json["loras"][0]["scale"].as_f64().unwrap();
    assert!((scale - 0.8).abs() < 1e-6, "{scale}");
    let digest = json["loras"][0]["file"].as_str().unwrap();
    assert!(automatic.contains(&format!("ink.safetensors (0.8): {digest}")), "{automatic}");
    assert_eq!(of(&[]), plain, "the model is as it was");
    assert_ne!(of(&[&with("")]), changed);
    assert_eq!(of(&[&with(":0.5"), &with(":0.3")]).len(), 64);
    assert_eq!(of(&[&with(":0")]), plain, "nothing is added");
    assert_eq!(of(&[&with(":0.8")]), changed);
}

#[test]
fn a_picture_begins_an_image_of_its_size() {
    let cluster = Cluster::start(2);
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let picture = given::path("picture.png").display().to_string();
    let init = format!("--init={picture}");
    let sized = ["--height=96", "--steps=6", "--out", &out];
    let of = |more: &[&str]| latent(&cluster, &[&sized[..], more].concat());
    let half = of(&[&init, "--strength=0.5"]);
    let (automatic, json) = parameters(&out);
    assert_eq!(json["init"]["strength"], 0.5);
    assert!(automatic.contains("Denoising strength: 0.5"), "{automatic}");
    assert_eq!(of(&[&init, "--strength=0.5"]), half);
    assert_ne!(of(&[&init]), half);
    assert_ne!(of(&[]), half);
    // Of the picture's size, 71x99, in whole latent pixels.
    finished(&mut cluster.submit(&["red apple", "--json", "--steps=4", &init, "--out", &out]));
    let (_, json) = parameters(&out);
    assert_eq!((&json["width"], &json["height"]), (&64.into(), &96.into()));
}

/// With its files in `folder`/data.
fn serve(address: &str, folder: &Path) -> Process {
    let data = within(folder, "data");
    let arguments = ["serve", "--insecure", "--listen", address, "--data", &data];
    let process = Process::start("coordinator", &arguments);
    process.wait_for("listening on");
    process
}

#[test]
fn a_job_goes_on_with_workers_and_a_coordinator_that_never_had_its_lora() {
    let folder = tempfile::tempdir().unwrap();
    let address = free_address().to_string();
    let coordinator = serve(&address, folder.path());
    let identity = vec!["--insecure".to_owned()];
    let workers = vec![join(&address), join(&address)];
    let mut cluster = Cluster { address, coordinator, workers, identity };
    cluster.wait_for_workers(2);
    let ink = format!("--lora={}", lora(folder.path(), 40).display());
    let out = within(folder.path(), "apple.png");
    let job =
        [&JOB[..], &["--steps=40", "--workers=2", "--deterministic", &ink, "--out", &out]].concat();
    let undisturbed = finished(&mut cluster.submit(&job))["latent"].clone();

    // 1. A worker is lost, and another comes.
    let mut disturbed = cluster.submit(&job);
    disturbed.wait_for(r#""call":8"#);
    cluster.workers[0].signal("KILL");
    cluster.workers[0].wait();
    let another = join(&cluster.address);
    cluster.workers[0] = another;
    let done = finished(&mut disturbed);
    assert_eq!(done["latent"], undisturbed);
    assert_eq!(done["recoveries"].as_array().map(Vec::len), Some(1), "{done}");

    // 2. All are lost, and the coordinator with them.
    let mut disturbed = cluster.submit(&job);
    disturbed.wait_for(r#""call":8"#);
    cluster.coordinator.signal("KILL");
    cluster.coordinator.wait();
    for worker in &mut cluster.workers {
        worker.signal("KILL");
        worker.wait();
    }
    cluster.coordinator = serve(&cluster.address, folder.path());
    cluster.workers = vec![join(&cluster.address), join(&cluster.address)];
    assert_eq!(finished(&mut disturbed)["latent"], undisturbed);

    // 3. The file stays for a while, for those who ask for more with it.
    let kept = folder.path().join("data/files");
    assert_eq!(files(&kept).len(), 1, "{:?}", files(&kept));

    // 4. A job whose file is lost ends, and says so.
    let mut lost = cluster.submit(&job);
    lost.wait_for(r#""call":8"#);
    cluster.coordinator.signal("KILL");
    cluster.coordinator.wait();
    for name in files(&kept) {
        std::fs::remove_file(kept.join(name)).unwrap();
    }
    cluster.coordinator = serve(&cluster.address, folder.path());
    assert_eq!(lost.wait(), Some(1));
    assert!(lost.output().contains("is not there"), "{}", lost.output());
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let pickled = at("ink.pt", b"PK\x03\x04 and so on");
    let gif = at("a.gif", b"GIF89a");
    let other = given::path("kohya.safetensors").display().to_string();
    let picture = given::path("picture.png").display().to_string();
    let huge = folder.path().join("huge.safetensors");
    std::fs::File::create(&huge).unwrap().set_len((2 << 30) + 1).unwrap();
    let huge = huge.display().to_string();
    let nan = format!("{other}:nan");
    for (arguments, words) in [
        (&["--lora", "/nowhere.safetensors"][..], &["/nowhere.safetensors"][..]),
        (&["--lora", &pickled], &["ink.pt", "safetensors"]),
        (&["--lora", &huge], &["huge.safetensors", "2147483648"]),
        (&["--lora", &other], &["kohya.safetensors", "lora_unet_"]),
        (&["--lora", &nan], &["kohya.safetensors", "scale NaN"]),
        (&["--init", &gif], &["a.gif", "PNG", "JPEG"]),
        (&["--init", &picture, "--strength", "1.5"], &["strength 1.5"]),
        (&["--init", &picture, "--strength", "-1"], &["strength -1"]),
        (
            &["--init", &picture, "--strength", "0.1", "--steps", "5"],
            &["strength of 0.1", "10 steps"],
        ),
        (&["--strength", "0.5"], &["--init"]),
    ] {
        let out = within(folder.path(), "image.png");
        let base =
            ["submit", "red apple", "--local", "1", "--width=64", "--height=64", "--out", &out];
        let output = coordinator(&[&base[..], arguments].concat());
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        for word in words {
            assert!(said.contains(word), "{arguments:?}: {word:?} is missing in: {said}");
        }
        assert!(!Path::new(&out).exists(), "{arguments:?}");
    }
}

/// One whose temporary folder is none.
#[test]
fn a_worker_that_cannot_hold_a_file_is_done_without() {
    let mut cluster = Cluster::start(1);
    let folder = tempfile::tempdir().unwrap();
    let mut worker = command("worker");
    worker.args(["join", "--coordinator", &cluster.address, "--insecure"]);
    worker.args(["--listen", "127.0.0.1:0", "--threads", "1"]).env("TMPDIR", "/dev/null");
    cluster.workers.push(Process::spawn(&mut worker));
    cluster.wait_for_workers(2);
    let ink = format!("--lora={}", lora(folder.path(), 40).display());
    let out = within(folder.path(), "apple.png");
    let arguments = ["--steps=4", &ink, "--out", &out];
    let both = latent(&cluster, &arguments);
    let alone = latent(&cluster, &[&arguments[..], &["--workers=1"]].concat());
    assert_eq!(both, alone);
    cluster.workers[1].wait_for("no room in /dev/null");
    // And if no worker can hold it, the job says why.
    cluster.workers[0].signal("KILL");
    cluster.workers[0].wait();
    cluster.wait_for_workers(1);
    let mut refused = cluster.submit(&[&JOB[..], &arguments].concat());
    assert_eq!(refused.wait(), Some(1));
    assert!(refused.output().contains("no room in /dev/null"), "{}", refused.output());
}
