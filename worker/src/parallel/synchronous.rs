//! Every answer is of this call: peers' values are waited for.

use super::mesh::Mesh;
use super::nccl::Side;
use super::outbox::{Address, Needed, Outgoing};
use crate::device::Array;
use crate::kernels::Moment;
use crate::model::Result;
use crate::model::exchange::{DeviceMoments, Exchange, Halo, Moments, Rows};
use crate::model::tensor::Tensor;
use crate::profile::Work;
use protocol::job::GnVariance;
use protocol::{Call, Rank, Site};

/// A synchronous call.
#[derive(Debug)]
pub struct Synchronous<'a> {
    mesh: &'a mut Mesh,
    call: Call,
}

impl<'a> Synchronous<'a> {
    /// Model call `call` on `mesh`.
    pub fn new(mesh: &'a mut Mesh, call: Call) -> Self {
        mesh.enter(call);
        Self { mesh, call }
    }
}

impl Exchange for Synchronous<'_> {
    fn halo(&mut self, site: Site, x: &Tensor, rows: usize) -> Result<Halo> {
        watch_edges(self.mesh, site, x, rows)?;
        post_edges(self.mesh, (site, self.call, Needed::Now), x, rows)?;
        receive_edges(self.mesh, site, self.call, x, rows)
    }

    fn moments(&mut self, site: Site, own: &Moments) -> Result<Moments> {
        watch_moments(self.mesh, site, || Ok(own.clone()))?;
        self.mesh.remember(site, own);
        post_moments(self.mesh, (site, self.call, Needed::Now), own)?;
        let all = receive_moments(self.mesh, site, self.call, own)?;
        Ok(with_variance(self.mesh.gn_variance(), own, merge(&all)))
    }

    fn moments_on_device(&mut self, site: Site, own: &DeviceMoments) -> Result<DeviceMoments> {
        self.mesh.remember_on_device(site, own);
        self.mesh.share(site, self.call, &own.groups)?;
        self.mesh.settle()?;
        own.like(&self.moments(site, &own.to_host()?)?)
    }

    fn gather(&mut self, site: Site, own: &Tensor) -> Result<Vec<Rows>> {
        watch_tokens(self.mesh, site, own)?;
        post_tokens(self.mesh, (site, self.call, Needed::Now), own)?;
        receive_tokens(self.mesh, site, self.call, own)
    }
}

pub(super) fn watch_edges(mesh: &mut Mesh, site: Site, x: &Tensor, rows: usize) -> Result<()> {
    let [_, height, _, channels] = x.sizes()?;
    mesh.watch(site, channels, |group| {
        let (above, below) = group.neighbours();
        let mut edges = Vec::new();
        for from in [above.map(|_| 0), below.map(|_| height - rows)].into_iter().flatten() {
            edges.extend_from_slice(&Outgoing::rows(x, from, rows)?.into_host()?);
        }
        Ok(edges)
    })
}

/// Means and standard deviations, which have one unit.
#[expect(clippy::cast_possible_truncation, reason = "for a ratio to a few digits")]
pub(super) fn watch_moments(
    mesh: &mut Mesh,
    site: Site,
    own: impl FnOnce() -> Result<Moments>,
) -> Result<()> {
    mesh.watch(site, 1, |_| {
        let own = own()?;
        let deviation = |m2: f32| (f64::from(m2) / own.count).sqrt() as f32;
        Ok(own.groups.iter().flat_map(|moment| [moment.mean, deviation(moment.m2)]).collect())
    })
}

pub(super) fn watch_tokens(mesh: &mut Mesh, site: Site, own: &Tensor) -> Result<()> {
    mesh.watch(site, own.dim(2)?, |_| Ok(own.to_host()?.into_owned()))
}

/// For what site, of which call, and when the peers need it.
type Place = (Site, Call, Needed);

