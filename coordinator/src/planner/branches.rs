//! Whether guidance's two predictions are computed by the same ranks or by two branches of them.

use super::bands::{GAIN_MIN, slowest, split_by_speed};
use super::cost::Forecast;
use super::invalid;
use protocol::Fault;
use protocol::job::{CfgSplit, Field, JobSpec};
use protocol::plan::{Band, BandError, Branch, RANKS_MAX};

/// The image's rows, and the workers that are to share it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work<'a> {
    /// Latent rows.
    pub(super) rows: u32,
    /// Bands start at multiples of this.
    pub(super) unit: u32,
    /// Whether there are two predictions to compute.
    pub(super) guided: bool,
    /// Each worker's speed.
    pub(super) speeds: &'a [u64],
}

/// Who computes what, in rank order, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sharing {
    pub(super) shares: Vec<Share>,
    pub(super) reason: String,
}

/// One worker's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its place among the workers.
    pub worker: usize,
    /// What it computes of guidance's two predictions.
    pub branch: Branch,
    /// The latent rows it computes.
    pub band: Band,
}

/// Why work cannot be shared as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// The image has too few rows.
    #[error(transparent)]
    Rows(#[from] BandError),
    /// Two branches were asked for where there is one prediction.
    #[error(
        "--cfg-split on needs a guidance scale above 1: without guidance there is one prediction \
         only"
    )]
    NotGuided,
    /// Two branches were asked for of one worker.
    #[error("--cfg-split on needs two workers or more; there is one")]
    OneWorker,
}

impl ShareError {
    /// Why an image cannot be rendered as asked.
    pub(super) fn fault(&self, spec: &JobSpec) -> Fault {
        let fault = invalid(format!("{}x{}: {self}", spec.width, spec.height));
        match self {
            Self::Rows(_) => fault,
            Self::NotGuided | Self::OneWorker => fault.about(Field::CfgSplit),
        }
    }
}

/// The most ranks that can have a part in an image of `units` row units.
pub(super) fn ranks_max(units: usize, guided: bool, wish: CfgSplit) -> usize {
    let branches = if guided && wish != CfgSplit::Off { 2 } else { 1 };
    units.saturating_mul(branches).min(RANKS_MAX)
}

/// How the workers share the work.
///
/// Two branches exchange nothing but predictions, less than half of the bytes that cross within one
/// branch of all ranks, and are as fast to compute if they are in balance. So they are preferred
/// unless one branch is faster by [`GAIN_MIN`], as it is with three equal workers: faster to compute,
/// or with a `forecast` faster in all.
pub(super) fn share(
    work: Work<'_>,
    wish: CfgSplit,
    forecast: Option<&Forecast<'_>>,
) -> Result<Sharing, ShareError> {
    let because = |(shares, _): Shared, reason: String| Ok(Sharing { shares, reason });
    let apart = || split(work, forecast);
    match wish {
        CfgSplit::On if !work.guided => return Err(ShareError::NotGuided),
        CfgSplit::On if work.speeds.len() < 2 => return Err(ShareError::OneWorker),
        CfgSplit::On => return because(apart()?, "--cfg-split on was asked for".to_owned()),
        CfgSplit::Off => return because(flat(work)?, "--cfg-split off was asked for".to_owned()),
        CfgSplit::Auto => {}
    }
    if work.speeds.len() < 2 {
        return because(flat(work)?, "one worker renders it alone".to_owned());
    }
    if !work.guided {
        return because(flat(work)?, "without guidance there is one prediction".to_owned());
    }
    let (one, two) = match (flat(work), apart()) {
        (Ok(one), Ok(two)) => (one, two),
        (one, Err(_)) => return because(one?, "two branches have too few rows".to_owned()),
        (Err(_), Ok(two)) => {
            return because(two, "one branch has too few rows for all workers".to_owned());
        }
    };
    if let Some(forecast) = forecast {
        return Ok(forecast_decides(forecast, one.0, two.0));
    }
    let ratio = two.1 / one.1;
    if ratio > GAIN_MIN {
        let reason = format!(
            "every worker computes both predictions: two branches would take {ratio:.2} times as \
             long to compute, as these {} workers cannot be halved evenly",
            work.speeds.len()
        );
        return because(one, reason);
    }
    let reason = format!(
        "two branches, one for each prediction, take {ratio:.2} times as long to compute as one \
         and exchange less than half of the bytes"
    );
    because(two, reason)
}

/// One branch or two, by their predicted seconds.
fn forecast_decides(forecast: &Forecast<'_>, one: Vec<Share>, two: Vec<Share>) -> Sharing {
    let [alone, apart] = [&one, &two].map(|shares| forecast.predict(shares).call_seconds);
    if apart / alone > GAIN_MIN {
        let reason = format!(
            "every worker computes both predictions: a call is predicted to take {alone:.3} s, of \
             two branches {apart:.3} s"
        );
        return Sharing { shares: one, reason };
    }
    let reason = format!(
        "two branches, one for each prediction: a call is predicted to take {apart:.3} s, of one \
         branch {alone:.3} s"
    );
    Sharing { shares: two, reason }
}

/// Shares, and when the last is done (for comparison with each other only).
type Shared = (Vec<Share>, f64);

/// All workers in one branch.
fn flat(work: Work<'_>) -> Result<Shared, BandError> {
    let all: Vec<usize> = (0..work.speeds.len()).collect();
    let (shares, done) = branch(work, Branch::Whole, &all)?;
    Ok((shares, if work.guided { 2.0 * done } else { done }))
}

