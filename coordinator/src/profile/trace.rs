//! A trace that Perfetto and Chrome show: a track for each worker; of profiled runs, also one for each direction
//! of each link.

use super::name_of;
use protocol::message::{JobTrace, PartTrace, Phase, Profile, RunTrace, Span, Work};
use protocol::plan::Fabric;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The groups that tracks are in.
const WORKERS: u8 = 0;
const LINKS: u8 = 1;

/// A worker of a job: its name, and how many before it in a run have the same.
type Worker = (String, usize);

/// The trace as Chrome's JSON. Times are the ranks' own of what was profiled, else those at which their reports came.
#[must_use]
pub fn chrome(trace: &JobTrace) -> Value {
    let mut chrome = Chrome::default();
    for (group, name) in [(WORKERS, "workers"), (LINKS, "links")] {
        let (about, name) = (json!({ "name": name }), "process_name");
        chrome.events.push(json!({ "ph": "M", "name": name, "pid": group, "args": about }));
    }
    for run in &trace.runs {
        chrome.run(run, trace.start_us);
    }
    json!({
        "displayTimeUnit": "ms",
        "otherData": {
            "profiled": trace.runs.iter().any(|run| !run.profiles.is_empty()),
            "detail_every": trace.detail_every,
            "left_out": trace.left_out,
        },
        "traceEvents": chrome.events,
    })
}

#[derive(Default)]
struct Chrome {
    events: Vec<Value>,
    workers: BTreeMap<Worker, usize>,
    links: BTreeMap<(Worker, Worker), usize>,
}

impl Chrome {
    fn run(&mut self, run: &RunTrace, start_us: u64) {
        let workers = workers(run);
        for (worker, band) in workers.iter().zip(&run.bands) {
            self.worker(worker, band.rank);
        }
        if run.profiles.is_empty() {
            let mut ends = BTreeMap::new();
            for part in &run.parts {
                let Some(worker) = workers.get(usize::from(part.rank)) else { continue };
                let start = start_us + part.end_us.saturating_sub(part.took_us);
                // A report that was late must not lie over the next one.
                let last = ends.entry(part.rank).or_insert(0);
                let start = start.max(*last);
                *last = (start_us + part.end_us).max(start);
                self.part(worker, part, (start, *last - start));
            }
        }
        for (rank, profile) in &run.profiles {
            if workers.get(usize::from(*rank)).is_some() {
                self.profile(run, &workers, (*rank, profile));
            }
        }
    }

    /// The track of a worker, which is named when it is first asked for.
    fn worker(&mut self, worker: &Worker, rank: u16) -> usize {
        let next = self.workers.len();
        let track = *self.workers.entry(worker.clone()).or_insert(next);
        if track == next {
            let name = format!("rank {rank}, {}", worker.0);
            self.events.push(named((WORKERS, track), &name));
        }
        track
    }

    /// The track of what `to` hears from `from`.
    fn link(&mut self, (to, from): (&Worker, &Worker), fabric: Option<Fabric>) -> usize {
        let next = self.links.len();
        let track = *self.links.entry((to.clone(), from.clone())).or_insert(next);
        if track == next {
            let over = fabric.map_or_else(String::new, |fabric| format!(" over {fabric}"));
            let name = format!("{} to {}{over}", from.0, to.0);
            self.events.push(named((LINKS, track), &name));
        }
        track
    }

    fn part(&mut self, worker: &Worker, part: &PartTrace, time: (u64, u64)) {
        let track = self.worker(worker, part.rank);
        let about = json!({
            "rank": part.rank,
            "displaced": part.displaced,
            "took_us": part.took_us,
            "waited_us": part.waited_us,
            "posted_bytes": part.posted_bytes,
        });
        self.events.push(slice((WORKERS, track), &of_phase(part.phase, part.call), time, &about));
        if part.phase == Phase::Denoising {
            let name = |what: &str| format!("{what}, rank {}", part.rank);
            self.events.push(counter(WORKERS, &name("waited us"), time.0, part.waited_us));
            self.events.push(counter(WORKERS, &name("posted bytes"), time.0, part.posted_bytes));
        }
    }

