//! A job being rendered: what every rank has done, and the bands put together.

mod rank;

use self::rank::{Computed, RankState};
use super::checkpoint::{Checkpoint, VALUE_BYTES};
use bytes::{Bytes, BytesMut};
use protocol::job::ModelWork;
use protocol::message::{Event, Phase, RecoveryView, ToCoordinator, WaitView};
use protocol::plan::{Band, Geometry, Plan};
use protocol::{Fault, FaultKind, Rank, WorkerId};
use std::collections::BTreeMap;
use std::time::Duration;

/// A rank is slow if it takes this many times as long for its band as the ranks on the mean: beyond
/// what noise does, and worth the synchronous call that moving bands costs.
const SLOW: f64 = 1.5;
/// So many calls in a row, so that it is not a moment's disturbance.
const SLOW_CALLS: usize = 5;

/// The progress of one run.
///
/// Ranks report in their own time; an [`Event`] is due when the last of them did.
#[derive(Debug)]
pub struct RunState {
    plan: Plan,
    stream_latents: bool,
    started: Duration,
    ranks: Vec<RankState>,
    /// Of each call, the rank that computed longest.
    slowest: Computed,
    steps: BTreeMap<u32, Vec<Step>>,
    calls: u32,
    steps_done: u32,
    tally: Tally,
    longest: Duration,
    told_slow: bool,
    checkpoint: Option<Checkpoint>,
}

/// What a job's runs did so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Model calls done, those that were done again counted again.
    pub calls: u32,
    /// Seconds they took.
    pub seconds: f64,
    /// Those of them in which peers' values were one call old, or older.
    pub displaced: u32,
    /// How often the job broke off and went on.
    pub recoveries: Vec<RecoveryView>,
}

/// One rank's report of one model call.
#[derive(Clone, Debug)]
struct Step {
    rank: Rank,
    took_us: u64,
    waited_us: u64,
    displaced: bool,
    change: Option<f32>,
    history: u8,
    latent: Bytes,
}

/// An event and its payload.
pub type Due = (Event, Bytes);

impl RunState {
    /// The first run of a job, which starts `now`.
    #[must_use]
    pub fn new(plan: Plan, stream_latents: bool, now: Duration) -> Self {
        Self::resumed(plan, stream_latents, now, (None, Tally::default()))
    }

