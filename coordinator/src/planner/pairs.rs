//! What the links between workers were measured at.

use super::Candidate;
use protocol::WorkerId;
use protocol::plan::netcheck::LinkFigures;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a link was measured at, in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LinkSpeed {
    /// Bytes a second.
    pub bandwidth: u64,
    /// From a small value's post until it has landed.
    pub latency: Duration,
}

impl From<LinkFigures> for LinkSpeed {
    fn from(measured: LinkFigures) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded")]
        let bandwidth = measured.bytes_per_second.max(1.0) as u64;
        let latency = Duration::from_secs_f64(measured.latency_us.max(0.0) / 1e6);
        Self { bandwidth, latency }
    }
}

impl LinkSpeed {
    /// Seconds that `bytes` take, without the latency. A link that carries nothing takes for ever.
    #[must_use]
    pub fn seconds(&self, bytes: f64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a measured figure")]
        let bandwidth = self.bandwidth as f64;
        if bytes > 0.0 { bytes / bandwidth } else { 0.0 }
    }
}

/// The links of a cluster's workers, as far as they were measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs(BTreeMap<(WorkerId, WorkerId), LinkSpeed>);

impl Pairs {
    /// What values from one worker to another cross at. What was known before is forgotten.
    pub fn measured(&mut self, from: WorkerId, to: WorkerId, figures: LinkSpeed) {
        self.0.insert((from, to), figures);
    }

    /// Forgets what was measured of a worker that left.
    pub fn forget(&mut self, worker: WorkerId) {
        self.0.retain(|(from, to), _| *from != worker && *to != worker);
    }

    /// What values from one worker to another cross at, if it was measured.
    #[must_use]
    pub fn get(&self, from: WorkerId, to: WorkerId) -> Option<LinkSpeed> {
        self.0.get(&(from, to)).copied()
    }
}

/// The workers that a plan is made for, and what is known of their links.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// The workers, in the order they joined.
    pub candidates: &'a [Candidate],
    /// Their links. None: not measured, and plans are made from speeds alone.
    pub pairs: Option<&'a Pairs>,
}

impl<'a, C: AsRef<[Candidate]> + ?Sized> From<&'a C> for Cluster<'a> {
    /// Workers whose links were not measured.
    fn from(candidates: &'a C) -> Self {
        Self { candidates: candidates.as_ref(), pairs: None }
    }
}

/// The links between some workers, by their places: all are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    count: usize,
    figures: Vec<LinkSpeed>,
}

impl Links {
    /// The links between `count` workers; `figures` says what values from one place to another, never
    /// the same, cross at. None if it does not know one of them.
    #[must_use]
    pub fn all(count: usize, figures: impl Fn(usize, usize) -> Option<LinkSpeed>) -> Option<Self> {
        let own = LinkSpeed { bandwidth: u64::MAX, latency: Duration::ZERO };
        let each = |place| match (place / count, place % count) {
            (from, to) if from == to => Some(own),
            (from, to) => figures(from, to),
        };
        Some(Self { count, figures: (0..count * count).map(each).collect::<Option<_>>()? })
    }

    /// What values from one place to another cross at.
    #[must_use]
    pub fn get(&self, from: usize, to: usize) -> LinkSpeed {
        self.figures[from * self.count + to]
    }

    /// The first `ranks` workers, or all, in two groups as even as can be with the slow links between
    /// them: the two with the slowest link are in different ones, and each other worker is where it
    /// has the fastest link.
    #[must_use]
    pub fn halves(&self, ranks: usize) -> [Vec<usize>; 2] {
        let between = |one: usize, other: usize| {
            self.get(one, other).bandwidth.min(self.get(other, one).bandwidth)
        };
        let ranks = ranks.min(self.count);
        let pairs = (0..ranks).flat_map(|one| (one + 1..ranks).map(move |other| (one, other)));
        let Some((one, other)) = pairs.min_by_key(|(one, other)| between(*one, *other)) else {
            return [(0..ranks).collect(), Vec::new()];
        };
        let mut groups = [vec![one], vec![other]];
        for worker in (0..ranks).filter(|worker| *worker != one && *worker != other) {
            let fastest = |group: &[usize]| group.iter().map(|of| between(*of, worker)).max();
            let near = [fastest(&groups[0]), fastest(&groups[1])];
            let fuller = groups[0].len() > groups[1].len();
            let full = groups.each_ref().map(|group| group.len() >= ranks.div_ceil(2));
            let second = match near[1].cmp(&near[0]) {
                _ if full[0] => true,
                _ if full[1] => false,
                std::cmp::Ordering::Equal => fuller,
                order => order.is_gt(),
            };
            groups[usize::from(second)].push(worker);
        }
        groups.each_mut().iter_mut().for_each(|group| group.sort_unstable());
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `nodes[w]` is where worker w is; links inside are ten times as fast.
    fn links(nodes: &[u8]) -> Links {
        let figures = |from: usize, to: usize| {
            let bandwidth = if nodes[from] == nodes[to] { 1000 } else { 100 };
            Some(LinkSpeed { bandwidth, latency: Duration::ZERO })
        };
        Links::all(nodes.len(), figures).unwrap()
    }

    #[test]
    fn a_half_is_a_node_wherever_its_workers_joined() {
        assert_eq!(links(&[0, 1, 0, 1]).halves(4), [vec![0, 2], vec![1, 3]]);
        assert_eq!(
            links(&[0, 0, 1, 1, 2, 2, 3, 3]).halves(8),
            [vec![0, 1, 4, 5], vec![2, 3, 6, 7]]
        );
        assert_eq!(links(&[0, 0, 0, 1]).halves(4), [vec![0, 1], vec![2, 3]]);
        assert_eq!(links(&[0; 3]).halves(3), [vec![0, 2], vec![1]]);
        assert_eq!(links(&[0]).halves(1), [vec![0], vec![]]);
    }

    #[test]
    fn one_link_that_is_not_known_is_all_of_them() {
        let known = LinkSpeed { bandwidth: 1, latency: Duration::ZERO };
        assert_eq!(Links::all(3, |from, to| (from + to < 3).then_some(known)), None);
    }

    #[test]
    fn who_left_is_forgotten() {
        let figures = LinkSpeed { bandwidth: 1, latency: Duration::ZERO };
        let mut pairs = Pairs::default();
        let [one, two, three] = [1, 2, 3].map(WorkerId);
        pairs.measured(one, two, figures);
        pairs.measured(two, three, figures);
        pairs.forget(one);
        assert_eq!((pairs.get(one, two), pairs.get(two, three)), (None, Some(figures)));
    }
}
