//! Answers of the previous call: peers' values were sent while they computed, so nobody waits.

use super::mesh::Mesh;
use super::outbox::{Needed, Outgoing};
use super::synchronous::{
    Synchronous, post_edges, post_moments, post_tokens, receive_edges, receive_moments,
    receive_peers_moments, receive_tokens, watch_edges, watch_moments, watch_tokens, with_variance,
    with_variance_on_device,
};
use crate::device::{Array, norm};
use crate::kernels::Moment;
use crate::model::Result;
use crate::model::exchange::{DeviceMoments, Exchange, Halo, Moments, Rows};
use crate::model::tensor::Tensor;
use crate::profile::Work;
use bytemuck::cast_slice;
use candle_core::DType;
use protocol::job::Mode;
use protocol::{Call, Site};

/// A displaced call.
#[derive(Debug)]
pub struct Displaced<'a> {
    mesh: &'a mut Mesh,
    mode: Mode,
    call: Call,
    from: Call,
    posts: bool,
}

impl<'a> Displaced<'a> {
    /// Model call `call` on `mesh`, reading what was sent in the call `from`: the one before it, but
    /// for [`Mode::NoSync`] the last synchronous one. `last` says that no call will read what this
    /// one would send.
    pub fn new(mesh: &'a mut Mesh, mode: Mode, call: Call, from: Call, last: bool) -> Self {
        mesh.enter(call);
        Self { mesh, mode, call, from, posts: !last && mode != Mode::NoSync }
    }

    /// The peers' statistics of the call before, in rank order, with `own` in the own place.
    fn stale_moments(&mut self, site: Site, own: &Moments, now: &Moments) -> Result<Vec<Moments>> {
        let stale = receive_moments(self.mesh, site, self.from, own)?;
        if self.posts {
            post_moments(self.mesh, (site, self.call, Needed::Later), now)?;
        }
        Ok(stale)
    }
}

impl Exchange for Displaced<'_> {
    fn halo(&mut self, site: Site, x: &Tensor, rows: usize) -> Result<Halo> {
        if self.mesh.is_input(site) {
            return Synchronous::new(self.mesh, self.call).halo(site, x, rows);
        }
        watch_edges(self.mesh, site, x, rows)?;
        let halo = receive_edges(self.mesh, site, self.from, x, rows)?;
        if self.posts {
            post_edges(self.mesh, (site, self.call, Needed::Later), x, rows)?;
        }
        Ok(halo)
    }

    fn moments(&mut self, site: Site, own: &Moments) -> Result<Moments> {
        if matches!(self.mode, Mode::SyncGn | Mode::FullSync) {
            return Synchronous::new(self.mesh, self.call).moments(site, own);
        }
        watch_moments(self.mesh, site, || Ok(own.clone()))?;
        let whole = match self.mode {
            // The mean of what all ranks had, plus how the own band changed since.
            Mode::Corrected => {
                let before = self.mesh.remember(site, own).unwrap_or_else(|| own.clone());
                corrected(&self.stale_moments(site, &before, own)?, &before, own)
            }
            Mode::Stale => mean(&self.stale_moments(site, own, own)?),
            // Statistics of the own band alone have torch's variance in the reference, too.
            _ => return Ok(own.clone()),
        };
        Ok(with_variance(self.mesh.gn_variance(), own, whole))
    }

    /// The same as [`Self::moments`], but for what waits for nobody: the device adds its own statistics
    /// to what the host knows of the peers' stale ones.
    fn moments_on_device(&mut self, site: Site, own: &DeviceMoments) -> Result<DeviceMoments> {
        if matches!(self.mode, Mode::SyncGn | Mode::FullSync) {
            return Synchronous::new(self.mesh, self.call).moments_on_device(site, own);
        }
        watch_moments(self.mesh, site, || own.to_host())?;
        let before = match self.mode {
            Mode::Corrected => self.mesh.remember_on_device(site, own),
            Mode::Stale => None,
            _ => return Ok(own.clone()),
        };
        let over_own = self.mesh.group(site).rows_over_own();
        let count = own.count + over_own.iter().map(|rows| own.count * rows).sum::<f64>();
        let shares = shares(self.mesh, (site, self.from), own, count)?;
        if self.posts {
            self.mesh.share(site, self.call, &own.groups)?;
            self.mesh.post_all(site, self.call, Outgoing::of(&own.groups), Needed::Later)?;
        }
        let whole = on_device(&shares, before.as_ref().unwrap_or(own), own, count)?;
        with_variance_on_device(self.mesh.gn_variance(), own.count, whole)
    }

    fn gather(&mut self, site: Site, own: &Tensor) -> Result<Vec<Rows>> {
        watch_tokens(self.mesh, site, own)?;
        let all = receive_tokens(self.mesh, site, self.from, own)?;
        if self.posts {
            post_tokens(self.mesh, (site, self.call, Needed::Later), own)?;
        }
        Ok(all)
    }
}