    /// A run of a job that started at `started`, from where others left it.
    #[must_use]
    pub fn resumed(
        plan: Plan,
        stream_latents: bool,
        started: Duration,
        (checkpoint, tally): (Option<Checkpoint>, Tally),
    ) -> Self {
        Self {
            stream_latents,
            started,
            ranks: vec![RankState::default(); plan.world_size()],
            slowest: Computed::default(),
            steps: BTreeMap::new(),
            calls: checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.of),
            steps_done: checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.calls),
            tally,
            longest: Duration::ZERO,
            told_slow: false,
            checkpoint,
            plan,
        }
    }

    /// From now on, events of steps come with the latent, if anybody wants it.
    pub fn stream(&mut self, wanted: bool) {
        self.stream_latents |= wanted;
    }

    /// Whether events of steps come with the latent.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.stream_latents
    }

    /// When the job started.
    #[must_use]
    pub fn started(&self) -> Duration {
        self.started
    }

    /// Where the job can go on, if not from its start.
    #[must_use]
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// What the job's runs did so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// The longest time that a call of this run took; zero before the first is done.
    #[must_use]
    pub fn longest_call(&self) -> Duration {
        self.longest
    }

    /// Whether all ranks are where calls are made.
    #[must_use]
    pub fn is_denoising(&self) -> bool {
        self.ranks.iter().all(|rank| rank.phase == Some(Phase::Denoising))
    }

    /// The rank that has been slower than its band is tall for some calls, and how many times as long as
    /// the mean it took. Said once a run.
    pub fn slow_rank(&mut self) -> Option<(Rank, f64)> {
        let slow = |rank: &Rank| self.ranks[rank.index()].slow.len() >= SLOW_CALLS;
        let rank = self.plan.ranks().find(slow).filter(|_| !self.told_slow)?;
        self.told_slow = true;
        let times = &self.ranks[rank.index()].slow;
        Some((rank, times.iter().sum::<f64>() / times.len() as f64))
    }

    /// Who renders what.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// FLOP a second that each worker was seen to compute at predicting by a model of this `work`; none until
    /// all ranks did two calls. A call takes as long as its slowest rank: where that is another one from call
    /// to call, as on a machine with more workers than cores, all count as so much slower.
    #[must_use]
    pub fn rates(&self, work: &ModelWork) -> Vec<(WorkerId, f64)> {
        // What ranks of a baseline compute is not their bands.
        if !self.plan.spec.parallelism.has_bands() {
            return Vec::new();
        }
        let Geometry { rows, columns, .. } = self.plan.geometry;
        let all = work.cells(rows, columns);
        let each = self.ranks.iter().filter_map(|rank| rank.computed.seconds());
        let longest = each.fold(0.0, f64::max);
        let uneven = self.slowest.seconds().map_or(1.0, |slowest| (slowest / longest).max(1.0));
        let seen = self.plan.ranks().zip(&self.plan.members).zip(&self.ranks);
        let seen = seen.map(|((rank, member), state)| {
            let call = work.flop(work.cells(member.band.rows, columns), all);
            let flop = call * f64::from(self.plan.batch(rank));
            Some((member.worker, flop / state.computed.seconds()? / uneven))
        });
        seen.collect::<Option<_>>().unwrap_or_default()
    }

    /// Model calls that all ranks have done, and all there are; None before the first.
    #[must_use]
    pub fn progress(&self) -> Option<(u32, u32)> {
        (self.calls > 0).then_some((self.steps_done, self.calls))
    }

    /// Whether `rank` has done its part.
    #[must_use]
    pub fn is_done(&self, rank: Rank) -> bool {
        self.ranks.get(rank.index()).is_some_and(|rank| rank.pixels.is_some())
    }

    /// What `rank` said; the event that this makes due, if any.
    ///
    /// # Errors
    /// If the message is not one of a rank that renders as planned.
    pub fn handle(
        &mut self,
        rank: Rank,
        message: ToCoordinator,
        payload: Bytes,
        now: Duration,
    ) -> Result<Option<Due>, Fault> {
        match message {
            ToCoordinator::Notice { text, .. } => Ok(Some((Event::Notice { text }, Bytes::new()))),
            ToCoordinator::Entered { phase, .. } => Ok(self.entered(rank, phase)),
            ToCoordinator::Stepped {
                call,
                calls,
                took_us,
                waited_us,
                traffic,
                displaced,
                change,
                history,
                ..
            } => {
                self.calls = calls;
                self.ranks[rank.index()].waited_us += waited_us;
                self.ranks[rank.index()].posted_bytes += traffic.posted_bytes();
                let us = took_us.saturating_sub(waited_us);
                self.ranks[rank.index()].computed.add(call, us, displaced);
                let latent = payload;
                let step = Step { rank, took_us, waited_us, displaced, change, history, latent };
                self.stepped(call, step)
            }
            ToCoordinator::Probed { sites, .. } => {
                Ok(Some((Event::Probed { rank: rank.0, sites }, Bytes::new())))
            }
            ToCoordinator::Profiled { profile, .. } => {
                Ok(Some((Event::Profiled { rank: rank.0, profile }, Bytes::new())))
            }
            ToCoordinator::Decoded { waited_us, peak_bytes, .. } => {
                self.ranks[rank.index()].peak_bytes = peak_bytes;
                self.ranks[rank.index()].waited_us += waited_us;
                self.decoded(rank, payload, now)
            }
            ToCoordinator::Alive { .. }
            | ToCoordinator::Leaving
            | ToCoordinator::Holds { .. }
            | ToCoordinator::Unheld { .. }
            | ToCoordinator::Measured { .. }
            | ToCoordinator::Failed { .. }
            | ToCoordinator::Aborted { .. } => Ok(None),
        }
    }

    fn entered(&mut self, rank: Rank, phase: Phase) -> Option<Due> {
        self.ranks[rank.index()].phase = Some(phase);
        let all = self.ranks.iter().all(|rank| rank.phase >= Some(phase));
        all.then(|| (Event::Phase { phase }, Bytes::new()))
    }

    fn stepped(&mut self, call: u32, step: Step) -> Result<Option<Due>, Fault> {
        let geometry = self.plan.geometry;
        let rows = if self.plan.reports(step.rank) { self.rows(step.rank) } else { 0 };
        let values = size(geometry.channels) * size(geometry.columns) * rows;
        let tensors = 1 + usize::from(step.history);
        check_len(step.rank, step.latent.len(), values * tensors * VALUE_BYTES)?;
        let reports = self.plan.reports(step.rank);
        let steps = self.steps.entry(call).or_default();
        steps.push(step);
        // A rank that reports no rows may be late: those that do can be past this call already.
        if reports && let Some(checkpoint) = self.checkpoint_after(call, &self.steps[&call])? {
            self.checkpoint = Some(checkpoint);
        }
        if self.steps.get(&call).is_none_or(|steps| steps.len() < self.ranks.len()) {
            return Ok(None);
        }
        let steps = self.steps.remove(&call).unwrap_or_default();
        self.note_slow(&steps);
        let took = steps.iter().map(|step| step.took_us).max().map(Duration::from_micros);
        let seconds = took.unwrap_or_default().as_secs_f64();
        let waited = seconds_of(steps.iter().map(|step| step.waited_us).max());
        self.longest = self.longest.max(took.unwrap_or_default());
        self.steps_done = self.steps_done.max(call + 1);
        let displaced = steps.iter().any(|step| step.displaced);
        let longest = steps.iter().map(|step| step.took_us.saturating_sub(step.waited_us)).max();
        self.slowest.add(call, longest.unwrap_or_default(), displaced);
        self.tally.calls += 1;
        self.tally.seconds += seconds;
        self.tally.displaced += u32::from(displaced);
        let shown = if self.stream_latents { self.checkpoint_after(call, &steps)? } else { None };
        let payload = shown.as_ref().map(Checkpoint::latent).unwrap_or_default();
        let change = steps.iter().find_map(|step| step.change);
        let (call, calls) = (call + 1, self.calls);
        let event = Event::Step { call, calls, seconds, waited, displaced, change };
        Ok(Some((event, payload)))
    }

    /// The checkpoint that was reported after `call`, once every row was.
    fn checkpoint_after(&self, call: u32, steps: &[Step]) -> Result<Option<Checkpoint>, Fault> {
        let ranks = self.plan.ranks().filter(|rank| self.plan.reports(*rank));
        let reported = ranks.map(|rank| steps.iter().find(|step| step.rank == rank));
        let Some(reported) = reported.collect::<Option<Vec<&Step>>>() else { return Ok(None) };
        let Some(history) = reported.first().map(|step| step.history) else { return Ok(None) };
        if let Some(other) = reported.iter().find(|step| step.history != history) {
            let cause = format!("its sampler remembers {} tensors, not {history}", other.history);
            return Err(Fault::new(FaultKind::Protocol, cause).on(other.rank));
        }
        let bands: Option<Vec<(Band, &Bytes)>> = reported
            .iter()
            .map(|step| Some((self.plan.member(step.rank)?.band, &step.latent)))
            .collect();
        let planes = Checkpoint::planes_of(self.plan.geometry, history, &bands.unwrap_or_default());
        Ok(Some(Checkpoint { calls: call + 1, of: self.calls, history, planes }))
    }

    /// Counts the calls in which ranks were slow. The first of a run also warms caches up.
    fn note_slow(&mut self, steps: &[Step]) {
        let first = self.longest.is_zero();
        let each = |step: &Step| step.took_us.saturating_sub(step.waited_us) as f64;
        let mean = steps.iter().map(each).sum::<f64>() / steps.len().max(1) as f64;
        for step in steps.iter().filter(|_| !first) {
            let (slow, times) = (&mut self.ranks[step.rank.index()].slow, each(step) / mean);
            if times > SLOW { slow.push(times) } else { slow.clear() }
        }
    }

    fn decoded(&mut self, rank: Rank, pixels: Bytes, now: Duration) -> Result<Option<Due>, Fault> {
        let factor = size(self.plan.geometry.vae_factor);
        let rows = self.plan.member(rank).map_or(0, |member| size(member.decodes.rows));
        let wanted = rows * factor * size(self.plan.spec.width) * 3;
        check_len(rank, pixels.len(), wanted)?;
        self.ranks[rank.index()].pixels = Some(pixels);
        let bands: Vec<&Bytes> =
            self.ranks.iter().filter_map(|rank| rank.pixels.as_ref()).collect();
        if bands.len() < self.ranks.len() {
            return Ok(None);
        }
        let mut image = BytesMut::with_capacity(bands.iter().map(|band| band.len()).sum());
        bands.iter().for_each(|band| image.extend_from_slice(band));
        Ok(Some((self.finished(now), image.freeze())))
    }

    fn finished(&self, now: Duration) -> Event {
        let waits = self.ranks.iter().zip(&self.plan.members).zip(0..);
        let waits = waits.map(|((rank, member), number)| WaitView {
            rank: number,
            worker: member.name.clone(),
            seconds: seconds_of(Some(rank.waited_us)),
            posted_bytes: rank.posted_bytes,
            peak_bytes: rank.peak_bytes,
        });
        let latent = self.checkpoint.as_ref().map(Checkpoint::latent).unwrap_or_default();
        Event::Finished {
            seconds_per_step: self.tally.seconds / f64::from(self.tally.calls.max(1)),
            seconds: now.saturating_sub(self.started).as_secs_f64(),
            waits: waits.collect(),
            latent: blake3::hash(&latent).to_hex().to_string(),
            displaced_calls: self.tally.displaced,
            recoveries: self.tally.recoveries.clone(),
        }
    }

    fn rows(&self, rank: Rank) -> usize {
        self.plan.member(rank).map_or(0, |member| size(member.band.rows))
    }
}