/// Sends the band's first rows to the rank above and its last to the one below.
pub(super) fn post_edges(
    mesh: &mut Mesh,
    (site, call, needed): Place,
    x: &Tensor,
    rows: usize,
) -> Result<()> {
    mesh.share_edges(site, call, x, rows)?;
    let (above, below) = mesh.group(site).neighbours();
    let last = x.dim(1)? - rows;
    for (peer, from) in [(above, 0), (below, last)] {
        let Some(peer) = peer.filter(|peer| !mesh.is_near(site, *peer)) else { continue };
        let to = Address { peers: vec![peer], site, call };
        mesh.post_to(to, Outgoing::rows(x, from, rows)?, needed)?;
    }
    Ok(())
}

/// The neighbours' edges as of `call`.
pub(super) fn receive_edges(
    mesh: &mut Mesh,
    site: Site,
    call: Call,
    x: &Tensor,
    rows: usize,
) -> Result<Halo> {
    let first_row = mesh.group(site).first_row(x.dim(1)?);
    let (above, below) = mesh.group(site).neighbours();
    let mut take = |peer: Option<Rank>, side: Side| -> Result<Option<Rows>> {
        let Some(peer) = peer else { return Ok(None) };
        if mesh.is_near(site, peer) {
            return Ok(Some(Rows::of_array(rows, mesh.near_edge((peer, side), site, call)?)));
        }
        let bytes = mesh.receive(peer, site, call)?;
        Ok(Some(Rows::landed(rows, mesh.wire(site), bytes)))
    };
    Ok(Halo { first_row, above: take(above, Side::Above)?, below: take(below, Side::Below)? })
}

/// Sends the band's statistics to every rank: mean and squared deviations of each group.
pub(super) fn post_moments(
    mesh: &mut Mesh,
    (site, call, needed): Place,
    own: &Moments,
) -> Result<()> {
    let values: Vec<f32> = own.groups.iter().flat_map(|moment| [moment.mean, moment.m2]).collect();
    mesh.post_all(site, call, Outgoing::Host(values.into()), needed)
}

/// The statistics of every band as of `call`, in rank order; the own ones are `own`.
pub(super) fn receive_moments(
    mesh: &mut Mesh,
    site: Site,
    call: Call,
    own: &Moments,
) -> Result<Vec<Moments>> {
    let mut all = receive_peers_moments(mesh, site, call, own.count)?;
    all.insert(mesh.group(site).own(), own.clone());
    Ok(all)
}

/// The statistics of the other bands as of `call`, in rank order; groups of the own band have `count`
/// values.
pub(super) fn receive_peers_moments(
    mesh: &mut Mesh,
    site: Site,
    call: Call,
    count: f64,
) -> Result<Vec<Moments>> {
    let mut all: Vec<Moments> = Vec::new();
    let group = mesh.group(site).clone();
    for (peer, rows_over_own) in group.peers().into_iter().zip(group.rows_over_own()) {
        let groups = receive_groups(mesh, (site, call), peer)?;
        all.push(Moments { count: count * rows_over_own, groups });
    }
    Ok(all)
}

/// The statistics of one other band.
pub(super) fn receive_groups(
    mesh: &mut Mesh,
    (site, call): (Site, Call),
    peer: Rank,
) -> Result<Vec<Moment>> {
    let values: Vec<f32> = if mesh.is_near(site, peer) {
        mesh.near_values(peer, (site, call))?
    } else {
        bytemuck::pod_collect_to_vec(&mesh.receive(peer, site, call)?[..])
    };
    let (pairs, _) = values.as_chunks::<2>();
    Ok(pairs.iter().map(|[mean, m2]| Moment { mean: *mean, m2: *m2 }).collect())
}

/// Statistics of all bands together, merged pairwise in rank order.
#[expect(clippy::cast_possible_truncation, reason = "statistics cross layers as f32")]
fn merge(all: &[Moments]) -> Moments {
    let count = all.iter().map(|band| band.count).sum();
    let merged = (0..all[0].groups.len()).map(|group| {
        let mut seen = 0.0;
        let (mut mean, mut m2) = (0.0, 0.0);
        for band in all {
            let moment = band.groups[group];
            let delta = f64::from(moment.mean) - mean;
            let both = seen + band.count;
            mean += delta * band.count / both;
            m2 += f64::from(moment.m2) + delta * delta * seen * band.count / both;
            seen = both;
        }
        Moment { mean: mean as f32, m2: m2 as f32 }
    });
    Moments { count, groups: merged.collect() }
}