/// What the peers' statistics of the call `from` add to raw ones of the whole image, whose groups have
/// `count` values, [groups, 2]. In rank order, and in one arithmetic wherever they are (S-5): what the host
/// knows it adds up, what came by NCCL the device does.
fn shares(
    mesh: &mut Mesh,
    (site, from): (Site, Call),
    own: &DeviceMoments,
    count: f64,
) -> Result<Array> {
    let near = mesh.group(site).peers().into_iter().any(|peer| mesh.is_near(site, peer));
    let x = own.on_device()?;
    if !near {
        let peers = receive_peers_moments(mesh, site, from, own.count)?;
        let mut shares = vec![0.0; own.groups.elem_count()];
        for band in peers {
            for (moment, share) in band.groups.iter().zip(shares.chunks_exact_mut(2)) {
                // As `norm::raw` and candle's division compute it.
                let mean = f64::from(moment.mean);
                let square = f64::from(moment.m2) * (1.0 / band.count) + mean * mean;
                share[0] += mean * (band.count / count);
                share[1] += square * (band.count / count);
            }
        }
        return Ok(x.device.bring(cast_slice(&shares), DType::F64, x.values.dims())?);
    }
    let mut shares = x.values.zeros_like()?.to_dtype(DType::F64)?;
    let group = mesh.group(site).clone();
    for (peer, rows_over_own) in group.peers().into_iter().zip(group.rows_over_own()) {
        let of_peer = own.count * rows_over_own;
        let moments = if mesh.is_near(site, peer) {
            mesh.near_rows(peer, (site, from), &own.groups)?.get(0)?
        } else {
            let bytes = mesh.receive(peer, site, from)?;
            x.device.bring(&bytes, DType::F32, x.values.dims())?
        };
        shares = (shares + (norm::raw(&moments, of_peer)? * (of_peer / count))?)?;
    }
    Ok(shares)
}

/// [`corrected`] on a device, of the peers' shares and of the own statistics, before and now: groups of
/// the whole image have `count` values.
fn on_device(
    shares: &Array,
    before: &DeviceMoments,
    own: &DeviceMoments,
    count: f64,
) -> Result<DeviceMoments> {
    let (now, before) = (own.on_device()?, before.on_device()?.values);
    let groups = now.make(Work::Norm, || {
        // What the own band adds: its share of before, and how it changed since.
        let share = (norm::raw(before, own.count)? * (own.count / count - 1.0))?;
        let raw = ((norm::raw(now.values, own.count)? + share)? + shares)?;
        norm::of_raw(&raw, count, now.values, own.count)
    })?;
    Ok(DeviceMoments { count, groups })
}

/// Mean and mean of squares of a group, in f64: a difference of large squares is taken below.
fn raw(moments: &Moments, group: usize) -> (f64, f64) {
    let moment = moments.groups[group];
    let mean = f64::from(moment.mean);
    (mean, f64::from(moment.m2) / moments.count + mean * mean)
}

/// The statistics of all bands together: the mean of their means and mean squares.
fn mean(bands: &[Moments]) -> Moments {
    // Without a change of one's own nothing is corrected.
    corrected(bands, &bands[0], &bands[0])
}

#[expect(clippy::cast_possible_truncation, reason = "statistics cross layers as f32")]
fn corrected(stale: &[Moments], own_before: &Moments, own: &Moments) -> Moments {
    let count: f64 = stale.iter().map(|band| band.count).sum();
    let groups = (0..own.groups.len()).map(|group| {
        let (now, before) = (raw(own, group), raw(own_before, group));
        let (mut mean, mut square) = (now.0 - before.0, now.1 - before.1);
        for band in stale {
            let (band_mean, band_square) = raw(band, group);
            mean += band_mean * band.count / count;
            square += band_square * band.count / count;
        }
        // The correction can overshoot; the own band's variance is then the better guess.
        let own_variance = f64::from(own.groups[group].m2) / own.count;
        let variance = Some(square - mean * mean).filter(|variance| *variance >= 0.0);
        let variance = variance.unwrap_or(own_variance);
        Moment { mean: mean as f32, m2: (variance * count) as f32 }
    });
    Moments { count, groups: groups.collect() }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "test values are small")]
mod tests {
    use super::*;

    fn moments(count: f64, mean: f32, variance: f32) -> Moments {
        let m2 = variance * count as f32;
        Moments { count, groups: vec![Moment { mean, m2 }] }
    }

    #[test]
    fn s2_without_change_the_corrected_statistics_are_those_of_the_whole() {
        let bands = [moments(8.0, 1.0, 2.0), moments(8.0, 3.0, 4.0)];
        let whole = corrected(&bands, &bands[0], &bands[0]);
        assert!((whole.groups[0].mean - 2.0).abs() < 1e-6);
        assert!((f64::from(whole.groups[0].m2) / whole.count - 4.0).abs() < 1e-6);
    }

    #[test]
    fn a_negative_variance_falls_back_to_the_own_bands() {
        let before = moments(8.0, 10.0, 1.0);
        let now = moments(8.0, 0.0, 0.5);
        let bands = [before.clone(), moments(8.0, 9.0, 1.0)];
        let whole = corrected(&bands, &before, &now);
        assert!((f64::from(whole.groups[0].m2) / whole.count - 0.5).abs() < 1e-6);
    }
}
