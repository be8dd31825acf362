//! Who was refused, so that each is logged once and nobody can flood the log.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Who is refused again for the same reason within this time is not logged again: long enough that a
/// worker that calls every two seconds costs six lines an hour.
const QUIET: Duration = Duration::from_secs(600);

/// The most addresses and reasons that are told apart within [`QUIET`]: beyond any cluster's own mistakes,
/// and a bound on what a scan from many addresses can write.
const LOGGED_MAX: usize = 256;

/// What was refused lately, in time since any start.
#[derive(Clone, Debug, Default)]
pub struct Strangers {
    refused: BTreeMap<(IpAddr, String), Refused>,
    /// Since when there are too many.
    overrun: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Refused {
    logged: Duration,
    more: u64,
}

impl Strangers {
    /// `address` was refused `now`: the line to log, if this is the first time in a while. The
    /// `reason` must not be one that the stranger can vary at will.
    pub fn refuse(&mut self, address: IpAddr, reason: &str, now: Duration) -> Option<String> {
        let key = (address, reason.to_owned());
        let known = self.refused.get_mut(&key);
        if let Some(known) = known {
            if now.saturating_sub(known.logged) < QUIET {
                known.more += 1;
                return None;
            }
            let more = std::mem::take(&mut known.more);
            known.logged = now;
            return Some(format!("refused {address}: {reason} ({more} more times since)"));
        }
        if self.refused.len() >= LOGGED_MAX {
            self.refused.retain(|_, refused| now.saturating_sub(refused.logged) < QUIET);
        }
        if self.refused.len() >= LOGGED_MAX {
            let told = self.overrun.is_some_and(|since| now.saturating_sub(since) < QUIET);
            self.overrun = self.overrun.filter(|_| told).or(Some(now));
            let line =
                || format!("refused {address}: {reason}; so many are that more are not logged");
            return (!told).then(line);
        }
        self.refused.insert(key, Refused { logged: now, more: 0 });
        Some(format!("refused {address}: {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    #[test]
    fn each_address_and_reason_is_logged_once_in_a_while() {
        let mut strangers = Strangers::default();
        let second = Duration::from_secs(1);
        let first = strangers.refuse(address(1), "no certificate", second);
        assert_eq!(first.as_deref(), Some("refused 10.0.0.1: no certificate"));
        for _ in 0..1000 {
            assert_eq!(strangers.refuse(address(1), "no certificate", 2 * second), None);
        }
        assert!(strangers.refuse(address(1), "expired", 2 * second).is_some());
        assert!(strangers.refuse(address(2), "no certificate", 2 * second).is_some());
        let again =
            strangers.refuse(address(1), "no certificate", QUIET + second).unwrap_or_default();
        assert!(again.contains("1000 more times"), "{again}");
    }

    #[test]
    fn a_scan_from_many_addresses_writes_a_bounded_log() {
        let mut strangers = Strangers::default();
        let lines = (0..10_000)
            .filter_map(|number| strangers.refuse(address(number), "garbage", Duration::ZERO))
            .collect::<Vec<_>>();
        assert_eq!(lines.len(), LOGGED_MAX + 1);
        assert!(lines[LOGGED_MAX].contains("more are not logged"));
        assert!(strangers.refuse(address(20_000), "garbage", QUIET).is_some(), "forgotten by then");
        assert_eq!(strangers.refused.len(), 1);
    }
}
