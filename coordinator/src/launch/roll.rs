//! Who was asked to come, who came, who will not: what a launch decides on, as a plain struct on given time.

use super::failure::{Ending, Failure, FailureKind};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

/// How long the first restart of a worker waits; each further one waits twice as long.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest that one waits.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A worker that was there for so long begins anew to count its restarts.
const STEADY: Duration = Duration::from_secs(60);

/// Under which terms a launch goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Fewer workers are a failure.
    pub(crate) min_workers: usize,
    /// How long they have to come.
    pub(crate) patience: Duration,
    /// How often one that was there is started again, in a row.
    pub(crate) restarts: u32,
}

/// A worker that was asked to come.
#[derive(Clone, Debug)]
struct Member {
    /// What logs and status call it.
    name: String,
    /// The host that it is on.
    host: String,
    state: State,
    /// How often it was started again since it was last there for long.
    restarts: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// It was started, and is no member yet.
    Coming,
    /// It is a member, since then.
    Here(Duration),
    /// It was one, failed so, and is started again.
    Again(Failure),
    /// It is not started any more.
    Gone(Ending),
}

/// What is to be done about the workers as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Wait: some may still come.
    Wait,
    /// There are enough.
    Ready,
    /// There are too few, and there will not be more in time.
    TooFew,
}

/// All workers of a launch.
#[derive(Clone, Debug)]
pub(crate) struct Roll {
    terms: Terms,
    members: Vec<Member>,
}

impl Roll {
    /// Nobody was asked to come yet.
    pub(crate) fn new(terms: Terms) -> Self {
        Self { terms, members: Vec::new() }
    }

    /// A worker was asked to come; gives its number.
    pub(crate) fn ask(&mut self, name: &str, host: &str) -> usize {
        let (name, host) = (name.to_owned(), host.to_owned());
        self.members.push(Member { name, host, state: State::Coming, restarts: 0 });
        self.members.len() - 1
    }

    /// What logs and status call it.
    pub(crate) fn name(&self, worker: usize) -> &str {
        &self.members[worker].name
    }

    /// Whether a worker of this name was asked to come.
    pub(crate) fn asked_for(&self, name: &str) -> bool {
        self.members.iter().any(|member| member.name == name)
    }

    /// The coordinator has these workers `now`; gives the numbers of those that came.
    pub(crate) fn present(&mut self, names: &BTreeSet<String>, now: Duration) -> Vec<usize> {
        let mut came = Vec::new();
        for (number, member) in self.members.iter_mut().enumerate() {
            if member.state == State::Coming && names.contains(&member.name) {
                member.state = State::Here(now);
                came.push(number);
            }
        }
        came
    }

    /// A worker's process ended; gives after what time it is to be started again, if it is.
    pub(crate) fn ended(
        &mut self,
        worker: usize,
        ending: Ending,
        now: Duration,
    ) -> Option<Duration> {
        let member = &mut self.members[worker];
        // One that never came would fail as it did: its settings are wrong, or its host's.
        let came = match member.state {
            State::Here(since) => {
                if now.saturating_sub(since) >= STEADY {
                    member.restarts = 0;
                }
                true
            }
            State::Coming => member.restarts > 0,
            State::Again(_) | State::Gone(_) => false,
        };
        match ending {
            Ending::Failed(failure) if came && member.restarts < self.terms.restarts => {
                let pause = PAUSE.saturating_mul(1 << member.restarts.min(16)).min(PAUSE_MAX);
                member.restarts += 1;
                member.state = State::Again(failure);
                Some(pause)
            }
            ending => {
                member.state = State::Gone(ending);
                None
            }
        }
    }

    /// It is started again.
    pub(crate) fn again(&mut self, worker: usize) {
        self.members[worker].state = State::Coming;
    }

    /// What is to be done about workers that are on their way since the start.
    pub(crate) fn verdict(&self, now: Duration) -> Verdict {
        let count = |wanted: fn(&State) -> bool| {
            self.members.iter().filter(|member| wanted(&member.state)).count()
        };
        let here = count(|state| matches!(state, State::Here(_)));
        let coming = count(|state| matches!(state, State::Coming | State::Again(_)));
        if coming > 0 && now < self.terms.patience {
            Verdict::Wait
        } else if here >= self.terms.min_workers {
            Verdict::Ready
        } else {
            Verdict::TooFew
        }
    }

    /// Whether nobody is there, and nobody will be.
    pub(crate) fn deserted(&self) -> bool {
        self.members.iter().all(|member| matches!(member.state, State::Gone(_)))
    }

    /// How many are there, and how many were asked.
    pub(crate) fn count(&self) -> (usize, usize) {
        let here = self.members.iter().filter(|member| matches!(member.state, State::Here(_)));
        (here.count(), self.members.len())
    }

