//! What each stage of a call computes, reads and posts.

use super::{DECODE, HALO, INPUT, LATENT, MOMENTS, Out, PREDICTION, Run, Stage, Value};
use crate::simulation::sampler::{Rows, Text, size};
use bytes::{BufMut, Bytes, BytesMut};
use protocol::Rank;
use protocol::job::{Mode, Warmup};
use protocol::message::{Phase, ToCoordinator, Traffic};
use protocol::plan::{Ask, Branch, rows_sent};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// A row of each of some tensors, if there is one.
type Edges = Vec<Option<Vec<f32>>>;

impl Run {
    pub(super) fn compute(&mut self, now: Duration) {
        match self.stage {
            Stage::Encode => {
                self.say(ToCoordinator::Entered { run: self.id(), phase: Phase::Denoising });
                self.enter(now);
            }
            Stage::Hidden => self.hide(),
            Stage::Predict => self.predict(),
            Stage::Meet => self.step(now),
            Stage::Rows => self.gather_rows(),
            Stage::Decode => self.decode(now),
            Stage::Over => {}
        }
    }

    /// The next call begins, or the decode.
    fn enter(&mut self, now: Duration) {
        self.call_began = now;
        if self.call >= self.calls() {
            return self.enter_decode();
        }
        let alone = self.branch_peers().next().is_none();
        let warm = matches!(self.plan.spec.warmup, Warmup::Calls(last) if self.call > last);
        let displaces = self.plan.spec.mode != Mode::FullSync && warm && !alone;
        self.displaced = self.begun && displaces;
        self.begun = true;
        self.post_edges(INPUT, &[&self.latent.clone()]);
        self.stage = Stage::Hidden;
    }

    fn hide(&mut self) {
        let (above, below) = self.edges(INPUT, self.call, 1);
        let latent = Rows {
            band: self.member.band,
            values: &self.latent,
            above: above[0].as_deref(),
            below: below[0].as_deref(),
        };
        let hidden = |text: &Text| self.sampler.hidden(*text, self.call, latent);
        self.hidden = self.texts().iter().map(hidden).collect();
        if !self.displaced {
            self.post_hidden(); // peers wait for it in this call
        }
        self.stage = Stage::Predict;
    }

    fn post_hidden(&mut self) {
        let hidden = std::mem::take(&mut self.hidden);
        self.post_edges(HALO, &hidden.iter().collect::<Vec<_>>());
        let sums = hidden.iter().flat_map(|hidden| self.sampler.sums(hidden)).collect();
        self.post(self.branch_peers().collect(), MOMENTS, sums);
        self.hidden = hidden;
    }

    fn predict(&mut self) {
        let from = if self.displaced { self.call - 1 } else { self.call };
        let (above, below) = self.edges(HALO, from, self.texts().len());
        let sums = self.moments(from);
        let last = self.call + 1 == self.calls();
        if self.displaced && !last {
            // Only once the call before's were read: else a peer's buffers would not suffice.
            self.post_hidden();
        }
        let channels = sums.len() / self.texts().len();
        let each = self.texts().iter().zip(&self.hidden).enumerate().map(|(at, (text, hidden))| {
            let hidden = Rows {
                band: self.member.band,
                values: hidden,
                above: above[at].as_deref(),
                below: below[at].as_deref(),
            };
            let sums = &sums[at * channels..(at + 1) * channels];
            self.sampler.predict(*text, self.call, hidden, sums)
        });
        self.predictions = each.collect();
        for peer in self.peers().collect::<Vec<_>>() {
            if let Some(rows) = rows_sent(&self.plan, Ask::Prediction, self.rank, peer) {
                let rows = self.sampler.cut(self.member.band, &self.predictions[0], rows);
                self.post(vec![peer], PREDICTION, rows);
            }
        }
        self.stage = Stage::Meet;
    }

    /// The sums of the image: this call's of the own band, the others' of the call `from`.
    fn moments(&mut self, from: u32) -> Vec<f32> {
        let own: Vec<f32> = self.hidden.iter().flat_map(|each| self.sampler.sums(each)).collect();
        let mut sums = vec![0.0; own.len()];
        for rank in self.plan.branch_of(self.rank).collect::<Vec<_>>() {
            let theirs = if rank == self.rank { Some(own.as_slice().into()) } else { None };
            let theirs: Rc<[f32]> = theirs.unwrap_or_else(|| self.read((rank, MOMENTS, from)));
            sums.iter_mut().zip(theirs.iter()).for_each(|(sum, each)| *sum += each);
        }
        sums
    }

    fn step(&mut self, now: Duration) {
        let other = self.other_prediction();
        let guided = match (self.member.branch, &self.predictions[..]) {
            (Branch::Whole, [negative, prompt]) => self.sampler.guide(negative, prompt),
            (Branch::Negative, [own]) => self.sampler.guide(own, &other),
            (Branch::Prompt, [own]) => self.sampler.guide(&other, own),
            (_, own) => own[0].clone(),
        };
        self.sampler.step(&mut self.latent, &guided, self.history.as_deref());
        self.history = Some(guided);
        self.report_step(now);
        self.call += 1;
        self.enter(now);
    }

