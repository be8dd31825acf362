//! What may be asked, what may not, and how that is said. Nobody renders here: jobs wait.

use serde_json::{Value, json};
use tests::http::{self, Answer, Http};

fn apple() -> Value {
    json!({"prompt": "red apple"})
}

fn wrong(answer: &Answer, status: u16, code: &str, param: Option<&str>) {
    let (said, _, name, about) = answer.error();
    assert_eq!((said, &*name, about.as_deref()), (status, code, param), "{answer:?}");
}

#[test]
fn a_submission_that_is_sent_again_is_the_same_job() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let named = http.with("Idempotency-Key", "first");
    let one = named.post("/v1/jobs", &apple());
    let again = named.post("/v1/jobs", &apple());
    assert_eq!((one.status, again.status), (202, 200));
    assert_eq!(one.json()["id"], again.json()["id"]);
    assert_eq!(one.json()["seed"], again.json()["seed"], "a seed is drawn once");
    let other = named.post("/v1/jobs", &json!({"prompt": "green apple"}));
    wrong(&other, 409, "conflict", None);
    let second = http.with("Idempotency-Key", "second").post("/v1/jobs", &apple());
    assert_eq!(second.status, 202);
    assert_ne!(second.json()["id"], one.json()["id"]);
    let long = http.with("Idempotency-Key", &"k".repeat(256)).post("/v1/jobs", &apple());
    wrong(&long, 400, "invalid_request", Some("Idempotency-Key"));
}

#[test]
fn what_is_wrong_with_a_body_is_named() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let post = |body: Value| http.post("/v1/jobs", &body);
    let unknown = post(json!({"prompt": "red apple", "promt": "x"}));
    wrong(&unknown, 400, "invalid_request", Some("promt"));
    assert!(unknown.message().contains("unknown field `promt`"), "{unknown:?}");
    let sampler = post(json!({"prompt": "red apple", "scheduler": "fast"}));
    wrong(&sampler, 400, "invalid_request", Some("scheduler"));
    assert!(sampler.message().contains("dpmpp-2m"), "{sampler:?}");
    wrong(&post(json!({"steps": 3})), 400, "invalid_request", None);
    wrong(&post(json!(["red apple"])), 400, "invalid_request", None);
    wrong(&post(json!({"prompt": "a", "steps": 1001})), 400, "limit_exceeded", Some("steps"));
    let large = post(json!({"prompt": "a", "width": 8192, "height": 8192}));
    wrong(&large, 400, "limit_exceeded", Some("width"));
    assert!(large.message().contains("67108864") && large.message().contains("16777216"));
    wrong(&post(json!({"prompt": "a".repeat(10_001)})), 400, "limit_exceeded", Some("prompt"));
    let huge = post(json!({"prompt": "a".repeat(2 << 20)}));
    wrong(&huge, 413, "body_too_large", None);
    assert!(huge.message().contains("1048576"), "{huge:?}");
    let json = http.with("Content-Type", "application/json");
    let broken = json.ask("POST", "/v1/jobs", b"{\"prompt\": ");
    wrong(&broken, 400, "invalid_request", Some("prompt"));
    let form = http.with("Content-Type", "application/x-www-form-urlencoded");
    wrong(&form.ask("POST", "/v1/jobs", b"prompt=a"), 415, "unsupported_media_type", None);
    let plain = http.with("Content-Type", "text/plain");
    wrong(
        &plain.ask("POST", "/v1/jobs", b"{\"prompt\": \"a\"}"),
        415,
        "unsupported_media_type",
        None,
    );
    assert_eq!(http.get("/v1/jobs").json(), json!({"jobs": [], "next": null}));
}

#[test]
fn jobs_are_listed_in_pages_and_by_state() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let ids: Vec<u64> = (0..5).map(|_| http.submit(&apple())).collect();
    assert_eq!(http.delete(&format!("/v1/jobs/{}", ids[2])).status, 202);
    let page = |query: &str| {
        let list = http.get(&format!("/v1/jobs{query}")).json();
        let jobs = list["jobs"].as_array().unwrap().iter();
        let numbers: Vec<u64> = jobs.map(|job| job["id"].as_u64().unwrap()).collect();
        (numbers, list["next"].as_u64())
    };
    assert_eq!(page("?limit=2"), (vec![ids[4], ids[3]], Some(ids[3])));
    assert_eq!(page(&format!("?limit=3&before={}", ids[3])), (vec![ids[2], ids[1], ids[0]], None));
    assert_eq!(page("?state=cancelled,finished"), (vec![ids[2]], None));
    assert_eq!(page("?state=queued").0.len(), 4);
    let ahead: Vec<Value> =
        [0, 1, 3, 4].map(|each: usize| http.job(ids[each])["ahead"].clone()).into();
    assert_eq!(ahead, [0, 1, 2, 3]);
    for (query, param) in
        [("limit=0", Some("limit")), ("limit=201", Some("limit")), ("state=done", Some("state"))]
    {
        wrong(&http.get(&format!("/v1/jobs?{query}")), 400, "invalid_request", param);
    }
    for query in ["limit=x", "before=-1", "first=1"] {
        wrong(&http.get(&format!("/v1/jobs?{query}")), 400, "invalid_request", None);
    }
}

