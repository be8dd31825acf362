//! How long the store's calls take, on a disk or with a Postgres server:
//! `cargo run --release -p coordinator --example store -- FOLDER|URL`.

use coordinator::job::store::{Asked, Keep, Store, StoreError, StoredRun};
use coordinator::planner::cost::preset;
use coordinator::planner::settle;
use protocol::job::JobRequest;
use protocol::message::Event;
use protocol::{Epoch, Fault, FaultKind, JobId, RunId};
use std::io::Write as _;
use std::time::{Duration, Instant};

/// How often each call is made, each time as the next of an image or a job.
const CALLS: u32 = 200;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let place = std::env::args().nth(1).ok_or("give a folder on the disk in question, or a URL")?;
    let remote = place.contains("://");
    let folder = (!remote).then(|| tempfile::tempdir_in(&place)).transpose()?;
    let mut store = match &folder {
        Some(folder) => Store::open(folder.path())?,
        None => Store::connect(&place, |_| ())?,
    };
    let request = JobRequest::new("an apple");
    let spec = settle(&request, &preset::card("sdxl").ok_or("no such model")?, 1)?;
    let asked = Asked::new(request, 1);
    let mut jobs: Vec<JobId> = Vec::new();
    say("accept", |_| store.accept(&asked, 1).map(|job| jobs.push(job)))?;
    let job = jobs[0];
    let run = |epoch| RunId { job, epoch: Epoch(epoch) };
    let (model, plan) = ("digest".to_owned(), None);
    let mut begun = StoredRun { epoch: Epoch(0), model, spec, plan };
    say("start a run", |epoch| {
        begun.epoch = Epoch(epoch);
        store.started(job, &begun, 1)
    })?;
    let latent = vec![3; 1 << 20];
    say("checkpoint of 1 MiB", |calls| store.checkpoint(run(CALLS - 1), calls, CALLS, &latent))?;
    let (ended, image) = (Fault::new(FaultKind::Cancelled, "the end"), vec![5; 3 << 20]);
    let events = [Event::Failed { fault: ended }];
    let mut left = jobs.into_iter();
    say("end with an image of 3 MiB", |_| {
        left.next().map_or(Ok(()), |job| store.finish(job, &events, &image, 2))
    })?;
    say("read an end", |_| store.outcome(job).map(drop))
}

/// Prints what `call` takes.
fn say(
    what: &str,
    mut call: impl FnMut(u32) -> Result<(), StoreError>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut took: Vec<Duration> = Vec::new();
    for count in 0..CALLS {
        let since = Instant::now();
        call(count)?;
        took.push(since.elapsed());
    }
    took.sort_unstable();
    let (median, longest) = (took[took.len() / 2], took[took.len() - 1]);
    writeln!(std::io::stdout(), "{what}: median {median:?}, longest {longest:?}")?;
    Ok(())
}
