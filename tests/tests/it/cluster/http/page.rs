//! The page's files, and what it asks for beyond what other callers do.

use serde_json::json;
use tests::http::{self, Message};

#[test]
fn the_page_is_at_the_root_and_loads_nothing_from_elsewhere() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let page = http.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.contains("default-src 'self'") && !policy.contains("unsafe"), "{policy}");
    let html = String::from_utf8(page.body.clone()).unwrap();
    let named: Vec<&str> =
        html.split("\"/ui/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(named.len() >= 4, "{named:?}");
    for name in named {
        let file = http.get(&format!("/ui/{name}"));
        assert_eq!(file.status, 200, "/ui/{name}");
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
    }
    let (status, _, code, _) = http.get("/ui/nothing.js").error();
    assert_eq!((status, &*code), (404, "not_found"));
}

#[test]
fn a_browser_that_has_the_page_is_told_that_it_is_still_right() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let first = http.get("/ui/app.js");
    let tag = first.header("etag").unwrap();
    assert_eq!(first.header("cache-control"), Some("no-cache"));
    let again = http.with("If-None-Match", tag).get("/ui/app.js");
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(again.header("etag"), Some(tag));
    let other = http.with("If-None-Match", "\"0\"").get("/ui/app.js");
    assert_eq!((other.status, other.body), (200, first.body));
}

#[test]
fn a_job_that_is_asked_to_tells_where_each_workers_time_goes() {
    let (_cluster, http) = http::start(2, &[]);
    let body =
        json!({"prompt": "red apple", "steps": 3, "width": 128, "height": 128, "profile": true});
    let heard: Vec<Message> = http.events(http.submit(&body)).collect();
    let profiles: Vec<_> = heard.iter().filter(|message| message.event == "profiled").collect();
    for rank in [0, 1] {
        let of_rank = profiles.iter().filter(|message| message.said["rank"] == rank);
        let calls = of_rank.filter(|message| message.said["profile"]["phase"] == "denoising");
        let took: Vec<_> = calls.map(|message| &message.said["profile"]["took_us"]).collect();
        assert_eq!(took.len(), 3, "rank {rank}");
        assert!(took.iter().all(|took| took.as_u64() > Some(0)), "{took:?}");
    }
    let spans =
        profiles.iter().flat_map(|message| message.said["profile"]["spans"].as_array().unwrap());
    let works: Vec<_> = spans.map(|span| span["work"].clone()).collect();
    assert!(
        works.contains(&json!("Convolution")) && works.iter().any(|work| work["Wait"].is_u64())
    );
    let quiet = json!({"prompt": "red apple", "steps": 3, "width": 128, "height": 128});
    assert!(http.events(http.submit(&quiet)).all(|message| message.event != "profiled"));
}
