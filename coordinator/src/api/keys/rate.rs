//! How many jobs each key may still submit in this minute.

use std::collections::BTreeMap;
use std::time::Duration;

/// What is left to each key, in time since any start. A key may use up its minute at once, and then gets one more whenever its
/// rate allows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    left: BTreeMap<String, Left>,
}

#[derive(Clone, Copy, Debug)]
struct Left {
    jobs: f64,
    counted: Duration,
}

impl Rates {
    /// Takes `jobs` of what is left to `name`; or says in how many seconds there will be so many.
    pub(crate) fn take(
        &mut self,
        name: &str,
        per_minute: u32,
        jobs: u32,
        now: Duration,
    ) -> Result<(), u64> {
        let (most, jobs) = (f64::from(per_minute), f64::from(jobs));
        let per_second = most / 60.0;
        let full = Left { jobs: most, counted: now };
        let left = self.left.entry(name.to_owned()).or_insert(full);
        let since = now.saturating_sub(left.counted).as_secs_f64();
        *left = Left { jobs: (left.jobs + since * per_second).min(most), counted: now };
        if left.jobs >= jobs {
            left.jobs -= jobs;
            return Ok(());
        }
        let wait = (jobs.min(most) - left.jobs) / per_second.max(f64::MIN_POSITIVE);
        Err(Duration::try_from_secs_f64(wait.ceil()).map_or(60, |wait| wait.as_secs()).clamp(1, 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_jobs_may_come_at_once_and_then_as_the_rate_allows() {
        let (mut rates, second) = (Rates::default(), Duration::from_secs(1));
        for _ in 0..6 {
            assert_eq!(rates.take("alice", 6, 1, second), Ok(()));
        }
        assert_eq!(rates.take("alice", 6, 1, second), Err(10));
        assert_eq!(rates.take("bob", 6, 1, second), Ok(()), "others have their own");
        assert_eq!(rates.take("alice", 6, 1, 8 * second), Err(3));
        assert_eq!(rates.take("alice", 6, 1, 11 * second), Ok(()));
        assert!(rates.take("alice", 6, 1, 11 * second).is_err());
        assert_eq!(rates.take("alice", 6, 6, 1000 * second), Ok(()), "no more than a minute's");
        assert!(rates.take("alice", 6, 1, 1000 * second).is_err());
        assert!(rates.take("alice", 0, 1, 1000 * second).is_err());
    }
}
