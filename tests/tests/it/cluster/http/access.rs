//! Who may call.

use crate::cluster::within;
use serde_json::json;
use tests::cluster::{coordinator, eventually, succeed, text};
use tests::http;

#[test]
fn keys_are_asked_for_and_their_limits_hold() {
    let folder = tempfile::tempdir().unwrap();
    let file = within(folder.path(), "keys");
    let key = |arguments: &[&str]| {
        succeed(&[&["key"], arguments, &["--file", &file]].concat()).trim().to_owned()
    };
    let limits = ["--waiting=2", "--pixels=65536", "--steps=10", "--per-minute=5"];
    let alice = key(&[&["new", "alice"], &limits[..]].concat());
    let bob = key(&["new", "bob"]);
    for listed in [key(&["list"]), key(&["list", "--json"])] {
        assert!(listed.contains("alice") && !listed.contains(&alice), "{listed}");
    }
    let (process, http) = http::serve("127.0.0.1:0", &["--api-keys", &file]);

    for stranger in [http.clone(), http.keyed("tessera-00"), http.with("Authorization", "Basic x")]
    {
        let refused = stranger.get("/v1/jobs");
        let (status, kind, code, _) = refused.error();
        assert_eq!((status, &*kind, &*code), (401, "authentication_error", "invalid_api_key"));
        assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
        assert_eq!(stranger.post("/v1/jobs", &json!({"prompt": "a"})).status, 401);
        assert_eq!(stranger.get("/metrics").status, 401);
        assert_eq!(stranger.get("/healthz").status, 200);
    }
    let said = process.output();
    assert_eq!(said.matches("no API key was shown").count(), 1, "{said}");
    assert_eq!(said.matches("none of this server's").count(), 1, "{said}");

    let (alice, bob) = (http.keyed(&alice), http.keyed(&bob));
    let small = json!({"prompt": "a", "steps": 5, "width": 256, "height": 256});
    let first = alice.submit(&small);
    assert_eq!(alice.job(first)["owner"], "alice");
    let bobs = bob.submit(&small);
    let mut many = small.clone();
    many["steps"] = 11.into();
    assert!(alice.post("/v1/jobs", &many).message().contains("`alice`"));
    let mut large = small.clone();
    large["width"] = 512.into();
    assert_eq!(alice.post("/v1/jobs", &large).error().2, "limit_exceeded");
    assert_eq!(bob.post("/v1/jobs", &large).status, 202);
    // Two of alice's may wait, and five be submitted in a minute, of which refused ones are none.
    alice.submit(&small);
    let full = alice.post("/v1/jobs", &small);
    assert_eq!((full.error().0, &*full.error().2), (429, "queue_full"));
    assert!(full.header("retry-after").is_some(), "{full:?}");
    for _ in 0..3 {
        if alice.post("/v1/jobs", &small).error().2 == "rate_limit_exceeded" {
            break;
        }
    }
    let used_up = alice.post("/v1/jobs", &small);
    assert_eq!((used_up.error().0, &*used_up.error().2), (429, "rate_limit_exceeded"));
    assert!(used_up.header("retry-after").is_some(), "{used_up:?}");
    bob.submit(&small);

    let foreign = alice.delete(&format!("/v1/jobs/{bobs}"));
    assert_eq!((foreign.error().0, &*foreign.error().2), (403, "not_owner"));
    assert_eq!(alice.delete(&format!("/v1/jobs/{first}")).status, 202);
    // A page cannot say a header for an image or a stream of events.
    let query = bob.headers[0].1.replace("Bearer ", "?key=");
    assert_eq!(http.get(&format!("/v1/jobs/{bobs}{query}")).status, 200);
    assert_eq!(http.get(&format!("/v1/jobs{query}")).status, 200);

    key(&["revoke", "bob"]);
    assert!(eventually(|| bob.get("/v1/jobs").status == 401), "a revoked key is worthless");
    assert_eq!(alice.get("/v1/jobs").status, 200);
    let again = coordinator(&["key", "revoke", "bob", "--file", &file]);
    assert!(text(&again.stderr).contains("no key `bob`"), "{again:?}");
}

#[test]
fn pages_of_other_sites_can_neither_submit_nor_read() {
    let (_coordinator, http) = http::serve("127.0.0.1:0", &[]);
    let apple = json!({"prompt": "red apple"});
    for origin in ["https://evil.example", "null", "http://localhost:1"] {
        let page = http.with("Origin", origin);
        assert_eq!(page.post("/v1/jobs", &apple).error().2, "foreign_origin", "{origin}");
        assert_eq!(page.get("/v1/jobs").status, 403);
        assert_eq!(page.ask("OPTIONS", "/v1/jobs", &[]).status, 403);
    }
    for host in ["evil.example", "evil.example:80", "127.0.0.1.evil.example"] {
        let rebound = http.with("Host", host);
        assert_eq!(rebound.post("/v1/jobs", &apple).error().2, "foreign_host", "{host}");
        assert_eq!(rebound.get("/v1/jobs").status, 403);
    }
    let image = http.with("Sec-Fetch-Site", "cross-site").with("Sec-Fetch-Mode", "no-cors");
    assert_eq!(image.get("/v1/jobs/1/image").status, 403);
    assert_eq!(http.get("/v1/jobs").json()["jobs"], json!([]), "none was taken in");
    let own = http.with("Origin", &http.url);
    assert_eq!(own.post("/v1/jobs", &apple).status, 202);
    let port = http.authority().rsplit(':').next().unwrap();
    assert_eq!(http.with("Host", &format!("localhost:{port}")).get("/v1/jobs").status, 200);
    let answer = http.get("/v1/jobs");
    assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"));
    assert_eq!(answer.header("access-control-allow-origin"), None);
}

#[test]
fn pages_of_one_site_are_let_in_if_it_is_named() {
    let site = "https://art.example";
    let (_coordinator, http) = http::serve("127.0.0.1:0", &["--http-origin", site]);
    let page = http.with("Origin", site);
    let asked = page.with("Access-Control-Request-Method", "POST").ask("OPTIONS", "/v1/jobs", &[]);
    assert_eq!(asked.status, 204);
    assert!(asked.header("access-control-allow-headers").unwrap().contains("Content-Type"));
    let answer = page.post("/v1/jobs", &json!({"prompt": "red apple"}));
    assert_eq!(answer.status, 202);
    assert_eq!(answer.header("access-control-allow-origin"), Some(site));
    assert_eq!(answer.header("vary"), Some("Origin"));
    assert_eq!(http.with("Origin", "https://evil.example").get("/v1/jobs").status, 403);
}