    /// What the other branch predicted for the rows of this band.
    fn other_prediction(&mut self) -> Vec<f32> {
        let band = self.member.band;
        let mut whole = self.sampler.zeros(band);
        for peer in self.senders(Ask::Prediction).collect::<Vec<_>>() {
            let rows = rows_sent(&self.plan, Ask::Prediction, peer, self.rank);
            let part = self.read((peer, PREDICTION, self.call));
            self.sampler.paste((band, &mut whole), rows.unwrap_or(band), &part);
        }
        whole
    }

    fn report_step(&mut self, now: Duration) {
        let waited = std::mem::take(&mut self.waited);
        let message = ToCoordinator::Stepped {
            run: self.id(),
            call: self.call,
            calls: self.calls(),
            took_us: micros(now.saturating_sub(self.call_began)),
            waited_us: micros(waited),
            traffic: Traffic::default(),
            displaced: self.displaced,
            change: None,
            history: 1,
        };
        let mut planes = BytesMut::new();
        if self.plan.reports(self.rank) {
            let history = self.history.iter().flatten();
            self.latent.iter().chain(history).for_each(|value| planes.put_f32_le(*value));
        }
        self.out.push(Out::Say(message, planes.freeze()));
    }

    fn enter_decode(&mut self) {
        self.say(ToCoordinator::Entered { run: self.id(), phase: Phase::Decoding });
        for peer in self.peers().collect::<Vec<_>>() {
            if let Some(rows) = rows_sent(&self.plan, Ask::Latent, self.rank, peer) {
                let rows = self.sampler.cut(self.member.band, &self.latent, rows);
                self.post(vec![peer], LATENT, rows);
            }
        }
        self.stage = Stage::Rows;
    }

    fn gather_rows(&mut self) {
        let (band, decodes) = (self.member.band, self.member.decodes);
        let mut rows = self.sampler.zeros(decodes);
        if let Some(own) = band.overlap(decodes) {
            let cut = self.sampler.cut(band, &self.latent, own);
            self.sampler.paste((decodes, &mut rows), own, &cut);
        }
        for peer in self.senders(Ask::Latent).collect::<Vec<_>>() {
            let part = rows_sent(&self.plan, Ask::Latent, peer, self.rank).unwrap_or(decodes);
            let values = self.read((peer, LATENT, self.call));
            self.sampler.paste((decodes, &mut rows), part, &values);
        }
        let last = size(decodes.rows) - 1;
        for peer in self.decoders().collect::<Vec<_>>() {
            let edge = self.sampler.row(&rows, if peer < self.rank { 0 } else { last });
            self.post(vec![peer], DECODE, edge);
        }
        self.decoded = rows;
        self.stage = Stage::Decode;
    }

    fn decode(&mut self, now: Duration) {
        let mut beside = BTreeMap::new();
        for peer in self.decoders().collect::<Vec<_>>() {
            beside.insert(peer < self.rank, self.read((peer, DECODE, self.call)));
        }
        let rows = Rows {
            band: self.member.decodes,
            values: &self.decoded,
            above: beside.get(&true).map(|rows| &**rows),
            below: beside.get(&false).map(|rows| &**rows),
        };
        let pixels = Bytes::from(self.sampler.decode(rows));
        let took_us = micros(now.saturating_sub(self.call_began));
        let end = ToCoordinator::Decoded { run: self.id(), took_us, waited_us: 0, peak_bytes: 0 };
        self.stage = Stage::Over;
        self.out.push(Out::Say(end, pixels));
    }

    /// The rows that the neighbours above and below sent of each of `count` tensors.
    fn edges(&mut self, site: u16, call: u32, count: usize) -> (Edges, Edges) {
        let mut edges = (vec![None; count], vec![None; count]);
        for peer in self.neighbours().collect::<Vec<_>>() {
            let rows = self.read((peer, site, call));
            let side = if peer < self.rank { &mut edges.0 } else { &mut edges.1 };
            for (place, row) in side.iter_mut().zip(rows.chunks(rows.len() / count)) {
                *place = Some(row.to_vec());
            }
        }
        edges
    }

    fn post_edges(&mut self, site: u16, tensors: &[&Vec<f32>]) {
        let last = size(self.member.band.rows) - 1;
        for peer in self.neighbours().collect::<Vec<_>>() {
            let row = if peer < self.rank { 0 } else { last };
            let rows = tensors.iter().flat_map(|each| self.sampler.row(each, row)).collect();
            self.post(vec![peer], site, rows);
        }
    }

    fn post(&mut self, peers: Vec<Rank>, site: u16, numbers: Vec<f32>) {
        let numbers: Rc<[f32]> = numbers.into();
        for peer in peers {
            let (run, from, call) = (self.id(), self.rank, self.call);
            let value = Value { run, from, site, call, numbers: Rc::clone(&numbers) };
            self.out.push(Out::Post(peer, value));
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