/// The workers in two branches: the first half and the rest, so that workers that joined together
/// stay together; or balanced by speed, or with a `forecast` such that slow links are between branches,
/// where that is faster by [`GAIN_MIN`].
fn split(work: Work<'_>, forecast: Option<&Forecast<'_>>) -> Result<Shared, BandError> {
    let all: Vec<usize> = (0..work.speeds.len()).collect();
    let (first, rest) = all.split_at(all.len() / 2);
    let mut best = branches(work, first, rest);
    let near = forecast.map(|forecast| forecast.links.halves(work.speeds.len()));
    for [negative, prompt] in [Some(balanced(work.speeds)), near].into_iter().flatten() {
        let seconds = |(shares, computed): &Shared| {
            forecast.map_or(*computed, |forecast| forecast.predict(shares).call_seconds)
        };
        best = match (best, branches(work, &negative, &prompt)) {
            (Ok(best), Ok(other)) if seconds(&best) / seconds(&other) < GAIN_MIN => Ok(best),
            (_, Ok(other)) => Ok(other),
            (best, Err(_)) => best,
        };
    }
    best
}

fn branches(work: Work<'_>, negative: &[usize], prompt: &[usize]) -> Result<Shared, BandError> {
    let (mut shares, done) = branch(work, Branch::Negative, negative)?;
    let (others, later) = branch(work, Branch::Prompt, prompt)?;
    shares.extend(others);
    Ok((shares, done.max(later)))
}

fn branch(work: Work<'_>, branch: Branch, workers: &[usize]) -> Result<Shared, BandError> {
    let speeds: Vec<u64> = workers.iter().map(|worker| work.speeds[*worker]).collect();
    let bands = split_by_speed(work.rows, work.unit, &speeds)?;
    let done = slowest(&bands, &speeds);
    let shares = workers.iter().zip(bands);
    let shares = shares.map(|(worker, band)| Share { worker: *worker, branch, band });
    Ok((shares.collect(), done))
}

/// The workers in two groups of about the same speed: the fastest first, each to the slower group.
fn balanced(speeds: &[u64]) -> [Vec<usize>; 2] {
    let mut fastest_first: Vec<usize> = (0..speeds.len()).collect();
    fastest_first.sort_by_key(|worker| std::cmp::Reverse(speeds[*worker]));
    let mut groups = [(0, Vec::new()), (0, Vec::new())];
    for worker in fastest_first {
        let slower = usize::from(groups[1].0 < groups[0].0);
        groups[slower].0 += speeds[worker];
        groups[slower].1.push(worker);
    }
    groups.map(|(_, mut workers)| {
        workers.sort_unstable();
        workers
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(speeds: &[u64], units: u32, guided: bool, wish: CfgSplit) -> Vec<(Branch, u32)> {
        let work = Work { rows: 4 * units, unit: 4, guided, speeds };
        let sharing = share(work, wish, None).unwrap();
        sharing.shares.iter().map(|share| (share.branch, share.band.rows / 4)).collect()
    }

    const NEGATIVE: Branch = Branch::Negative;
    const PROMPT: Branch = Branch::Prompt;
    const WHOLE: Branch = Branch::Whole;

    #[test]
    fn even_numbers_of_equal_workers_split() {
        let auto = |count| parts(&vec![100; count], 8, true, CfgSplit::Auto);
        assert_eq!(auto(1), [(WHOLE, 8)]);
        assert_eq!(auto(2), [(NEGATIVE, 8), (PROMPT, 8)]);
        assert_eq!(auto(4), [(NEGATIVE, 4), (NEGATIVE, 4), (PROMPT, 4), (PROMPT, 4)]);
        assert_eq!(parts(&[100; 2], 8, false, CfgSplit::Auto), [(WHOLE, 4), (WHOLE, 4)]);
        assert_eq!(parts(&[100; 2], 8, true, CfgSplit::Off), [(WHOLE, 4), (WHOLE, 4)]);
    }

    #[test]
    fn odd_numbers_do_not_unless_rows_are_too_coarse_for_all() {
        let auto = |count, units| parts(&vec![100; count], units, true, CfgSplit::Auto);
        assert_eq!(auto(3, 9), [(WHOLE, 3), (WHOLE, 3), (WHOLE, 3)]);
        // Two units on three workers: one of them would have both units of one prediction anyway.
        assert!(auto(3, 2).iter().all(|(branch, _)| *branch != WHOLE));
        // One branch of five would have two units on three of them, as two branches of four do.
        assert_eq!(auto(5, 4).len(), 5);
    }

    #[test]
    fn a_slow_worker_gets_a_small_band_in_the_branch_that_balances_it() {
        let shares = parts(&[100, 100, 50, 50], 12, true, CfgSplit::Auto);
        assert_eq!(shares, [(NEGATIVE, 8), (NEGATIVE, 4), (PROMPT, 8), (PROMPT, 4)]);
        // Two slow ones and a fast one are two even branches, odd as they are.
        let shares = parts(&[50, 100, 50], 12, true, CfgSplit::Auto);
        assert_eq!(shares, [(NEGATIVE, 12), (PROMPT, 6), (PROMPT, 6)]);
    }

    #[test]
    fn what_cannot_be_split_is_refused() {
        let refused = |count, guided| {
            let work = Work { rows: 32, unit: 4, guided, speeds: &vec![1; count] };
            share(work, CfgSplit::On, None).unwrap_err()
        };
        assert_eq!(refused(2, false), ShareError::NotGuided);
        assert_eq!(refused(1, true), ShareError::OneWorker);
    }
}
