//! What all ranks measured at each exchange point.

use protocol::message::SiteReport;
use protocol::plan::Ask;
use std::collections::BTreeMap;

/// What a layer exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The rows next to a band, for a convolution.
    Conv,
    /// Keys and values.
    Attention,
    /// Group statistics.
    Norm,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Conv, Self::Attention, Self::Norm];

    fn of(ask: Ask) -> Option<Self> {
        match ask {
            Ask::Halo { .. } => Some(Self::Conv),
            Ask::Gather => Some(Self::Attention),
            Ask::Moments { .. } => Some(Self::Norm),
            _ => None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Conv => "conv",
            Self::Attention => "attention",
            Self::Norm => "norm",
        }
    }
}

/// An exchange point, as all ranks measured it.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SiteSummary {
    /// The layer's path in the checkpoint.
    pub path: String,
    /// What it exchanges.
    pub kind: Kind,
    /// How often rows and columns are halved there.
    pub halvings: i8,
    /// Bytes that a rank posts in a call: the mean over ranks and calls.
    pub bytes: f64,
    /// The relative L2 distance of stale to fresh values by call, from the second call on: the mean
    /// over ranks.
    pub distances: Vec<f64>,
}

impl SiteSummary {
    /// Its mean distance over the calls that `count`, numbered from 0.
    #[must_use]
    pub fn mean(&self, count: impl Fn(usize) -> bool) -> f64 {
        let counted = self.distances.iter().zip(1..).filter(|(_, call)| count(*call));
        mean(counted.map(|(distance, _)| *distance))
    }
}

/// Puts the reports of all ranks of a run of `calls` together, in the order of the model's sites.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "byte counts far below 2^52")]
pub fn summarise(ranks: &[Vec<SiteReport>], calls: u32) -> Vec<SiteSummary> {
    let mut order = Vec::new();
    let mut found: BTreeMap<(&str, Kind), Vec<&SiteReport>> = BTreeMap::new();
    for report in ranks.iter().flatten() {
        let Some(kind) = Kind::of(report.site.ask) else { continue };
        let key = (report.site.path.as_str(), kind);
        let of_site = found.entry(key).or_default();
        if of_site.is_empty() {
            order.push(key);
        }
        of_site.push(report);
    }
    let summary = |(path, kind)| {
        let reports = &found[&(path, kind)];
        let bytes =
            mean(reports.iter().map(|report| report.bytes as f64)) / f64::from(calls.max(1));
        let measured = reports.iter().map(|report| report.distances.len()).min().unwrap_or(0);
        let of_call =
            |call: usize| mean(reports.iter().map(|report| f64::from(report.distances[call])));
        SiteSummary {
            path: path.to_owned(),
            kind,
            halvings: reports[0].site.halvings,
            bytes,
            distances: (0..measured).map(of_call).collect(),
        }
    };
    order.into_iter().map(summary).collect()
}

/// Of the sites of `kind`: bytes a rank posts in a call, and the mean distance over the calls that
/// `count`.
#[must_use]
pub fn of_kind(sites: &[SiteSummary], kind: Kind, count: impl Fn(usize) -> bool) -> (f64, f64) {
    let of_kind = || sites.iter().filter(move |site| site.kind == kind);
    (of_kind().map(|site| site.bytes).sum(), mean(of_kind().map(|site| site.mean(&count))))
}

#[expect(clippy::cast_precision_loss, reason = "a few thousand values")]
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::plan::{SiteSpec, Stage};

    fn report(path: &str, ask: Ask, bytes: u64, distances: &[f32]) -> SiteReport {
        let (path, stage) = (path.to_owned(), Stage::Denoise);
        let site = SiteSpec { path, ask, stage, channels: 8, halvings: 1 };
        SiteReport { site, bytes, distances: distances.to_vec() }
    }

    #[test]
    fn ranks_are_averaged_and_sites_stay_in_order() {
        let conv = Ask::Halo { rows: 1 };
        let ranks = [
            vec![report("b", conv, 30, &[0.5, 0.25]), report("a", Ask::Gather, 60, &[1.0, 0.0])],
            vec![report("b", conv, 10, &[1.0, 0.75]), report("a", Ask::Gather, 60, &[0.5, 0.0])],
        ];
        let sites = summarise(&ranks, 2);
        let paths: Vec<&str> = sites.iter().map(|site| site.path.as_str()).collect();
        assert_eq!(paths, ["b", "a"]);
        assert_eq!(sites[0].distances, [0.75, 0.5]);
        assert!((sites[0].mean(|call| call > 1) - 0.5).abs() < 1e-9);
        assert_eq!(of_kind(&sites, Kind::Conv, |_| true), (10.0, 0.625));
        assert_eq!(of_kind(&sites, Kind::Norm, |_| true), (0.0, 0.0));
    }
}