    fn profile(&mut self, run: &RunTrace, workers: &[Worker], (rank, profile): (u16, &Profile)) {
        let own = &workers[usize::from(rank)];
        let track = self.worker(own, rank);
        let about = json!({ "rank": rank, "displaced": profile.displaced });
        let (name, time) =
            (of_phase(profile.phase, profile.call), (profile.start_us, profile.took_us));
        self.events.push(slice((WORKERS, track), &name, time, &about));
        let fabric = |peer: u16| {
            let link = run.links.iter().find(|link| {
                link.ranks.contains(&peer) && link.ranks.contains(&rank) && peer != rank
            });
            link.map(|link| link.fabric)
        };
        for Span { work, start_us, took_us } in &profile.spans {
            let start = profile.start_us.saturating_add(u64::from(*start_us));
            let (name, time) = (name_of(*work), (start, u64::from(*took_us)));
            self.events.push(slice((WORKERS, track), &name, time, &json!({})));
            if let Work::Wait(peer) = work
                && let Some(from) = workers.get(peer.index())
            {
                let link = self.link((own, from), fabric(peer.0));
                let name = format!("rank {rank} waits");
                self.events.push(slice((LINKS, link), &name, time, &json!({})));
            }
        }
        for (peer, bytes) in &profile.posted {
            if let Some(to) = workers.get(peer.index()) {
                self.link((to, own), fabric(peer.0));
                let name = format!("bytes, rank {rank} to {peer}");
                self.events.push(counter(LINKS, &name, profile.start_us, *bytes));
            }
        }
    }
}

/// The workers of a run, by rank.
fn workers(run: &RunTrace) -> Vec<Worker> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let worker = |name| {
        let before = seen.entry(name).or_default();
        *before += 1;
        (name.to_owned(), *before)
    };
    run.bands.iter().map(|band| band.worker.as_str()).map(worker).collect()
}

fn of_phase(phase: Phase, call: u32) -> String {
    match phase {
        Phase::TextEncoding => "prompt".to_owned(),
        Phase::Denoising => format!("call {call}"),
        Phase::Decoding => "decode".to_owned(),
    }
}

fn named((group, track): (u8, usize), name: &str) -> Value {
    let about = json!({ "name": name });
    json!({ "ph": "M", "name": "thread_name", "pid": group, "tid": track, "args": about })
}

fn slice(
    (group, track): (u8, usize),
    name: &str,
    (start_us, took_us): (u64, u64),
    about: &Value,
) -> Value {
    json!({
        "ph": "X", "name": name, "pid": group, "tid": track, "ts": start_us, "dur": took_us,
        "args": about,
    })
}

