//! LoRA files and pictures to begin with, over HTTP.

use super::super::given::{JOB, finished, latent, lora};
use crate::cluster::within;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::path::Path;
use tests::cluster::Process;
use tests::fixture::given;
use tests::http::{self, Answer, Http};

/// What `submit` is asked for with [`JOB`], and `steps` steps.
fn job(steps: u32) -> Value {
    json!({
        "prompt": "red apple", "seed": 1, "mode": "full-sync", "cfg_split": "off", "bands": "even", "width": 256, "height": 96,
        "steps": steps,
    })
}

/// `of` and these fields.
fn and(mut of: Value, fields: Value) -> Value {
    let Value::Object(fields) = fields else { panic!("{fields}") };
    of.as_object_mut().unwrap().extend(fields);
    of
}

fn send(http: &Http, bytes: &[u8]) -> Answer {
    http.with("Content-Type", "application/octet-stream").ask("POST", "/v1/files", bytes)
}

fn sent(http: &Http, path: &Path) -> Value {
    let answer = send(http, &std::fs::read(path).unwrap());
    assert_eq!(answer.status, 201, "{answer:?}");
    let file = answer.json();
    let at = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), Some(&*at));
    assert_eq!(http.get(&at).json(), file);
    file
}

fn rendered(http: &Http, body: &Value) -> (u64, Value) {
    let id = http.submit(body);
    let end = http.events(id).find(|message| ["finished", "failed"].contains(&&*message.event));
    let end = end.unwrap();
    assert_eq!(end.event, "finished", "{end:?}");
    (id, end.said["latent"].clone())
}

fn refused(answer: &Answer, code: &str, param: Option<&str>) -> String {
    let (status, _, said, about) = answer.error();
    assert_eq!((status, &*said, about.as_deref()), (400, code, param), "{answer:?}");
    answer.message()
}

