//! The formula beside what was published, what slot tables say, and what must hold for any figures.

use super::preset::{PUBLISHED, PUBLISHED_WORKERS};
use super::*;
use crate::planner::tests::{ANY, candidates, request};
use crate::planner::{LinkSpeed, Pairs, place, settle};
use protocol::job::JobRequest;
use protocol::plan::{Band, Branch};
use protocol::{RunId, WorkerId};
use std::time::Duration;

const TERA: f64 = 1e12;

fn link(bandwidth: u64, micros: u64) -> LinkSpeed {
    LinkSpeed { bandwidth, latency: Duration::from_micros(micros) }
}

/// A guided image of 50 calls on equal workers.
fn forecast(card: &ModelCard, side: u32, workers: usize) -> Forecast<'_> {
    let geometry = Geometry {
        rows: side / card.vae_factor,
        columns: side / card.vae_factor,
        channels: card.latent_channels,
        row_unit: card.row_unit,
        vae_factor: card.vae_factor,
    };
    let image = Image { card, geometry, guided: true, wire: Wire::F16, calls: Calls::new(50, 4) };
    Forecast {
        image,
        machines: vec![Machine { rate: 161.0 * TERA, overhead: 0.02 }; workers],
        links: Links::all(workers, |_, _| Some(link(150_000_000_000, 0))).unwrap(),
        scheme: Scheme::Neighbours,
        overlap: Overlap::Hidden,
    }
}

fn sdxl() -> ModelCard {
    preset::card("sdxl").unwrap()
}

fn paper(card: &ModelCard, side: u32, workers: usize) -> Forecast<'_> {
    let (scheme, overlap) = (Scheme::AllGather, Overlap::Share(1.0));
    Forecast { scheme, overlap, ..forecast(card, side, workers) }
}

/// Section 8 of the algorithm.
#[test]
fn the_twelve_published_entries_are_within_five_percent() {
    let card = sdxl();
    for entry in PUBLISHED {
        for (workers, published) in PUBLISHED_WORKERS.into_iter().zip(entry.seconds) {
            let forecast = paper(&card, entry.side, usize::try_from(workers).unwrap());
            let seconds = forecast.mesh(CfgSplit::Off).unwrap().prediction.image_seconds;
            let off = seconds / published - 1.0;
            assert!(off.abs() < 0.05, "{} on {workers}: {seconds:.2} s, {off:+.3}", entry.side);
        }
    }
}

/// Section 6 of the algorithm, and docs/performance.md, where our bytes are those of slot tables.
#[test]
fn what_lands_is_what_section_6_and_the_slot_tables_say() {
    let card = sdxl();
    let meshes = [(8, CfgSplit::Off), (8, CfgSplit::On), (4, CfgSplit::On)];
    let table = [
        (1024, [[848.8, 766.8], [339.2, 331.0], [217.9, 217.9]]),
        (2048, [[3165.5, 3002.0], [1307.5, 1291.0], [855.3, 855.3]]),
        (3840, [[10752.1, 10445.0], [4515.9, 4485.0], [2979.8, 2979.9]]),
    ];
    for (side, cells) in table {
        for ((workers, split), [reference, ours]) in meshes.into_iter().zip(cells) {
            let landing = |forecast: Forecast<'_>| {
                forecast.mesh(split).unwrap().prediction.landing_bytes / 1e6
            };
            let gathered = landing(paper(&card, side, workers));
            let own = landing(forecast(&card, side, workers));
            assert!((gathered / reference - 1.0).abs() < 0.001, "{side}, {workers}: {gathered}");
            assert!((own / ours - 1.0).abs() < 0.001, "{side}, {workers}: {own}");
        }
    }
}

#[test]
fn more_bandwidth_less_latency_or_a_higher_rate_never_cost_time() {
    let card = sdxl();
    for workers in [2, 3, 5, 8, 16] {
        for split in [CfgSplit::Off, CfgSplit::On] {
            let seconds = |rate: f64, bandwidth: u64, micros: u64| {
                let mut forecast = forecast(&card, 1024, workers);
                forecast.machines.iter_mut().for_each(|machine| machine.rate = rate * TERA);
                forecast.links = Links::all(workers, |_, _| Some(link(bandwidth, micros))).unwrap();
                forecast.mesh(split).unwrap().prediction.image_seconds
            };
            let rates = [1.0, 10.0, 161.0, 1000.0];
            let bandwidths = [1_000_000_000, 10_000_000_000, 900_000_000_000];
            for pair in rates.windows(2) {
                assert!(seconds(pair[0], 3_000_000_000, 9) >= seconds(pair[1], 3_000_000_000, 9));
            }
            for pair in bandwidths.windows(2) {
                assert!(seconds(161.0, pair[0], 9) >= seconds(161.0, pair[1], 9));
            }
            assert!(seconds(161.0, 3_000_000_000, 100) > seconds(161.0, 3_000_000_000, 1));
        }
    }
}

