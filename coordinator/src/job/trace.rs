//! Taking down when a job's ranks did what, in room that is bounded.

use protocol::Rank;
use protocol::message::{
    BandView, JobTrace, LinkView, PartTrace, Phase, Profile, RunTrace, ToCoordinator,
};
use std::time::Duration;

/// Calls and phases of ranks that a trace has room for, each 30 bytes and, if it is profiled, as many again:
/// 30 calls of 64 ranks four times over.
const PARTS_MAX: usize = 8192;
/// Stretches of profiles that it has room for, each 5 to 12 bytes: with the parts, less than a megabyte, which
/// is what an answer may hold. A call of emoji-xl has 200, one of SDXL some 1500, for each rank.
const SPANS_MAX: usize = 1 << 16;

/// Takes down what the ranks of one job report.
#[derive(Clone, Debug)]
pub struct Recorder {
    trace: JobTrace,
    began: Duration,
    /// When each rank of the run entered the phase it is in.
    entered: Vec<Duration>,
    parts: usize,
    spans: usize,
}

impl Recorder {
    /// For a job whose first run begins `now`, which is so many microseconds after 1970.
    #[must_use]
    pub fn new(unix_us: u64, now: Duration) -> Self {
        let trace = JobTrace { start_us: unix_us, runs: Vec::new(), detail_every: 1, left_out: 0 };
        Self { trace, began: now, entered: Vec::new(), parts: 0, spans: 0 }
    }

    /// What is known so far.
    #[must_use]
    pub fn trace(&self) -> &JobTrace {
        &self.trace
    }

    /// A run begins.
    pub fn run(&mut self, bands: Vec<BandView>, links: Vec<LinkView>, now: Duration) {
        self.entered = vec![now; bands.len()];
        self.trace.runs.push(RunTrace { bands, links, parts: Vec::new(), profiles: Vec::new() });
    }

    /// A rank of the present run said something.
    pub fn heard(&mut self, rank: Rank, message: &ToCoordinator, now: Duration) {
        let end_us = micros(now.saturating_sub(self.began));
        let part = PartTrace {
            rank: rank.0,
            phase: Phase::Denoising,
            call: 0,
            displaced: false,
            end_us,
            took_us: 0,
            waited_us: 0,
            posted_bytes: 0,
        };
        match message {
            ToCoordinator::Entered { phase, .. } => {
                let Some(entered) = self.entered.get_mut(rank.index()) else { return };
                let since = std::mem::replace(entered, now);
                // How long prompts took is told by nobody, but here; of other phases their parts tell.
                if *phase == Phase::Denoising {
                    let took_us = micros(now.saturating_sub(since));
                    self.add(PartTrace { phase: Phase::TextEncoding, took_us, ..part });
                }
            }
            ToCoordinator::Stepped { call, took_us, waited_us, traffic, displaced, .. } => {
                let (call, displaced, took_us) = (*call, *displaced, *took_us);
                let (waited_us, posted_bytes) = (*waited_us, traffic.posted_bytes());
                self.add(PartTrace { call, displaced, took_us, waited_us, posted_bytes, ..part });
            }
            ToCoordinator::Decoded { took_us, waited_us, .. } => {
                let (phase, took_us, waited_us) = (Phase::Decoding, *took_us, *waited_us);
                self.add(PartTrace { phase, took_us, waited_us, ..part });
            }
            ToCoordinator::Profiled { profile, .. } => self.add_profile(rank, profile.clone()),
            _ => {}
        }
    }

    /// Whether there is room for one more.
    fn takes(&mut self) -> bool {
        let takes = self.parts < PARTS_MAX && !self.trace.runs.is_empty();
        self.parts += usize::from(takes);
        self.trace.left_out += u64::from(!takes);
        takes
    }

    fn add(&mut self, part: PartTrace) {
        if self.takes()
            && let Some(run) = self.trace.runs.last_mut()
        {
            run.parts.push(part);
        }
    }

    fn add_profile(&mut self, rank: Rank, profile: Profile) {
        if !self.takes() {
            return;
        }
        self.spans += size(&profile);
        let Some(run) = self.trace.runs.last_mut() else { return };
        run.profiles.push((rank.0, profile));
        self.thin();
    }

    /// Keeps the stretches of every other call only, of those that are left, as often as it takes to have room:
    /// so early and late calls are there, synchronous and displaced ones.
    fn thin(&mut self) {
        loop {
            let every = self.trace.detail_every;
            let runs = self.trace.runs.iter_mut();
            for (_, profile) in runs.flat_map(|run| &mut run.profiles) {
                let call = if profile.phase == Phase::Denoising { profile.call } else { 0 };
                if !call.is_multiple_of(every) {
                    self.spans -= size(profile);
                    profile.spans = Vec::new();
                    profile.posted = Vec::new();
                }
            }
            if self.spans <= SPANS_MAX {
                return;
            }
            let Some(next) = every.checked_mul(2) else { break };
            self.trace.detail_every = next;
        }
        // Not even the first call and the phases around it: then none.
        for (_, profile) in self.trace.runs.iter_mut().flat_map(|run| &mut run.profiles) {
            profile.spans = Vec::new();
            profile.posted = Vec::new();
        }
        self.spans = 0;
    }
}

