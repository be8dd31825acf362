//! Runs interrupted after every number of calls, and what they go on with.

use std::collections::BTreeSet;
use std::ops::Range;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use super::{build, changed, replays};
use crate::model::noise::TorchGenerator;
use crate::model::scheduler::{Scheduler, SchedulerKind};

/// Of a latent [1, rows, columns, channels].
const ROWS: Range<usize> = 0..8;

fn rows(x: &Tensor, band: &Range<usize>) -> Tensor {
    x.narrow(1, band.start, band.len()).unwrap()
}

/// The whole image's noise, another one for every draw; draw 0 makes the first latent.
fn noise(draw: usize) -> Tensor {
    let values = TorchGenerator::new(draw as u64).randn(64);
    Tensor::from_vec(values, (1, 8, 2, 4), &Device::Cpu).unwrap()
}

/// Between two calls.
struct State {
    latent: Tensor,
    history: Vec<Tensor>,
    /// How many times noise was asked for.
    draws: usize,
}

/// The state after `calls` calls and after each that follows, with a made-up model.
fn go_on(
    scheduler: &mut dyn Scheduler,
    calls: usize,
    latent: Tensor,
    mut draws: usize,
    band: &Range<usize>,
) -> Vec<State> {
    let mut states = vec![State { latent, history: scheduler.history(), draws }];
    for call in calls..scheduler.timesteps().len() {
        let latent = &states[call - calls].latent;
        let scaled = scheduler.scale_model_input(call, latent).unwrap();
        let prediction = scaled.affine(3.0, call as f64).unwrap().sin().unwrap();
        let mut noise = || {
            draws += 1;
            Ok(rows(&noise(draws), band))
        };
        let latent = scheduler.step(call, &prediction, latent, &mut noise).unwrap();
        states.push(State { latent, history: scheduler.history(), draws });
    }
    states
}

fn bits(x: &Tensor) -> Vec<u32> {
    let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// Compares `ours`, a band, with that band of `whole`.
fn assert_same(ours: &State, whole: &State, band: &Range<usize>, case: &str) {
    assert_eq!(bits(&ours.latent), bits(&rows(&whole.latent, band)), "{case}: latent");
    assert_eq!(ours.draws, whole.draws, "{case}: draws");
    assert_eq!(ours.history.len(), whole.history.len(), "{case}: history");
    for (ours, whole) in ours.history.iter().zip(&whole.history) {
        assert_eq!(bits(ours), bits(&rows(whole, band)), "{case}: history");
    }
}

/// Every kind, with every change of its configuration that is compared with diffusers.
fn configs() -> Vec<(String, Value, String)> {
    let (_, base, cases) = replays();
    let distinct: BTreeSet<(String, String)> = cases
        .iter()
        .map(|case| (case["kind"].as_str().unwrap().to_owned(), case["change"].to_string()))
        .collect();
    for kind in SchedulerKind::ALL {
        assert!(distinct.iter().any(|(of, _)| of == kind.name()), "{kind}");
    }
    let config = |(kind, change): (String, String)| {
        let config = changed(&base, &serde_json::from_str(&change).unwrap());
        (kind, config, change)
    };
    distinct.into_iter().map(config).collect()
}

#[test]
fn a_run_goes_on_in_other_bands_as_if_it_had_never_stopped() {
    for (kind, config, change) in configs() {
        for steps in [1, 2, 5, 11] {
            let mut scheduler = build(&config, &kind, steps);
            let first = (noise(0) * scheduler.init_noise_sigma()).unwrap();
            let whole = go_on(&mut *scheduler, 0, first, 0, &ROWS);
            for (calls, state) in whole.iter().enumerate() {
                let case = format!("{kind} {change}, {steps} steps, stopped after {calls} calls");
                assert_eq!(scheduler.draws(calls), state.draws, "{case}");
                assert!(state.history.iter().all(|x| x.dims() == state.latent.dims()), "{case}");
                for band in [ROWS, 0..3, 3..8] {
                    let mut other = build(&config, &kind, steps);
                    let history = state.history.iter().map(|x| rows(x, &band)).collect();
                    other.resume(calls, history).unwrap();
                    let (latent, draws) = (rows(&state.latent, &band), other.draws(calls));
                    let states = go_on(&mut *other, calls, latent, draws, &band);
                    assert_eq!(states.len(), whole.len() - calls, "{case}");
                    for (ours, whole) in states.iter().zip(&whole[calls..]) {
                        assert_same(ours, whole, &band, &case);
                    }
                }
            }
        }
    }
}

/// A checkpoint is as large as its history is long.
#[test]
fn a_history_is_of_as_many_tensors_as_its_calls_leave() {
    let base = replays().1;
    for kind in SchedulerKind::ALL {
        let expected: &[usize] = match kind {
            SchedulerKind::Dpmpp2m | SchedulerKind::Dpmpp2mKarras => &[0, 1, 1, 1, 1, 1],
            SchedulerKind::Unipc => &[0, 2, 3, 3, 3, 3],
            SchedulerKind::Heun => &[0, 2, 0, 2, 0, 2, 0, 2, 0, 2],
            SchedulerKind::Pndm => &[0, 2, 1, 2, 3, 3, 3],
            _ => &[0; 6],
        };
        let mut scheduler = build(&base, kind.name(), 5);
        assert_eq!(scheduler.kind(), *kind);
        let states = go_on(&mut *scheduler, 0, noise(0), 0, &ROWS);
        let lengths: Vec<usize> = states.iter().map(|state| state.history.len()).collect();
        assert_eq!(lengths, expected, "{kind}");

        for (calls, &wanted) in expected.iter().enumerate() {
            for got in (0..5).filter(|&got| got != wanted) {
                let error = scheduler.resume(calls, vec![noise(1); got]).unwrap_err();
                let expected = format!(
                    "scheduler {kind} remembers {wanted} tensors after {calls} calls, not {got}"
                );
                assert_eq!(error.to_string(), expected);
            }
        }
        // A history that is refused replaces nothing.
        let all = |history: &[Tensor]| history.iter().map(bits).collect::<Vec<_>>();
        assert_eq!(all(&scheduler.history()), all(&states[states.len() - 1].history), "{kind}");
    }
}

/// Whoever resumes may have rendered before.
#[test]
fn what_was_remembered_before_is_forgotten() {
    let base = changed(&replays().1, &json!({ "timestep_spacing": "trailing" }));
    for kind in SchedulerKind::ALL {
        let mut scheduler = build(&base, kind.name(), 5);
        let whole = go_on(&mut *scheduler, 0, noise(0), 0, &ROWS);
        for (calls, state) in whole.iter().enumerate() {
            scheduler.resume(calls, state.history.clone()).unwrap();
            let states = go_on(&mut *scheduler, calls, state.latent.clone(), state.draws, &ROWS);
            for (ours, whole) in states.iter().zip(&whole[calls..]) {
                assert_same(ours, whole, &ROWS, kind.name());
            }
        }
    }
}
