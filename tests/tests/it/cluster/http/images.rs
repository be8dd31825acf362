//! Jobs that are rendered: followed, fetched, cancelled, kept.

use crate::cluster::within;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::cluster::{Process, eventually, free_address, join, text};
use tests::http::{self, Http, Message};
use tests::picture;

/// Synchronous and on even bands, so that its bits are always the same.
fn quick() -> Value {
    json!({"prompt": "red apple", "steps": 6, "seed": 7, "width": 256, "height": 128, "bands": "even", "cfg_split": "off"})
}

fn names(heard: &[Message]) -> Vec<&str> {
    heard.iter().map(|message| &*message.event).collect()
}

fn of<'a>(heard: &'a [Message], event: &str) -> &'a Value {
    let found = heard.iter().find(|message| message.event == event);
    &found.unwrap_or_else(|| panic!("no {event} in {heard:?}")).said
}

#[test]
fn a_job_is_followed_to_its_image_which_is_the_one_that_a_command_gets() {
    let (cluster, http) = http::start(2, &[]);
    let answer = http.post("/v1/jobs", &quick());
    assert_eq!(answer.status, 202, "{answer:?}");
    let id = answer.json()["id"].as_u64().unwrap();
    assert_eq!(answer.header("location"), Some(&*format!("/v1/jobs/{id}")));
    let heard: Vec<Message> = http.events(id).collect();
    assert!(heard.iter().zip(1..).all(|(message, number)| message.id == number), "{heard:?}");
    assert_eq!(names(&heard).iter().filter(|name| **name == "step").count(), 6);
    for name in ["started", "phase", "finished"] {
        assert!(names(&heard).contains(&name), "no {name} in {heard:?}");
    }
    let (started, finished) = (of(&heard, "started"), of(&heard, "finished"));
    assert_eq!(started["spec"]["seed"], 7);
    assert_eq!(started["bands"].as_array().map(Vec::len), Some(2));
    assert!(of(&heard, "step")["calls"] == 6 && of(&heard, "step").get("preview").is_some());

    let job = http.job(id);
    assert_eq!((&job["state"], &job["owner"]), (&"finished".into(), &"local".into()));
    assert_eq!(job["result"]["latent"], finished["latent"]);
    assert_eq!(job["spec"], {
        let mut spec = started["spec"].clone();
        spec.as_object_mut().unwrap().retain(|name, _| name != "probe" && name != "profile");
        spec
    });
    assert!(job["started"].as_u64() >= job["accepted"].as_u64() && job["ended"].is_u64(), "{job}");
    assert_eq!(job["image"], finished["image"]);
    // Whoever comes late hears the end at once.
    let late: Vec<Message> = http.events(id).collect();
    assert_eq!(of(&late, "finished"), finished);

    let folder = tempfile::tempdir().unwrap();
    let pixels = check_formats(&http, job["image"].as_str().unwrap(), folder.path());
    let out = within(folder.path(), "submitted.png");
    let options = [
        "red apple",
        "--steps=6",
        "--seed=7",
        "--width=256",
        "--height=128",
        "--bands=even",
        "--cfg-split=off",
    ];
    let mut submitted = cluster.submit(&[&options[..], &["--out", &out]].concat());
    assert_eq!(submitted.wait(), Some(0), "{}", submitted.output());
    let submitted = picture::read(out.as_ref());
    assert!(submitted.pixels == pixels, "the same image");
    let parameters: Value = serde_json::from_str(&submitted.texts["tessera"]).unwrap();
    assert_eq!(parameters["latent"], finished["latent"]);

    // What is told of a job asks for the same image when it is sent again.
    let again = http.submit(&job["request"]);
    let again: Vec<Message> = http.events(again).collect();
    assert_eq!(of(&again, "finished")["latent"], finished["latent"]);
}

/// Fetches an image in every format, and gives its pixels.
fn check_formats(http: &Http, path: &str, folder: &std::path::Path) -> Vec<u8> {
    let png = http.get(path);
    assert_eq!(png.header("content-type"), Some("image/png"));
    let file = folder.join("fetched.png");
    std::fs::write(&file, &png.body).unwrap();
    let png = picture::read(&file);
    assert_eq!(png.size, (256, 128));
    assert!(png.texts["parameters"].starts_with("red apple\nSteps: 6"), "{:?}", png.texts);

    let webp = http.with("Accept", "image/webp,*/*;q=0.5").get(path);
    assert_eq!(webp.header("content-type"), Some("image/webp"));
    let webp = image::load_from_memory_with_format(&webp.body, image::ImageFormat::WebP).unwrap();
    assert!(webp.to_rgb8().into_raw() == png.pixels, "a lossless format loses nothing");

    let jpeg = http.get(&format!("{path}?format=jpeg"));
    assert_eq!(jpeg.header("content-type"), Some("image/jpeg"));
    let jpeg = image::load_from_memory_with_format(&jpeg.body, image::ImageFormat::Jpeg).unwrap();
    let jpeg = jpeg.to_rgb8().into_raw();
    assert_eq!(jpeg.len(), png.pixels.len());
    let off: u64 = jpeg.iter().zip(&png.pixels).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    let mean = off / u64::try_from(jpeg.len()).unwrap();
    assert!(mean < 6, "a pixel of the JPEG is {mean} off in the mean");

    assert_eq!(http.with("Accept", "text/html").get(path).error().2, "not_acceptable");
    assert_eq!(http.get(&format!("{path}?format=gif")).status, 400);
    png.pixels
}