fn size(profile: &Profile) -> usize {
    profile.spans.len() + profile.posted.len()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::codec::{CONTROL_BODY_BYTES_MAX, decode_body, encode_body};
    use protocol::message::Traffic;
    use protocol::message::{Event, Span, Work};
    use protocol::plan::Branch;
    use protocol::plan::{Fabric, Kind};
    use protocol::{RunId, codec};

    fn recorder(ranks: u16) -> Recorder {
        let mut recorder = Recorder::new(5_000_000, Duration::from_secs(1));
        let worker = |rank| format!("host-{rank}");
        let band =
            |rank| BandView { rank, worker: worker(rank), branch: Branch::Whole, top: 0, rows: 8 };
        recorder.run((0..ranks).map(band).collect(), Vec::new(), Duration::from_secs(1));
        recorder
    }

    fn stepped(call: u32) -> ToCoordinator {
        ToCoordinator::Stepped {
            run: RunId::default(),
            call,
            calls: 30,
            took_us: 300_000,
            waited_us: 20_000,
            traffic: Traffic { posted: vec![(Fabric::Shm, Kind::Halo, 1 << 20)], read: [0; 2] },
            displaced: true,
            change: None,
            history: 0,
        }
    }

    fn profiled(call: u32, spans: u32) -> ToCoordinator {
        let span = |at| Span { work: Work::Wait(Rank(7)), start_us: at * 60_000, took_us: 59_000 };
        let profile = Profile {
            phase: Phase::Denoising,
            call,
            displaced: true,
            start_us: 1 << 50,
            took_us: 300_000,
            spans: (0..spans).map(span).collect(),
            posted: vec![(Rank(7), 4096)],
        };
        ToCoordinator::Profiled { run: RunId::default(), profile }
    }

    #[test]
    fn every_call_and_phase_of_a_rank_is_taken_down() {
        let mut recorder = recorder(2);
        let run = RunId::default();
        let at = |ms| Duration::from_secs(1) + Duration::from_millis(ms);
        let entered = |phase| ToCoordinator::Entered { run, phase };
        recorder.heard(Rank(1), &entered(Phase::TextEncoding), at(10));
        recorder.heard(Rank(1), &entered(Phase::Denoising), at(50));
        recorder.heard(Rank(1), &stepped(0), at(400));
        recorder.heard(Rank(1), &entered(Phase::Decoding), at(500));
        let decoded = ToCoordinator::Decoded { run, took_us: 90_000, waited_us: 5, peak_bytes: 0 };
        recorder.heard(Rank(1), &decoded, at(600));
        let parts = recorder.trace().runs[0].parts.iter();
        let told: Vec<_> =
            parts.map(|part| (part.phase, part.end_us, part.took_us, part.waited_us)).collect();
        assert_eq!(
            told,
            [
                (Phase::TextEncoding, 50_000, 40_000, 0),
                (Phase::Denoising, 400_000, 300_000, 20_000),
                (Phase::Decoding, 600_000, 90_000, 5),
            ]
        );
    }

    #[test]
    fn a_long_jobs_trace_fits_an_answer_and_says_what_it_lacks() {
        let mut recorder = recorder(8);
        for call in 0..1000 {
            for rank in (0..8).map(Rank) {
                recorder.heard(rank, &profiled(call, 1500), Duration::from_secs(9000));
                recorder.heard(rank, &stepped(call), Duration::from_secs(9000));
            }
        }
        let trace = recorder.trace().clone();
        assert_eq!(trace.left_out, 16_000 - 8192);
        let detailed = |call: u32| {
            let of = trace.runs[0].profiles.iter().filter(|(_, profile)| profile.call == call);
            of.map(|(_, profile)| profile.spans.len()).sum::<usize>()
        };
        assert_eq!(trace.detail_every, 128);
        assert_eq!([0, 1, 64, 128, 256].map(detailed), [12_000, 0, 0, 12_000, 12_000]);
        let event = Event::Traced { trace };
        let body = encode_body(&event).unwrap();
        assert!(body.len() < CONTROL_BODY_BYTES_MAX, "{} bytes", body.len());
        let read: Result<Event, codec::FrameError> = decode_body(&body);
        assert_eq!(read.unwrap(), event);
    }

    #[test]
    fn a_call_too_long_for_any_room_is_told_without_stretches() {
        let mut recorder = recorder(1);
        recorder.heard(Rank(0), &profiled(0, 70_000), Duration::from_secs(2));
        let (_, profile) = &recorder.trace().runs[0].profiles[0];
        assert_eq!((profile.spans.len(), profile.took_us), (0, 300_000));
    }
}