#[test]
fn larger_images_cost_more_and_more_workers_less_to_compute_and_hold() {
    let card = sdxl();
    for split in [CfgSplit::Off, CfgSplit::Auto] {
        for workers in [1, 2, 4, 8] {
            let of = |side| forecast(&card, side, workers).mesh(split).unwrap().prediction;
            let (small, large) = (of(1024), of(2048));
            assert!(large.image_seconds > small.image_seconds);
            assert!(large.computing_bytes > small.computing_bytes);
            assert!(large.landing_bytes >= small.landing_bytes);
        }
        let fast = |workers| {
            let mut forecast = forecast(&card, 2048, workers);
            forecast.links = Links::all(workers, |_, _| Some(link(u64::MAX, 0))).unwrap();
            forecast.mesh(split).unwrap().prediction
        };
        for pair in [1, 2, 4, 8, 16, 32].windows(2) {
            assert!(fast(pair[1]).image_seconds < fast(pair[0]).image_seconds);
            assert!(fast(pair[1]).decoding_bytes < fast(pair[0]).decoding_bytes);
        }
    }
}

#[test]
fn displaced_calls_hide_what_synchronous_ones_wait_for() {
    let card = sdxl();
    let hidden = forecast(&card, 1024, 8).mesh(CfgSplit::Off).unwrap().prediction;
    assert!(hidden.displaced_seconds < hidden.synchronous_seconds);
    assert!(hidden.exposed_seconds < 1e-5, "{hidden:?}");
    assert!((hidden.hidden_seconds - 766.8e6 / 150e9).abs() < 1e-5, "{hidden:?}");
    // A hundredth of the bandwidth: what takes longer than computing shows.
    let mut slow = forecast(&card, 1024, 8);
    slow.links = Links::all(8, |_, _| Some(link(1_500_000_000, 0))).unwrap();
    let slow = slow.mesh(CfgSplit::Off).unwrap().prediction;
    let transfer = 766.8e6 / 1.5e9;
    assert!((slow.displaced_seconds - transfer).abs() < 1e-3 * transfer, "{slow:?}");
    let all = Forecast { overlap: Overlap::Share(1.0), ..forecast(&card, 1024, 8) };
    let all = all.mesh(CfgSplit::Off).unwrap().prediction;
    assert!((all.displaced_seconds - all.synchronous_seconds).abs() < 1e-9, "{all:?}");
}

#[test]
fn one_worker_exchanges_nothing_and_two_branches_predictions_alone() {
    let card = sdxl();
    let alone = forecast(&card, 1024, 1).mesh(CfgSplit::Auto).unwrap().prediction;
    assert!(alone.landing_bytes == 0.0 && alone.exposed_seconds == 0.0, "{alone:?}");
    let two = forecast(&card, 1024, 2).mesh(CfgSplit::Auto).unwrap();
    assert!(two.prediction.landing_bytes == 0.0, "{two:?}");
    // 128 x 128 x 4 values of 4 bytes, which every call waits for.
    let crossing = 4.0 * 128.0 * 128.0 * 4.0 / 150e9;
    assert!((two.prediction.exposed_seconds - crossing).abs() < 1e-9, "{two:?}");
}

#[test]
fn a_slow_machine_gets_a_small_band_and_the_last_rank_ends_the_call() {
    let card = sdxl();
    let mut forecast = forecast(&card, 1024, 2);
    forecast.machines[0].rate /= 3.0;
    let mesh = forecast.mesh(CfgSplit::Off).unwrap();
    let rows: Vec<u32> = mesh.shares.iter().map(|share| share.band.rows).collect();
    assert_eq!(rows, [32, 96]);
    let half = |worker, top| Share { worker, branch: Branch::Whole, band: Band { top, rows: 64 } };
    let even = forecast.predict(&[half(0, 0), half(1, 64)]);
    assert!(even.displaced_seconds > 1.4 * mesh.prediction.displaced_seconds, "{even:?}");
}

#[test]
fn a_calibrated_worker_predicts_its_calibration() {
    let card = sdxl();
    // A band of one row unit, 4 x 128 latent pixels, in 10 ms.
    let machine = Machine::calibrated(&card, 51_200);
    let cells = card.work.cells(4, 128);
    assert!((card.work.flop(cells, cells) / machine.rate - 0.01).abs() < 1e-9, "{machine:?}");
}

