//! Where the time of a job's ranks went: as a table, and as a trace that Perfetto and Chrome show.

mod trace;

pub use trace::chrome;

use protocol::message::{Phase, Profile, Span, Work};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What each rank told.
#[derive(Debug, Default)]
pub struct Profiles(BTreeMap<u16, Vec<Profile>>);

/// The calls that a table is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    /// Those whose peers' values were of an earlier call.
    Displaced,
    /// All but the first, which touches its memory for the first time.
    Later,
    /// There is but one.
    First,
}

/// A line of the table, and what of a call it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Of(Work),
    /// What no layer took: the sampler, messages, and taking time.
    Rest,
    All,
}

impl Profiles {
    /// Takes in what `rank` told.
    pub fn add(&mut self, rank: u16, profile: Profile) {
        self.0.entry(rank).or_default().push(profile);
    }

    /// Milliseconds of a call by kind of work and by peer waited for, mean over the calls in which this
    /// job is fastest; and the seconds of the other phases. A column for each rank.
    #[must_use]
    pub fn table(&self) -> String {
        let calls = self.calls();
        let columns: Vec<BTreeMap<Row, f64>> =
            self.0.values().map(|profiles| means(profiles, calls)).collect();
        let mut rows: Vec<Row> = columns.iter().flat_map(|column| column.keys().copied()).collect();
        rows.sort_unstable();
        rows.dedup();
        let what = match calls {
            Calls::Displaced => "displaced call",
            Calls::Later => "call after the first",
            Calls::First => "call",
        };
        let mut table = format!("{:<28}", format!("ms of a {what}"));
        for rank in self.0.keys() {
            write!(table, "{:>12}", format!("rank {rank}")).ok(); // a string takes all
        }
        for row in rows {
            write!(table, "\n{:<28}", row.name()).ok();
            for column in &columns {
                let cell = column
                    .get(&row)
                    .map_or_else(|| "-".to_owned(), |us| format!("{:.2}", us / 1e3));
                write!(table, "{cell:>12}").ok();
            }
        }
        for (phase, name) in [(Phase::TextEncoding, "prompt, s"), (Phase::Decoding, "decode, s")] {
            write!(table, "\n{name:<28}").ok();
            for profiles in self.0.values() {
                let of_phase = profiles.iter().filter(|profile| profile.phase == phase);
                let us: u64 = of_phase.map(|profile| profile.took_us).sum();
                write!(table, "{:>12}", format!("{:.3}", as_f64(us) / 1e6)).ok();
            }
        }
        table
    }

    fn calls(&self) -> Calls {
        let mut all = self.0.values().flatten().filter(|profile| profile.phase == Phase::Denoising);
        if all.clone().any(|profile| profile.displaced) {
            Calls::Displaced
        } else if all.any(|profile| profile.call > 0) {
            Calls::Later
        } else {
            Calls::First
        }
    }
}

impl Row {
    fn name(self) -> String {
        match self {
            Self::Of(work) => name_of(work),
            Self::Rest => "rest".to_owned(),
            Self::All => "all".to_owned(),
        }
    }
}

/// Microseconds of each row in a call.
fn means(profiles: &[Profile], calls: Calls) -> BTreeMap<Row, f64> {
    let counts = |profile: &&Profile| match calls {
        _ if profile.phase != Phase::Denoising => false,
        Calls::Displaced => profile.displaced,
        Calls::Later => profile.call > 0,
        Calls::First => true,
    };
    let mut sums: BTreeMap<Row, u64> = BTreeMap::new();
    let mut count = 0_u64;
    for profile in profiles.iter().filter(counts) {
        count += 1;
        let mut rest = profile.took_us;
        for Span { work, took_us, .. } in &profile.spans {
            *sums.entry(Row::Of(*work)).or_default() += u64::from(*took_us);
            rest = rest.saturating_sub((*took_us).into());
        }
        *sums.entry(Row::Rest).or_default() += rest;
        *sums.entry(Row::All).or_default() += profile.took_us;
    }
    sums.into_iter().map(|(row, us)| (row, as_f64(us) / as_f64(count))).collect()
}

fn name_of(work: Work) -> String {
    match work {
        Work::Convolution => "convolution".to_owned(),
        Work::Linear => "linear".to_owned(),
        Work::Attention => "attention".to_owned(),
        Work::Norm => "norm".to_owned(),
        Work::Pointwise => "pointwise".to_owned(),
        Work::Copy => "copy".to_owned(),
        Work::Wait(rank) => format!("waiting for {rank}"),
    }
}

#[expect(clippy::cast_precision_loss, reason = "times of a job in microseconds")]
fn as_f64(us: u64) -> f64 {
    us as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::Rank;

    fn call(call: u32, displaced: bool, took_us: u64, works: &[(Work, u32)]) -> Profile {
        let span =
            |(work, took_us): &(Work, u32)| Span { work: *work, start_us: 5, took_us: *took_us };
        let spans = works.iter().map(span).collect();
        Profile {
            phase: Phase::Denoising,
            call,
            displaced,
            start_us: 1000,
            took_us,
            spans,
            posted: Vec::new(),
        }
    }

    fn told() -> Profiles {
        let mut profiles = Profiles::default();
        let works = |linear, wait| [(Work::Linear, linear), (Work::Wait(Rank(1)), wait)];
        profiles.add(0, call(0, false, 9000, &works(1000, 5000)));
        profiles.add(0, call(1, true, 3000, &works(2000, 500)));
        profiles.add(0, call(2, true, 5000, &works(4000, 500)));
        profiles.add(1, call(1, true, 2000, &[(Work::Norm, 1000)]));
        let decode =
            Profile { phase: Phase::Decoding, took_us: 1_500_000, ..call(0, false, 0, &[]) };
        profiles.add(1, decode);
        profiles
    }

    #[test]
    fn displaced_calls_are_told_apart_and_add_up() {
        let table = told().table();
        let line = |name: &str| {
            let line = table.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            let cells = line.split_whitespace().rev().take(2).collect::<Vec<_>>();
            (cells[1].to_owned(), cells[0].to_owned())
        };
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert!(table.starts_with("ms of a displaced call"), "{table}");
        assert_eq!(line("linear"), pair("3.00", "-"));
        assert_eq!(line("norm"), pair("-", "1.00"));
        assert_eq!(line("waiting for rank 1"), pair("0.50", "-"));
        assert_eq!(line("rest"), pair("0.50", "1.00"));
        assert_eq!(line("all"), pair("4.00", "2.00"));
        assert_eq!(line("decode, s"), pair("0.000", "1.500"));
    }
}