#[test]
fn waiting_and_running_jobs_are_cancelled_and_no_others() {
    let (_cluster, http) = http::start(1, &[]);
    let long = json!({"prompt": "red apple", "steps": 900});
    let (running, waiting) = (http.submit(&long), http.submit(&long));
    let mut events = http.events(running);
    assert!(events.any(|message| message.event == "step"));
    assert_eq!(http.job(waiting)["ahead"], 1);
    assert_eq!(http.get(&format!("/v1/jobs/{running}/image")).error().2, "not_finished");
    let preview = http.get(&format!("/v1/jobs/{running}/preview"));
    assert!([200, 204].contains(&preview.status), "{preview:?}");

    let mut waits = http.events(waiting);
    assert_eq!(waits.next().map(|message| message.event), Some("queued".to_owned()));
    let answer = http.delete(&format!("/v1/jobs/{waiting}"));
    assert_eq!((answer.status, &answer.json()["state"]), (202, &"cancelled".into()));
    let rest: Vec<Message> = waits.collect();
    assert_eq!(of(&rest, "failed")["fault"]["kind"], "cancelled");
    assert_eq!(http.delete(&format!("/v1/jobs/{waiting}")).error().0, 409);

    let answer = http.delete(&format!("/v1/jobs/{running}"));
    assert_eq!((answer.status, &answer.json()["state"]), (202, &"cancelled".into()));
    let rest: Vec<Message> = events.collect();
    assert_eq!(rest.last().map(|message| &*message.event), Some("failed"));
    let job = http.job(running);
    assert_eq!((&job["error"]["kind"], &job["image"]), (&"cancelled".into(), &Value::Null));
    let gone = http.get(&format!("/v1/jobs/{running}/image"));
    assert_eq!((gone.error().0, &*gone.error().2), (410, "cancelled"));
    // The worker is free for another.
    let next: Vec<Message> = http.events(http.submit(&quick())).collect();
    assert_eq!(next.last().map(|message| &*message.event), Some("finished"));
    assert_eq!(http.delete("/v1/jobs/999").error().0, 404);
}

#[test]
fn what_is_kept_is_there_after_the_coordinator_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let data = within(folder.path(), "data");
    let address = free_address().to_string();
    let (mut coordinator, http) = http::serve(&address, &["--data", &data]);
    let _worker = join(&address);
    let done = http.submit(&quick());
    assert_eq!(http.events(done).last().map(|message| message.event), Some("finished".to_owned()));
    let waiting = http.submit(&json!({"prompt": "red apple", "workers": 3}));
    let image = http.get(&format!("/v1/jobs/{done}/image"));
    assert_eq!(image.status, 200);
    coordinator.signal("KILL");
    coordinator.wait();

    let (_coordinator, http) = http::serve(&address, &["--data", &data]);
    let list = http.get("/v1/jobs").json();
    let told: Vec<(u64, &str)> = list["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| (job["id"].as_u64().unwrap(), job["state"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [(waiting, "queued"), (done, "finished")]);
    assert_eq!(http.get(&format!("/v1/jobs/{done}/image")).body, image.body);
    assert_eq!(http.events(done).last().map(|message| message.event), Some("finished".to_owned()));
}

#[test]
fn a_coordinator_that_ends_lets_its_followers_go() {
    let folder = tempfile::tempdir().unwrap();
    let data = within(folder.path(), "data");
    let (mut coordinator, http) = http::serve("127.0.0.1:0", &["--data", &data]);
    let job = http.submit(&json!({"prompt": "red apple"}));
    let mut followed: Vec<_> = (0..20).map(|_| http.events(job)).collect();
    for events in &mut followed {
        assert_eq!(events.next().map(|message| message.event), Some("queued".to_owned()));
    }
    let since = Instant::now();
    coordinator.signal("TERM");
    for events in followed {
        assert_eq!(events.count(), 0, "the job is kept: it has no end yet");
    }
    assert_eq!(coordinator.wait(), Some(0), "{}", coordinator.output());
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());

    // Without --data the job ends with its coordinator, and its followers hear that.
    let (mut coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let job = http.submit(&json!({"prompt": "red apple"}));
    let mut events = http.events(job);
    assert_eq!(events.next().map(|message| message.event), Some("queued".to_owned()));
    coordinator.signal("TERM");
    let rest: Vec<Message> = events.collect();
    assert_eq!(of(&rest, "failed")["fault"]["kind"], "shutting_down");
    assert_eq!(coordinator.wait(), Some(0));
}

/// A command's jobs are seen as well, and a caller's by a command.
#[test]
fn a_commands_job_is_watched_and_cancelled_over_http() {
    let (cluster, http) = http::start(1, &[]);
    let folder = tempfile::tempdir().unwrap();
    let out = within(folder.path(), "apple.png");
    let mut submit: Process =
        cluster.submit(&["red apple", "--steps=900", "--json", "--out", &out]);
    submit.wait_for(r#""event":"step""#);
    let jobs = http.get("/v1/jobs?state=running").json();
    let id = jobs["jobs"][0]["id"].as_u64().unwrap();
    let mut events = http.events(id);
    assert_eq!(events.next().map(|message| message.event), Some("started".to_owned()));
    assert!(eventually(|| http.job(id)["progress"]["call"].as_u64() > Some(2)));
    assert_eq!(http.delete(&format!("/v1/jobs/{id}")).status, 202);
    assert_eq!(submit.wait(), Some(1));
    assert!(submit.output().contains("someone asked"), "{}", submit.output());
    assert_eq!(text(&http.get("/healthz").body), "ok\n");
}