fn check_len(rank: Rank, got: usize, wanted: usize) -> Result<(), Fault> {
    if got == wanted {
        return Ok(());
    }
    let cause = format!("sent a band of {got} bytes instead of {wanted}");
    Err(Fault::new(FaultKind::Protocol, cause).on(rank))
}

fn seconds_of(us: Option<u64>) -> f64 {
    Duration::from_micros(us.unwrap_or(0)).as_secs_f64()
}

fn size(value: u32) -> usize {
    usize::try_from(value).expect("this program needs at least 32-bit addresses")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::tests::{plan, plan_as};
    use protocol::job::CfgSplit;
    use protocol::message::Traffic;
    use protocol::plan::{Fabric, Kind};

    fn stepped(state: &RunState, rank: u16, call: u32, fill: u8) -> (ToCoordinator, Bytes) {
        let geometry = state.plan.geometry;
        let band = size(geometry.channels) * size(geometry.columns) * state.rows(Rank(rank));
        let message = ToCoordinator::Stepped {
            run: state.plan.run,
            call,
            calls: 2,
            took_us: 1_000_000 * u64::from(rank + 1),
            waited_us: 500_000,
            traffic: Traffic { posted: vec![(Fabric::Tcp, Kind::Halo, 7)], read: [0; 2] },
            displaced: call > 0,
            change: None,
            history: 0,
        };
        (message, Bytes::from(vec![fill; band * VALUE_BYTES]))
    }

    #[test]
    fn a_step_is_due_when_the_last_rank_did_it_and_bands_are_put_together_by_channel() {
        let mut state = RunState::new(plan(2), true, Duration::ZERO);
        let (message, payload) = stepped(&state, 1, 0, 2);
        assert_eq!(state.handle(Rank(1), message, payload, Duration::ZERO), Ok(None));
        let (message, payload) = stepped(&state, 0, 0, 1);
        let due = state.handle(Rank(0), message, payload, Duration::ZERO).unwrap();
        let (event, latent) = due.unwrap();
        let (displaced, change) = (false, None);
        let (seconds, waited) = (2.0, 0.5);
        assert_eq!(event, Event::Step { call: 1, calls: 2, seconds, waited, displaced, change });
        let geometry = state.plan.geometry;
        let plane = size(geometry.rows * geometry.columns) * VALUE_BYTES;
        assert_eq!(latent.len(), plane * size(geometry.channels));
        for channel in latent.chunks(plane) {
            assert!(channel[..plane / 2].iter().all(|byte| *byte == 1));
            assert!(channel[plane / 2..].iter().all(|byte| *byte == 2));
        }
        assert_eq!(state.progress(), Some((1, 2)));
    }

    #[test]
    fn each_row_of_the_latent_is_reported_by_one_of_two_branches() {
        let plan = plan_as(4, CfgSplit::On);
        let mut state = RunState::new(plan, true, Duration::ZERO);
        let mut due = None;
        for rank in 0..4 {
            let (message, payload) = stepped(&state, rank, 0, u8::try_from(rank).unwrap());
            let payload = if rank < 2 { payload } else { Bytes::new() };
            due = state.handle(Rank(rank), message, payload, Duration::ZERO).unwrap();
        }
        let (_, latent) = due.expect("the last rank makes it due");
        let geometry = state.plan.geometry;
        assert_eq!(
            latent.len(),
            size(geometry.rows * geometry.columns * geometry.channels) * VALUE_BYTES
        );
    }

    #[test]
    fn ranks_that_take_turns_at_being_slow_count_as_so_much_slower() {
        let mut state = RunState::new(plan(2), false, Duration::ZERO);
        for (call, rank) in (0..5).flat_map(|call| [(call, 0), (call, 1)]) {
            let (mut message, payload) = stepped(&state, rank, call, 0);
            if let ToCoordinator::Stepped { took_us, calls, .. } = &mut message {
                let slow = (call + u32::from(rank)).is_multiple_of(2);
                (*took_us, *calls) = (if slow { 1_500_000 } else { 1_000_000 }, 5);
            }
            state.handle(Rank(rank), message, payload, Duration::ZERO).unwrap();
        }
        let rates = state.rates(&ModelWork { fixed_flop: 12, ..ModelWork::default() });
        // Each computes for half a second and for one by turns, so that every call takes one; two predictions.
        assert!(rates.len() == 2 && rates.iter().all(|(_, rate)| (rate - 24.0).abs() < 1e-9));
    }

    #[test]
    fn a_phase_is_due_once_when_all_ranks_entered_it() {
        let mut state = RunState::new(plan(2), false, Duration::ZERO);
        let run = state.plan.run;
        let entered = |phase| ToCoordinator::Entered { run, phase };
        let mut say = |rank, phase| {
            state.handle(Rank(rank), entered(phase), Bytes::new(), Duration::ZERO).unwrap()
        };
        assert!(say(0, Phase::TextEncoding).is_none());
        assert!(say(0, Phase::Denoising).is_none());
        let due = say(1, Phase::TextEncoding).map(|(event, _)| event);
        assert_eq!(due, Some(Event::Phase { phase: Phase::TextEncoding }));
        assert!(say(1, Phase::Denoising).is_some());
    }

    #[test]
    fn the_image_is_the_bands_from_top_to_bottom() {
        let mut state = RunState::new(plan(2), false, Duration::from_secs(1));
        let half = size(state.plan.spec.width * state.plan.spec.height) * 3 / 2;
        let run = state.plan.run;
        let decoded = || ToCoordinator::Decoded { run, took_us: 1, waited_us: 1, peak_bytes: 1 };
        let lower = Bytes::from(vec![9; half]);
        let upper = Bytes::from(vec![4; half]);
        let now = Duration::from_secs(3);
        assert_eq!(state.handle(Rank(1), decoded(), lower, now), Ok(None));
        let (event, image) = state.handle(Rank(0), decoded(), upper, now).unwrap().unwrap();
        assert!(matches!(event, Event::Finished { seconds, .. } if (seconds - 2.0).abs() < 1e-9));
        assert_eq!((image[0], image[half - 1], image[half], image.len()), (4, 4, 9, 2 * half));
    }

    #[test]
    fn a_band_of_the_wrong_size_is_a_fault() {
        let mut state = RunState::new(plan(2), false, Duration::ZERO);
        let (message, payload) = stepped(&state, 0, 0, 1);
        let short = payload.slice(1..);
        let fault = state.handle(Rank(0), message, short, Duration::ZERO).unwrap_err();
        assert_eq!((fault.kind, fault.rank), (FaultKind::Protocol, Some(Rank(0))));
    }
}