/// Equal workers in pairs on nodes, and a plan for them.
fn placed(nodes: &[u8], [inside, between]: [u64; 2], speed: u64) -> (Vec<(Branch, u64)>, String) {
    let card = sdxl();
    let count = u64::try_from(nodes.len()).unwrap();
    let mut candidates = candidates(count);
    candidates.iter_mut().for_each(|each| each.speed = speed);
    let mut pairs = Pairs::default();
    for (from, one) in (1..=count).zip(nodes) {
        for (to, other) in (1..=count).zip(nodes).filter(|(to, _)| *to != from) {
            let bandwidth = if one == other { inside } else { between };
            pairs.measured(WorkerId(from), WorkerId(to), link(bandwidth, 10));
        }
    }
    let spec = settle(&JobRequest { wire: Some(Wire::F16), ..request() }, &card, 1).unwrap();
    let cluster = Cluster { candidates: &candidates, pairs: Some(&pairs) };
    let placed = place(RunId::default(), spec, &card, cluster, ANY).unwrap();
    let members = placed.plan.members.iter().map(|member| (member.branch, member.worker.0));
    (members.collect(), placed.reason)
}

#[test]
fn branches_go_where_the_fast_links_are_and_the_reason_names_seconds() {
    let gigabyte = 1_000_000_000;
    let (members, reason) = placed(&[0, 1, 0, 1], [100 * gigabyte, gigabyte], 400_000);
    let (negative, prompt) = (Branch::Negative, Branch::Prompt);
    assert_eq!(members, [(negative, 1), (negative, 3), (prompt, 2), (prompt, 4)]);
    assert!(reason.contains("a call is predicted to take 0.0") && reason.contains(" s, of one"));
    // Even links: who joined together stays together.
    let (members, _) = placed(&[0; 4], [100 * gigabyte; 2], 400_000);
    assert_eq!(members, [(negative, 1), (negative, 2), (prompt, 3), (prompt, 4)]);
}

#[test]
fn three_workers_are_one_branch_unless_links_are_too_slow_for_it() {
    let branches = |bandwidth| placed(&[0; 3], [bandwidth; 2], 400_000).0;
    assert!(branches(100_000_000_000).iter().all(|(branch, _)| *branch == Branch::Whole));
    let slow = branches(100_000_000);
    assert!(slow.iter().all(|(branch, _)| *branch != Branch::Whole), "{slow:?}");
}

#[test]
fn without_all_links_known_plans_are_made_from_speeds() {
    let card = sdxl();
    let candidates = candidates(2);
    let mut pairs = Pairs::default();
    pairs.measured(WorkerId(1), WorkerId(2), link(1, 1));
    let spec = settle(&request(), &card, 1).unwrap();
    let plan = |pairs| {
        let cluster = Cluster { candidates: &candidates, pairs };
        place(RunId::default(), spec.clone(), &card, cluster, ANY).unwrap()
    };
    assert_eq!(plan(Some(&pairs)), plan(None));
    assert!(plan(None).reason.contains("as long to compute as one"));
}

/// What a command that measures links says of them.
#[test]
fn a_cluster_predicts_an_image_of_the_models_own_size() {
    let card = sdxl();
    let mut candidates = candidates(2);
    candidates.iter_mut().for_each(|each| each.speed = 400_000);
    let mut pairs = Pairs::default();
    pairs.measured(WorkerId(1), WorkerId(2), link(1_000_000_000, 10));
    let image = Image::native(&card, Wire::F32, Calls::new(30, 4));
    let predicted = |pairs: &Pairs| {
        let cluster = Cluster { candidates: &candidates, pairs: Some(pairs) };
        Forecast::measured(image, cluster, 2).map(|forecast| forecast.mesh(CfgSplit::Auto))
    };
    assert_eq!(predicted(&pairs), None, "one direction is not known");
    pairs.measured(WorkerId(2), WorkerId(1), link(1_000_000_000, 10));
    let mesh = predicted(&pairs).unwrap().unwrap();
    assert_eq!(mesh.shares.len(), 2);
    // One prediction of 128 x 128 latent pixels at somewhat less than they were calibrated at, for
    // attention sees more of them than in a band.
    let calibrated = 128.0 * 128.0 / 400_000.0;
    let seconds = mesh.prediction.displaced_seconds;
    assert!(seconds > calibrated && seconds < 1.3 * calibrated, "{mesh:?}");
}

#[test]
fn few_steps_or_full_sync_are_synchronous_calls() {
    assert_eq!(Calls::new(50, 4), Calls { total: 50, synchronous: 5 });
    assert_eq!(Calls::new(3, 4), Calls { total: 3, synchronous: 3 });
    let spec = settle(&JobRequest { steps: Some(4), ..request() }, &sdxl(), 1).unwrap();
    assert_eq!(Calls::of(&spec), Calls { total: 4, synchronous: 4 });
}
