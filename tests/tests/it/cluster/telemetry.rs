//! Traces of jobs, as a collector of OpenTelemetry's gets them.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;
use tests::cluster::{Cluster, Process, free_address, join};

/// Where a collector listens, and what it is told. It refuses the first, and takes the others.
fn collector() -> (String, Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (say, told) = channel();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut head = Vec::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if line.trim().is_empty() {
                    break;
                }
                head.push(line.trim().to_ascii_lowercase());
            }
            assert_eq!(head[0], "post /v1/traces http/1.1");
            let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
            let mut body = vec![0; length.unwrap().parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            let status = if number == 0 { "400 Bad Request" } else { "200 OK" };
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            if say.send(ExportTraceServiceRequest::decode(&*body).unwrap()).is_err() {
                return;
            }
        }
    });
    (format!("http://{address}"), told)
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key).unwrap();
    match found.value.as_ref().unwrap().value.as_ref().unwrap() {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{key}: {other:?}"),
    }
}

#[test]
fn a_job_that_ended_is_a_trace_of_its_ranks_and_calls() {
    let (url, told) = collector();
    let address = free_address().to_string();
    let serve = ["serve", "--insecure", "--listen", &address, "--http=off", "--otlp", &url];
    let coordinator = Process::start("coordinator", &serve);
    coordinator.wait_for("listening on");
    let workers = vec![join(&address), join(&address)];
    let cluster =
        Cluster { address, coordinator, workers, identity: vec!["--insecure".to_owned()] };
    cluster.wait_for_workers(2);
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("a.png").display().to_string();
    let job = ["red apple", "--steps=3", "--workers=2", "--width=64", "--height=64", "--out", &out];
    assert_eq!(cluster.submit(&job).wait(), Some(0));
    // A collector that does not take it disturbs nothing.
    told.recv_timeout(Duration::from_secs(60)).unwrap();
    cluster.coordinator.wait_for("its trace was not taken by the collector");
    assert_eq!(cluster.submit(&job).wait(), Some(0));
    let request = told.recv_timeout(Duration::from_secs(60)).unwrap();
    let [resource] = &*request.resource_spans else { panic!("{request:?}") };
    let of = &resource.resource.as_ref().unwrap().attributes;
    assert_eq!(text(of, "service.name"), "tessera-coordinator");
    let spans: Vec<&Span> = resource.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    let named = |name: &str| {
        let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).copied().collect();
        found
    };
    let [root] = *named("render") else { panic!("{spans:?}") };
    assert_eq!(
        (text(&root.attributes, "tessera.job"), &*root.parent_span_id),
        ("2".to_owned(), &[][..])
    );
    let [run] = *named("run 1") else { panic!("{spans:?}") };
    assert_eq!(run.parent_span_id, root.span_id);
    assert!(!text(&run.attributes, "tessera.fabrics").is_empty());
    for rank in ["rank 0", "rank 1"] {
        let [rank] = *named(rank) else { panic!("{spans:?}") };
        assert_eq!(rank.parent_span_id, run.span_id);
        let own: Vec<&&Span> =
            spans.iter().filter(|span| span.parent_span_id == rank.span_id).collect();
        let names: Vec<&str> = own.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["text encoding", "call 0", "call 1", "call 2", "decoding"]);
        for span in own {
            let within = rank.start_time_unix_nano <= span.start_time_unix_nano
                && span.end_time_unix_nano <= rank.end_time_unix_nano;
            assert!(within && span.start_time_unix_nano < span.end_time_unix_nano, "{span:?}");
            assert_eq!(span.trace_id, root.trace_id);
        }
    }
    assert!(root.end_time_unix_nano >= run.end_time_unix_nano);
}

#[test]
fn where_no_traces_can_be_sent_nothing_is_started() {
    let refused = tests::cluster::coordinator(&[
        "serve",
        "--insecure",
        "--listen=127.0.0.1:0",
        "--http=off",
        "--otlp=collector:4318",
    ]);
    let said = tests::cluster::text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("like http://127.0.0.1:4318"), "{said}");
}