    /// A line for each host, in their order, and what can be done about those that failed.
    pub(crate) fn table(&self) -> String {
        let mut hosts: Vec<&str> = Vec::new();
        for member in &self.members {
            if !hosts.contains(&&*member.host) {
                hosts.push(&member.host);
            }
        }
        let width = hosts.iter().map(|host| host.chars().count()).max().unwrap_or(0).max(4);
        let mut text = format!("{:<width$}  WORKERS  STATE          WHY\n", "HOST");
        for host in hosts {
            let members: Vec<&Member> =
                self.members.iter().filter(|member| member.host == host).collect();
            let here = members.iter().filter(|member| matches!(member.state, State::Here(_)));
            let count = format!("{} of {}", here.count(), members.len());
            let mut rows: Vec<(&str, String)> = Vec::new();
            for member in &members {
                let row = member.row();
                if row.0 != "ok" && !rows.contains(&row) {
                    rows.push(row);
                }
            }
            if rows.is_empty() {
                rows.push(("ok", String::new()));
            }
            for (number, (state, why)) in rows.into_iter().enumerate() {
                let (host, count) = if number == 0 { (host, &*count) } else { ("", "") };
                let line = format!("{host:<width$}  {count:<7}  {state:<13}  {why}");
                // Writing to a string does not fail.
                writeln!(text, "{}", line.trim_end()).ok();
            }
        }
        text
    }
}

impl Member {
    /// How it is, and why.
    fn row(&self) -> (&'static str, String) {
        let failed = |failure: &Failure| {
            let why = format!("{}; {}", failure.words, failure.kind.advice());
            (failure.kind.name(), why)
        };
        match &self.state {
            State::Here(_) => ("ok", String::new()),
            State::Coming => {
                failed(&Failure::new(FailureKind::Absent, "the coordinator has not seen it yet"))
            }
            State::Again(failure) => ("starts again", failed(failure).1),
            State::Gone(Ending::Left) => ("left", "it was asked to".to_owned()),
            State::Gone(Ending::Failed(failure)) => failed(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { min_workers: 2, patience: Duration::from_secs(60), restarts: 2 };

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn failed(kind: FailureKind) -> Ending {
        Ending::Failed(Failure::new(kind, "words"))
    }

    /// Two workers on one host, one on another.
    fn roll(terms: Terms) -> Roll {
        let mut roll = Roll::new(terms);
        for (name, host) in [("a/0", "a"), ("a/1", "a"), ("b", "b")] {
            roll.ask(name, host);
        }
        roll
    }

    #[test]
    fn a_launch_is_decided_once_all_have_come_or_failed() {
        let mut roll = roll(TERMS);
        assert_eq!(roll.present(&names(&["a/0", "a/1", "else"]), seconds(1)), [0, 1]);
        assert!(roll.present(&names(&["a/0", "a/1"]), seconds(1)).is_empty(), "they came before");
        assert_eq!(roll.verdict(seconds(1)), Verdict::Wait, "b may still come");
        assert_eq!(roll.ended(2, failed(FailureKind::Unreachable), seconds(2)), None);
        assert_eq!(roll.verdict(seconds(2)), Verdict::Ready);
        assert_eq!(roll.count(), (2, 3));
        let table = roll.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "a     2 of 2   ok");
        assert!(lines[2].starts_with("b     0 of 1   unreachable    words; look at"), "{table}");
    }

    #[test]
    fn too_few_are_too_few_at_the_end_of_patience_or_before() {
        let mut late = roll(TERMS);
        late.present(&names(&["b"]), seconds(1));
        assert_eq!(late.verdict(seconds(59)), Verdict::Wait);
        assert_eq!(late.verdict(seconds(60)), Verdict::TooFew);
        assert!(late.table().contains("a     0 of 2   not joined"), "{}", late.table());
        let mut failing = roll(TERMS);
        for worker in 0..2 {
            assert_eq!(failing.ended(worker, failed(FailureKind::Denied), seconds(1)), None);
        }
        assert_eq!(failing.verdict(seconds(1)), Verdict::Wait, "the report is to be whole");
        failing.present(&names(&["b"]), seconds(2));
        assert_eq!(failing.verdict(seconds(2)), Verdict::TooFew);
        assert!(!failing.deserted());
        failing.ended(2, Ending::Left, seconds(3));
        assert!(failing.deserted());
    }

    #[test]
    fn one_that_was_there_is_started_again_some_times_and_later_each_time() {
        let mut roll = roll(TERMS);
        let mut die = |at: u64, comes: bool| {
            if comes {
                assert_eq!(roll.present(&names(&["b"]), seconds(at)), [2]);
            }
            let pause = roll.ended(2, failed(FailureKind::Died), seconds(at + 1));
            if pause.is_some() {
                roll.again(2);
            }
            pause
        };
        assert_eq!(die(0, true), Some(seconds(1)));
        assert_eq!(die(10, false), Some(seconds(2)), "it did not even come again");
        assert_eq!(die(20, true), None);
        assert_eq!(roll.row_of(2), "died");
    }

    #[test]
    fn one_that_was_there_for_long_begins_anew_and_one_that_leaves_may() {
        let mut roll = roll(TERMS);
        for start in [0, 100, 200, 300] {
            roll.present(&names(&["b"]), seconds(start));
            let pause = roll.ended(2, failed(FailureKind::Lost), seconds(start + 60));
            assert_eq!(pause, Some(seconds(1)));
            assert_eq!(roll.row_of(2), "starts again");
            roll.again(2);
        }
        roll.present(&names(&["b"]), seconds(400));
        assert_eq!(roll.ended(2, Ending::Left, seconds(401)), None);
        assert_eq!(roll.row_of(2), "left");
        assert_eq!(roll.ended(0, failed(FailureKind::Died), seconds(402)), None, "it never came");
    }

    impl Roll {
        fn row_of(&self, worker: usize) -> &'static str {
            self.members[worker].row().0
        }
    }
}