/// The variance as asked for: the reference code multiplies by N/(N-1) with the own band's N,
/// also for statistics of the whole image.
#[expect(clippy::cast_possible_truncation, reason = "statistics cross layers as f32")]
pub(super) fn with_variance(variance: GnVariance, own: &Moments, mut whole: Moments) -> Moments {
    if variance == GnVariance::Reference {
        let factor = (own.count / (own.count - 1.0)) as f32;
        whole.groups.iter_mut().for_each(|moment| moment.m2 *= factor);
    }
    whole
}

/// The same on a device, of a band whose groups have `own` values each.
pub(super) fn with_variance_on_device(
    variance: GnVariance,
    own: f64,
    whole: DeviceMoments,
) -> Result<DeviceMoments> {
    if variance == GnVariance::Population {
        return Ok(whole);
    }
    let x = whole.on_device()?;
    let groups = x.make(Work::Norm, || {
        let (mean, m2) = (x.values.narrow(1, 0, 1)?, x.values.narrow(1, 1, 1)?);
        Array::cat(&[mean, (m2 * (own / (own - 1.0)))?], 1)
    })?;
    Ok(DeviceMoments { groups, ..whole })
}

/// Sends the band's tokens to every rank.
pub(super) fn post_tokens(
    mesh: &mut Mesh,
    (site, call, needed): Place,
    own: &Tensor,
) -> Result<()> {
    mesh.share(site, call, own)?;
    mesh.post_all(site, call, Outgoing::of(own), needed)
}

/// All tokens in rank order, the peers' as of `call`, where they landed; in one part if that is one place.
pub(super) fn receive_tokens(
    mesh: &mut Mesh,
    site: Site,
    call: Call,
    own: &Tensor,
) -> Result<Vec<Rows>> {
    if let Some(all) = mesh.joined(site, call, own)? {
        return Ok(vec![Rows::of_array(all.dim(1)?, all)]);
    }
    let [batch, _, channels] = own.sizes()?;
    let wire = mesh.wire(site);
    let token_bytes = batch * channels * wire.bytes();
    let mut parts = Vec::new();
    for peer in mesh.group(site).peers() {
        if mesh.is_near(site, peer) {
            let tokens = mesh.near_rows(peer, (site, call), own)?;
            parts.push(Rows::of_array(tokens.dim(1)?, tokens));
            continue;
        }
        let bytes = mesh.receive(peer, site, call)?;
        parts.push(Rows::landed(bytes.len() / token_bytes, wire, bytes));
    }
    parts.insert(mesh.group(site).own(), Rows::own(own, 1)?);
    Ok(parts)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "test values are small")]
mod tests {
    use super::*;

    fn moments(values: &[f64]) -> Moments {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let m2 = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        Moments { count, groups: vec![Moment { mean: mean as f32, m2: m2 as f32 }] }
    }

    #[test]
    fn merging_unequal_bands_gives_the_statistics_of_all_values() {
        let values: Vec<f64> = (0..60).map(|index| 300.0 + f64::from(index * index % 17)).collect();
        let merged =
            merge(&[moments(&values[..10]), moments(&values[10..15]), moments(&values[15..])]);
        let whole = moments(&values);
        assert!((merged.count - 60.0).abs() < f64::EPSILON);
        assert!((merged.groups[0].mean - whole.groups[0].mean).abs() < 1e-4);
        assert!((merged.groups[0].m2 / whole.groups[0].m2 - 1.0).abs() < 1e-5);
    }

    #[test]
    fn the_references_variance_is_that_of_the_local_count() {
        let own = moments(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        let whole = with_variance(GnVariance::Reference, &own, own.clone());
        assert!((whole.groups[0].m2 / own.groups[0].m2 - 1.25).abs() < 1e-6);
    }
}
