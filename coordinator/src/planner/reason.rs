//! Why a plan is as it is, in words for people.

use super::DISPLACED_STEPS_MIN;
use super::branches::Share;
use protocol::job::{JobSpec, Mode, Parallelism};
use protocol::plan::Branch;

/// Why a job of few steps does not displace, if nobody asked for it.
pub(super) fn mode(spec: &JobSpec, rows: u32, shares: &[Share], asked: Option<Mode>) -> String {
    let exchanges =
        spec.parallelism == Parallelism::Patch && shares.iter().any(|share| share.band.rows < rows);
    if !exchanges || asked.is_some() || spec.steps >= DISPLACED_STEPS_MIN {
        return String::new();
    }
    format!(
        "; {} steps are fewer than {DISPLACED_STEPS_MIN}, so every call is synchronous: values one \
         call old would show (--mode corrected displaces all the same)",
        spec.steps
    )
}

/// Which bands follow from unequal speeds.
pub(super) fn bands(shares: &[Share], speeds: &[u64]) -> String {
    let rows = |branch| shares.iter().filter(move |share| share.branch == branch);
    let uneven = [Branch::Whole, Branch::Negative, Branch::Prompt].into_iter().any(|branch| {
        let heights = || rows(branch).map(|share| share.band.rows);
        heights().max().unwrap_or(0) > heights().min().unwrap_or(0)
    });
    let fastest = speeds.iter().max().copied().unwrap_or(1).max(1);
    if !uneven || speeds.iter().all(|speed| *speed == fastest) {
        return String::new();
    }
    #[expect(clippy::cast_precision_loss, reason = "speeds are far below 2^52 pixels a second")]
    let relative = |share: &Share| format!("{:.2}", speeds[share.worker] as f64 / fastest as f64);
    let speeds: Vec<String> = shares.iter().map(relative).collect();
    format!("; bands are as tall as workers are fast: {}", speeds.join(", "))
}