fn counter(group: u8, name: &str, at_us: u64, value: u64) -> Value {
    json!({ "ph": "C", "name": name, "pid": group, "ts": at_us, "args": { "value": value } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Rank;
    use protocol::message::{BandView, LinkView};
    use protocol::plan::Branch;

    fn run(workers: &[&str]) -> RunTrace {
        let band = |(rank, worker): (u16, &&str)| BandView {
            rank,
            worker: (*worker).to_owned(),
            branch: Branch::Whole,
            top: 0,
            rows: 8,
        };
        RunTrace {
            bands: (0..).zip(workers).map(band).collect(),
            links: vec![LinkView { ranks: [0, 1], fabric: Fabric::Shm }],
            parts: Vec::new(),
            profiles: Vec::new(),
        }
    }

    fn trace(runs: Vec<RunTrace>) -> Value {
        chrome(&JobTrace { start_us: 1_000_000, runs, detail_every: 1, left_out: 0 })
    }

    fn tracks(trace: &Value, group: u8) -> Vec<(u64, &str)> {
        let events = trace["traceEvents"].as_array().unwrap().iter();
        let names = events.filter(|event| event["name"] == "thread_name" && event["pid"] == group);
        let of = |event: &'_ Value| event["tid"].as_u64().unwrap();
        names.map(|event| (of(event), event["args"]["name"].as_str().unwrap())).collect()
    }

    fn slices(trace: &Value, group: u8, track: u64) -> Vec<(String, u64, u64)> {
        let events = trace["traceEvents"].as_array().unwrap().iter();
        let of =
            |event: &&Value| event["ph"] == "X" && event["pid"] == group && event["tid"] == track;
        let number = |event: &Value, key: &str| event[key].as_u64().unwrap();
        let slice = |event: &Value| {
            let name = event["name"].as_str().unwrap().to_owned();
            (name, number(event, "ts"), number(event, "dur"))
        };
        events.filter(of).map(slice).collect()
    }

    #[test]
    fn what_every_job_tells_is_a_track_for_each_worker() {
        let part = |rank, call, end_us| PartTrace {
            rank,
            phase: Phase::Denoising,
            call,
            displaced: call > 0,
            end_us,
            took_us: 100,
            waited_us: 10 * u64::from(call),
            posted_bytes: 64,
        };
        let mut one = run(&["a", "b"]);
        // The second report of rank 0 came sooner after the first than its call took.
        one.parts = vec![part(0, 0, 1000), part(1, 0, 1010), part(0, 1, 1080)];
        let trace = trace(vec![one]);
        assert_eq!(tracks(&trace, WORKERS), [(0, "rank 0, a"), (1, "rank 1, b")]);
        assert_eq!(tracks(&trace, LINKS), []);
        assert_eq!(
            slices(&trace, WORKERS, 0),
            [("call 0".to_owned(), 1_000_900, 100), ("call 1".to_owned(), 1_001_000, 80)]
        );
        assert_eq!(slices(&trace, WORKERS, 1), [("call 0".to_owned(), 1_000_910, 100)]);
        let events = trace["traceEvents"].as_array().unwrap();
        let waited = |event: &&Value| event["name"] == "waited us, rank 0";
        let waited = events.iter().filter(waited).map(|event| &event["args"]["value"]);
        assert_eq!(waited.collect::<Vec<_>>(), [0, 10]);
        assert_eq!(trace["otherData"]["profiled"], false);
    }

    #[test]
    fn a_profile_adds_layers_and_a_track_for_each_direction_of_a_link() {
        let spans = vec![
            Span { work: Work::Linear, start_us: 5, took_us: 20 },
            Span { work: Work::Wait(Rank(1)), start_us: 25, took_us: 30 },
        ];
        let profile = Profile {
            phase: Phase::Denoising,
            call: 3,
            displaced: true,
            start_us: 7000,
            took_us: 60,
            spans,
            posted: vec![(Rank(1), 512)],
        };
        let mut one = run(&["a", "a"]);
        one.profiles.push((0, profile));
        let trace = trace(vec![one]);
        assert_eq!(tracks(&trace, WORKERS), [(0, "rank 0, a"), (1, "rank 1, a")]);
        assert_eq!(tracks(&trace, LINKS), [(0, "a to a over shm"), (1, "a to a over shm")]);
        let named = |name: &str, at, took| (name.to_owned(), at, took);
        assert_eq!(
            slices(&trace, WORKERS, 0),
            [
                named("call 3", 7000, 60),
                named("linear", 7005, 20),
                named("waiting for rank 1", 7025, 30)
            ]
        );
        assert_eq!(slices(&trace, LINKS, 0), [named("rank 0 waits", 7025, 30)]);
        let events = trace["traceEvents"].as_array().unwrap();
        let posted =
            events.iter().find(|event| event["name"] == "bytes, rank 0 to rank 1").unwrap();
        assert_eq!((&posted["ph"], &posted["args"]["value"]), (&json!("C"), &json!(512)));
    }

    #[test]
    fn a_worker_keeps_its_track_when_its_rank_changes() {
        let trace = trace(vec![run(&["a", "b", "c"]), run(&["a", "c"])]);
        let names = [(0, "rank 0, a"), (1, "rank 1, b"), (2, "rank 2, c")];
        assert_eq!(tracks(&trace, WORKERS), names);
    }
}