#[test]
fn a_job_with_files_is_the_one_that_a_command_submits_with_them() {
    let (cluster, http) = http::start(2, &[]);
    let folder = tempfile::tempdir().unwrap();
    let (ink, picture) = (lora(folder.path(), 40), given::path("picture.png"));
    let out = within(folder.path(), "apple.png");
    let options = [
        format!("--lora={}:0.8", ink.display()),
        format!("--init={}", picture.display()),
        "--strength=0.5".to_owned(),
        format!("--out={out}"),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let submitted = latent(&cluster, &[&["--steps=6", "--height=96"], &options[..]].concat());

    let (ink, sketch) = (sent(&http, &ink), sent(&http, &picture));
    assert_eq!((&ink["kind"], &sketch["kind"]), (&"lora".into(), &"picture".into()));
    assert_eq!((&sketch["width"], &sketch["height"]), (&71.into(), &99.into()));
    let loras = json!([{"file": ink["id"], "scale": 0.8, "name": "ink.safetensors"}]);
    let init = json!({"file": sketch["id"], "strength": 0.5});
    let asked = and(job(6), json!({"loras": loras, "init": init}));
    let (id, hash) = rendered(&http, &asked);
    assert_eq!(hash, submitted, "the same latent");

    // What is told of the job asks for the same image.
    let told = http.job(id);
    assert_eq!((&told["request"]["loras"], &told["request"]["init"]), (&loras, &init));
    assert_eq!(told["spec"]["loras"][0]["file"], ink["id"]);
    let (_, again) = rendered(&http, &told["request"]);
    assert_eq!(again, hash);

    // The picture may come with the request, and in the web UI's words all of it.
    let data = BASE64_STANDARD.encode(std::fs::read(&picture).unwrap());
    let along = and(asked.clone(), json!({"init": {"data": data, "strength": 0.5}}));
    let (id, along) = rendered(&http, &along);
    assert_eq!(along, hash);
    assert_eq!(http.job(id)["request"]["init"], init, "as a file that is there from now on");

    // Of the picture's size, in whole latent pixels.
    let bare = json!({"prompt": "red apple", "steps": 4, "init": {"file": sketch["id"]}});
    let (id, _) = rendered(&http, &bare);
    let spec = &http.job(id)["spec"];
    assert_eq!((&spec["width"], &spec["height"]), (&64.into(), &96.into()));

    // What no model is needed to see is refused at once, what one is needed for by the planner.
    let strong = http.post(
        "/v1/jobs",
        &and(bare.clone(), json!({"init": {"file": sketch["id"], "strength": 1.5}})),
    );
    refused(&strong, "invalid_request", Some("init.strength"));
    let few = http.post(
        "/v1/jobs",
        &and(bare, json!({"steps": 1, "init": {"file": sketch["id"], "strength": 0.5}})),
    );
    assert!(refused(&few, "invalid_request", Some("init.strength")).contains("at least 2 steps"));
    let mut plain = cluster.submit(&[&JOB[..], &["--steps=4", "--out", &out]].concat());
    finished(&mut plain);
}

#[test]
fn the_web_uis_words_begin_with_a_picture_too() {
    let (cluster, http) = http::start(1, &[]);
    let folder = tempfile::tempdir().unwrap();
    let ink = lora(folder.path(), 4);
    let picture = given::path("picture.png");
    let out = within(folder.path(), "apple.png");
    let options = [
        format!("--lora={}:0.8", ink.display()),
        format!("--init={}", picture.display()),
        format!("--out={out}"),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let submitted =
        latent(&cluster, &[&["--steps=6", "--height=96", "--strength=0.5"], &options[..]].concat());
    let ink = sent(&http, &ink)["id"].as_str().unwrap().to_owned();
    assert_eq!(http.get("/sdapi/v1/loras").json()[0]["name"], *ink);
    let data = BASE64_STANDARD.encode(std::fs::read(picture).unwrap());
    let asked = json!({
        "prompt": format!("red apple<lora:{ink}:0.8>"), "init_images": [data], "denoising_strength": 0.5, "seed": 1, "steps": 6,
        "width": 256, "height": 96,
    });
    let answer = http.post("/sdapi/v1/img2img", &asked);
    assert_eq!(answer.status, 200, "{answer:?}");
    let said = answer.json();
    assert_eq!(
        (said["images"].as_array().map(Vec::len), said["parameters"].get("init_images")),
        (Some(1), None)
    );
    let jobs = http.get("/v1/jobs").json();
    // One worker computes alike in any mode.
    assert_eq!(jobs["jobs"][0]["result"]["latent"], submitted);
    let weak = http.post("/sdapi/v1/img2img", &and(asked, json!({"denoising_strength": 0})));
    refused(&weak, "invalid_request", Some("denoising_strength"));
}

#[test]
fn what_is_sent_is_judged_at_once_and_known_by_what_is_in_it() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let folder = tempfile::tempdir().unwrap();
    let ink = lora(folder.path(), 4);
    let (first, again) = (sent(&http, &ink), sent(&http, &ink));
    assert_eq!(first, again);
    assert_eq!(first["bytes"], std::fs::metadata(&ink).unwrap().len());
    let sketch = sent(&http, &given::path("picture.png"));
    assert_eq!(http.get("/v1/files").json()["files"].as_array().map(Vec::len), Some(2));
    let at = |file: &Value, rest: &str| format!("/v1/files/{}{rest}", file["id"].as_str().unwrap());
    let shown = http.get(&at(&sketch, "/picture"));
    assert_eq!(shown.header("content-type"), Some("image/png"));
    assert_eq!(send(&http, &shown.body).json(), sketch, "it is what workers read");
    assert_eq!(http.get(&at(&first, "/picture")).error().2, "not_a_picture");

    let whole = std::fs::read(&ink).unwrap();
    for (bytes, words) in [
        (&b"PK\x03\x04 a pickle"[..], "neither a picture"),
        (&whole[..whole.len() - 1], "damaged"),
        (&shown.body[..60], "no whole PNG"),
        (b"", "empty"),
    ] {
        let said = refused(&send(&http, bytes), "invalid_request", None);
        assert!(said.contains(words), "{said}");
    }
    assert_eq!(http.get("/v1/files").json()["files"].as_array().map(Vec::len), Some(2));
    assert_eq!(http.get("/v1/files/nothing").error().2, "unknown_file");
    let head = "POST /v1/files HTTP/1.1\r\nHost: ";
    for (length, status) in
        [("Content-Length: 2147483649", "413"), ("Transfer-Encoding: chunked", "411")]
    {
        let mut raw = std::net::TcpStream::connect(http.authority()).unwrap();
        raw.write_all(format!("{head}{}\r\n{length}\r\n\r\n", http.authority()).as_bytes())
            .unwrap();
        let mut answer = [0; 12];
        raw.read_exact(&mut answer).unwrap();
        assert!(String::from_utf8_lossy(&answer).ends_with(status), "{length}: {answer:?}");
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_its_place() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let folder = tempfile::tempdir().unwrap();
    let ink = sent(&http, &lora(folder.path(), 4))["id"].clone();
    let sketch = sent(&http, &given::path("picture.png"))["id"].clone();
    let post = |fields: Value| http.post("/v1/jobs", &and(json!({"prompt": "red apple"}), fields));
    let gone = "ab".repeat(32);
    let lost = post(json!({"loras": [{"file": ink}, {"file": gone}]}));
    let said = refused(&lost, "unknown_file", Some("loras[1].file"));
    assert!(said.contains(&gone) && said.contains("POST /v1/files"), "{said}");
    refused(&post(json!({"init": {"file": gone}})), "unknown_file", Some("init.file"));
    refused(&post(json!({"init": {"file": "ab"}})), "invalid_request", Some("init.file"));
    refused(&post(json!({"init": {"file": ink}})), "invalid_request", Some("init.file"));
    refused(&post(json!({"loras": [{"file": sketch}]})), "invalid_request", Some("loras[0].file"));
    refused(
        &post(json!({"loras": [{"file": ink, "scale": 101}]})),
        "invalid_request",
        Some("loras"),
    );
    let many: Vec<Value> = (0..17).map(|_| json!({"file": ink})).collect();
    refused(&post(json!({"loras": many})), "invalid_request", Some("loras"));
    refused(&post(json!({"init": {}})), "invalid_request", Some("init"));
    refused(&post(json!({"init": {"data": "?"}})), "invalid_request", Some("init.data"));
    let unread = BASE64_STANDARD.encode(b"GIF89a");
    refused(&post(json!({"init": {"data": unread}})), "invalid_request", Some("init.data"));
    refused(
        &post(json!({"init": {"file": sketch, "strength": 0}})),
        "invalid_request",
        Some("init.strength"),
    );
    refused(
        &post(json!({"init": {"file": sketch, "mask": 1}})),
        "invalid_request",
        Some("init.mask"),
    );
    assert_eq!(http.get("/v1/jobs").json()["jobs"], json!([]));
    assert_eq!(post(json!({"loras": [{"file": ink}], "init": {"file": sketch}})).status, 202);
}

#[test]
fn files_that_no_job_needs_outlive_a_coordinator_that_keeps_its_jobs() {
    let folder = tempfile::tempdir().unwrap();
    let data = within(folder.path(), "data");
    let kept = ["--data", &*data];
    let sketch = given::path("picture.png");
    let there = |(process, http): (Process, Http), file: &Value| {
        let status = http.get(&format!("/v1/files/{}", file["id"].as_str().unwrap())).status;
        (process, http, status)
    };
    let (mut coordinator, http) = http::serve("127.0.0.1:0", &kept);
    let file = sent(&http, &sketch);
    coordinator.signal("KILL");
    coordinator.wait();
    let (_coordinator, http, status) = there(http::serve("127.0.0.1:0", &kept), &file);
    assert_eq!(status, 200);
    http.submit(&json!({"prompt": "red apple", "init": {"file": file["id"]}}));
    let (_other, _, status) = there(http::serve("127.0.0.1:0", &[]), &file);
    assert_eq!(status, 404, "it keeps nothing");
}
