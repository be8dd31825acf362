//! Clusters that live through what a seed has for them, by the thousand.
//!
//! `TESSERA_SIMULATION_SEEDS=10000` runs so many; `TESSERA_SIMULATION_SEED=7` runs that one and prints its story;
//! `TESSERA_SIMULATION_PARTED=7` does that with one in which workers are parted.

use std::env;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;
use tests::simulation::{Mutation, Report, replay, run, run_parted};

/// How many seeds are run if nobody says: seconds' worth.
const SEEDS: u64 = 300;

fn number(variable: &str) -> Option<u64> {
    let value = env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is no number: {value}")))
}

#[test]
fn whatever_happens_every_job_ends_once_with_its_image() {
    if let Some(seed) = number("TESSERA_SIMULATION_SEED") {
        let (events, result) = replay(seed, Mutation::None, true);
        events.iter().for_each(|event| println!("{event}"));
        println!("{:?}", result.unwrap_or_else(|failure| panic!("{failure}")));
        return;
    }
    let seeds = number("TESSERA_SIMULATION_SEEDS").unwrap_or(SEEDS);
    let (began, next) = (Instant::now(), AtomicU64::new(0));
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let reports: Vec<Report> = thread::scope(|scope| {
        let live = || {
            let mut reports = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return reports;
                }
                reports
                    .push(run(seed, Mutation::None).unwrap_or_else(|failure| panic!("{failure}")));
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(live)).collect();
        let ended = threads.into_iter().map(|thread| thread.join().expect("its seeds pass"));
        ended.flatten().collect()
    });
    let seconds = began.elapsed().as_secs_f64();
    let sum = |of: fn(&Report) -> f64| reports.iter().map(of).sum::<f64>();
    println!(
        "{seeds} seeds in {seconds:.1} s on {threads} threads: {} jobs, {} broke off, the largest \
         distance {:.4}, {:.0} virtual hours",
        sum(|report| report.jobs as f64),
        sum(|report| report.recoveries as f64),
        reports.iter().map(|report| report.distance).fold(0.0, f64::max),
        sum(|report| report.seconds) / 3600.0,
    );
}

/// One break-off that finds the first link to be cut, one for each of the two fabrics that finds all the others, and one
/// more where whoever was left out at first is taken in for those who reach it.
const PARTED_BREAKS: usize = 4;

#[test]
fn workers_that_are_parted_for_good_end_their_job_on_the_faster_side_after_few_tries() {
    let parted = number("TESSERA_SIMULATION_PARTED");
    let seeds = parted.map_or(0..SEEDS, |seed| seed..seed + 1);
    let (mut breaks, mut slower) = ([0; 1 + PARTED_BREAKS], 0);
    for seed in seeds {
        let seen = run_parted(seed).unwrap_or_else(|failure| panic!("{failure}"));
        let story = || {
            seen.events.iter().for_each(|event| println!("{event}"));
            format!("seed {seed}: {:?} on {:?} of {:?}", seen.report, seen.ranks, seen.speeds)
        };
        assert_eq!(seen.report.jobs, 1, "{}", story());
        let recoveries = usize::try_from(seen.report.recoveries).expect("few");
        assert!(recoveries <= PARTED_BREAKS, "{}", story());
        breaks[recoveries] += 1;
        // Unless the job had ended before, which takes both.
        if let Some(gone) = seen.ranks.iter().position(|ranks| *ranks == 0) {
            slower += u64::from(seen.speeds[1 - gone] < seen.speeds[gone]);
        }
        if parted.is_some() {
            println!("{}", story());
        }
    }
    println!("so many broke off 0, 1, ... times: {breaks:?}; {slower} ended on the slower side");
    assert!(slower * 20 <= SEEDS, "{slower} of {SEEDS} ended on the slower side");
}

#[test]
fn a_seed_always_has_the_same_story() {
    for seed in [3, 91, 239] {
        let [one, other] = [(); 2].map(|()| replay(seed, Mutation::None, true).0);
        assert!(one.len() > 100, "{}", one.len());
        assert_eq!(one, other);
    }
}

/// Seeds that showed what has been mended since: each fails without that.
#[test]
fn what_was_found_once_stays_mended() {
    let found = [
        (1306, "a worker that hung while its run was aborted kept all later jobs waiting for ever"),
        (
            8074,
            "a worker whose computation hung joined again at once, and its new part never began",
        ),
        (2321, "a worker that joined again before its old session had ended was planned twice"),
        (380, "a job with --cfg-split on failed when one worker was left of two"),
        (16298, "a late report of the branch without rows took the checkpoint back a call"),
        (
            879,
            "an end was told before the full disk took it, and the next coordinator rendered again",
        ),
        (169, "links known to be cut were tried again in the middle of a streak, for ever"),
        (2348, "the same of workers that are parted for good"),
        (3850, "a job failed after six break-offs, each of which found another link to be cut"),
        (
            3774,
            "bands that had moved were taken for those of an undisturbed run by the next coordinator",
        ),
    ];
    for (seed, what) in found {
        run(seed, Mutation::None).unwrap_or_else(|failure| panic!("{what}, again: {failure}"));
    }
}

/// Which oracle notices, in the first of so many seeds that shows it.
fn noticed(mutation: Mutation) -> &'static str {
    let verdict = (0..1000).find_map(|seed| run(seed, mutation).err());
    verdict.expect("what is wrong with the workers is noticed").violation.oracle
}

#[test]
fn workers_that_do_not_go_on_where_others_left_off_are_noticed() {
    for mutation in [Mutation::LosesHistory, Mutation::SkipsACall, Mutation::RepeatsACall] {
        assert_eq!(noticed(mutation), "O-2 image", "{mutation:?}");
    }
}

#[test]
fn workers_that_take_values_of_an_older_run_are_noticed() {
    assert_eq!(noticed(Mutation::TakesOldValues), "O-6 values");
}