#[test]
fn a_higher_priority_goes_first() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let (normal, low) =
        (http.submit(&apple()), http.submit(&json!({"prompt": "a", "priority": "low"})));
    let high = http.submit(&json!({"prompt": "a", "priority": "high"}));
    let ahead = |job: u64| http.job(job)["ahead"].as_u64();
    assert_eq!([high, normal, low].map(ahead), [Some(0), Some(1), Some(2)]);
    let figures = http.get("/metrics");
    let figures = String::from_utf8(figures.body).unwrap();
    for line in [
        "tessera_queue_jobs{priority=\"high\"} 1",
        "tessera_queue_jobs{priority=\"normal\"} 1",
        "tessera_accepted_jobs_total 3",
        "tessera_workers{state=\"idle\"} 0",
    ] {
        assert!(figures.contains(line), "{line} is missing in:\n{figures}");
    }
}

#[test]
fn what_is_not_there_is_said_in_one_shape() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    for path in
        ["/v1/jobs/7", "/v1/jobs/7/image", "/v1/jobs/7/events", "/v1/jobs/7/preview", "/v1/jobs/x"]
    {
        let answer = http.get(path);
        assert_eq!((answer.error().0, &*answer.error().1), (404, "not_found_error"), "{path}");
        assert_eq!(answer.error().2, "unknown_job", "{path}");
    }
    wrong(&http.get("/v1/nothing"), 404, "not_found", None);
    let method = http.ask("PATCH", "/v1/jobs", &[]);
    wrong(&method, 405, "method_not_allowed", None);
    assert_eq!(method.header("allow"), Some("GET, POST"));
}

#[test]
fn a_server_without_workers_says_so_and_how_they_join() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    assert_eq!(http.get("/healthz").status, 200);
    let ready = http.get("/readyz");
    assert_eq!((ready.status, &*ready.body), (503, &b"no worker is there\n"[..]));
    assert_eq!(http.get("/v1/models").json(), json!({"object": "list", "data": []}));
    let cluster = http.get("/v1/cluster").json();
    assert_eq!((&cluster["model"], &cluster["workers"]), (&Value::Null, &json!([])));
    let join = cluster["join"].as_str().unwrap();
    assert!(
        join.starts_with("worker join --coordinator 127.0.0.1:") && join.ends_with(" --insecure")
    );
}

#[test]
fn a_cluster_is_described_with_its_model() {
    let (_cluster, http) = http::start(2, &[]);
    assert_eq!(http.get("/readyz").status, 200);
    let model = &http.get("/v1/models").json()["data"][0];
    assert_eq!((&model["id"], &model["object"]), (&"emoji-xl".into(), &"model".into()));
    assert_eq!((&model["native"]["width"], &model["steps"]), (&256.into(), &30.into()));
    assert!(model["schedulers"].as_array().unwrap().contains(&model["scheduler"]), "{model}");
    let cluster = http.get("/v1/cluster").json();
    assert_eq!(cluster["workers"].as_array().map(Vec::len), Some(2));
    assert_eq!(cluster["model"]["name"], "emoji-xl");
    assert_eq!(cluster["pairs"][0]["fabric"], "shm");
    let unit = u32::try_from(model["row_unit_pixels"].as_u64().unwrap()).unwrap();
    let odd = http.post("/v1/jobs", &json!({"prompt": "a", "width": unit + 1}));
    wrong(&odd, 400, "invalid_request", Some("width"));
    assert!(odd.message().contains("multiple"), "{odd:?}");
    let size = json!({"prompt": "a", "size": format!("{unit}x{}", unit + 1)});
    wrong(&http.post("/v1/images/generations", &size), 400, "invalid_request", Some("size"));
    let other = json!({"prompt": "a", "model": "other"});
    wrong(&http.post("/v1/jobs", &other), 400, "invalid_request", Some("model"));
}

#[test]
fn the_description_is_openapi_and_is_what_is_answered() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let document = http.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    let job = http.job(http.submit(&apple()));
    has_all_of(&document, "Job", &job);
    has_all_of(&document, "Request", &job["request"]);
    has_all_of(&document, "Cluster", &http.get("/v1/cluster").json());
}

/// Checks that an answer has the properties of its schema, and no others.
fn has_all_of(document: &Value, schema: &str, answer: &Value) {
    let schema = &document["components"]["schemas"][schema]["properties"];
    let mut described: Vec<&String> = schema.as_object().unwrap().keys().collect();
    let mut answered: Vec<&String> = answer.as_object().unwrap().keys().collect();
    described.sort();
    answered.sort();
    assert_eq!(answered, described);
}

/// A body that is cut off, or never comes, keeps nobody else waiting.
#[test]
fn a_body_that_never_comes_costs_one_connection() {
    use std::io::{Read, Write};
    let (_coordinator, http): (_, Http) = http::serve("127.0.0.1:0", &[]);
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{",
        http.authority()
    );
    let mut slow = std::net::TcpStream::connect(http.authority()).unwrap();
    slow.write_all(head.as_bytes()).unwrap();
    assert_eq!(http.post("/v1/jobs", &apple()).status, 202);
    slow.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).ok(); // it may be hung up on without an answer
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(http.get("/v1/jobs").json()["jobs"].as_array().map(Vec::len), Some(1));
}
