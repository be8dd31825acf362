//! A coordinator's HTTP interface, as callers meet it.

use crate::cluster::{Cluster, PATIENCE, Process, free_address, join};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use ureq::http::{HeaderMap, Request};

/// What begins the line in which a coordinator says where its HTTP interface is.
const SAYS: &str = "HTTP is at ";

/// Starts a coordinator that listens on `address`, with HTTP on a free port and these further arguments.
///
/// # Panics
/// If it does not start.
#[must_use]
pub fn serve(address: &str, arguments: &[&str]) -> (Process, Http) {
    let own = ["serve", "--insecure", "--listen", address, "--http", "127.0.0.1:0"];
    let process = Process::start("coordinator", &[&own[..], arguments].concat());
    process.wait_for("listening on");
    let http = Http::of(&process);
    (process, http)
}

/// Starts a cluster whose coordinator answers over HTTP, and waits until all workers have joined.
///
/// # Panics
/// If they do not.
#[must_use]
pub fn start(workers: usize, arguments: &[&str]) -> (Cluster, Http) {
    let address = free_address().to_string();
    let (coordinator, http) = serve(&address, arguments);
    let workers = (0..workers).map(|_| join(&address)).collect();
    let identity = vec!["--insecure".to_owned()];
    let cluster = Cluster { address, coordinator, workers, identity };
    cluster.wait_for_workers(cluster.workers.len());
    (cluster, http)
}

/// A caller.
#[derive(Clone, Debug)]
pub struct Http {
    /// `http://ADDR:PORT`.
    pub url: String,
    /// What it says with every request.
    pub headers: Vec<(String, String)>,
    agent: ureq::Agent,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

/// A message of a stream of events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// Its number.
    pub id: u64,
    /// What happened.
    pub event: String,
    /// What is said of it.
    pub said: Value,
}

impl Http {
    /// A caller of the coordinator that has said where it answers.
    ///
    /// # Panics
    /// If it has not.
    #[must_use]
    pub fn of(process: &Process) -> Self {
        let output = process.output();
        let url = output.split_once(SAYS).and_then(|(_, rest)| rest.split_once('/').map(|_| rest));
        let url = url
            .and_then(|rest| rest.split([',', '\n']).next())
            .map(|url| url.trim_end_matches('/'));
        let url = url.unwrap_or_else(|| panic!("no {SAYS:?} in:\n{output}")).to_owned();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .allow_non_standard_methods(true)
            .timeout_global(Some(PATIENCE))
            .build()
            .into();
        Self { url, headers: Vec::new(), agent }
    }

    /// The same caller, who says this as well.
    #[must_use]
    pub fn with(&self, header: &str, value: &str) -> Self {
        let mut with = self.clone();
        with.headers.push((header.to_owned(), value.to_owned()));
        with
    }

    /// The same caller, who shows this key.
    #[must_use]
    pub fn keyed(&self, key: &str) -> Self {
        self.with("Authorization", &format!("Bearer {key}"))
    }

    /// `HOST:PORT`.
    #[must_use]
    pub fn authority(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    fn call(&self, method: &str, path: &str, body: &[u8]) -> ureq::http::Response<ureq::Body> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(body).expect("a request");
        let agent = &self.agent;
        let answered = if body.is_empty() && method != "POST" {
            agent.run(request.map(|_| ()))
        } else {
            agent.run(request)
        };
        answered.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// Asks, and reads the whole answer.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let (head, body) = self.call(method, path, body).into_parts();
        let mut bytes = Vec::new();
        body.into_reader().read_to_end(&mut bytes).expect("a whole answer");
        Answer { status: head.status.as_u16(), headers: head.headers, body: bytes }
    }

    /// GET.
    #[must_use]
    pub fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[])
    }

    /// DELETE.
    #[must_use]
    pub fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, &[])
    }

    /// POST of JSON.
    #[must_use]
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.with("Content-Type", "application/json").ask("POST", path, body.to_string().as_bytes())
    }

    /// Submits a job and gives its number.
    ///
    /// # Panics
    /// If it is not taken in.
    pub fn submit(&self, body: &Value) -> u64 {
        let answer = self.post("/v1/jobs", body);
        assert_eq!(answer.status, 202, "{answer:?}");
        answer.json()["id"].as_u64().expect("a job has a number")
    }

    /// What is told of a job.
    ///
    /// # Panics
    /// If nothing is.
    #[must_use]
    pub fn job(&self, job: u64) -> Value {
        let answer = self.get(&format!("/v1/jobs/{job}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()
    }

    /// The events of a job, until its stream ends.
    pub fn events(&self, job: u64) -> impl Iterator<Item = Message> {
        let response = self.call("GET", &format!("/v1/jobs/{job}/events"), &[]);
        assert_eq!(response.status().as_u16(), 200, "{response:?}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let mut lines =
            BufReader::new(response.into_body().into_reader()).lines().map_while(Result::ok);
        std::iter::from_fn(move || {
            let mut message = Message::default();
            loop {
                let line = lines.next()?;
                match line.split_once(": ") {
                    Some(("id", id)) => message.id = id.parse().expect("a number"),
                    Some(("event", event)) => event.clone_into(&mut message.event),
                    Some(("data", said)) => {
                        message.said = serde_json::from_str(said).expect("JSON");
                    }
                    _ if line.is_empty() && !message.event.is_empty() => return Some(message),
                    _ => {} // a comment
                }
            }
        })
    }
}

impl Answer {
    /// The body, which is JSON.
    ///
    /// # Panics
    /// If it is not.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// A header, if it is there.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// What is wrong: the status, the error's type, its code and the field that it is about.
    #[must_use]
    pub fn error(&self) -> (u16, String, String, Option<String>) {
        let error = &self.json()["error"];
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        (
            self.status,
            text("type").unwrap_or_default(),
            text("code").unwrap_or_default(),
            text("param"),
        )
    }

    /// What is said of what is wrong.
    #[must_use]
    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}
