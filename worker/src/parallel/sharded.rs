//! Tensor parallelism, a baseline: ranks hold the whole image and a part of each layer, and add up what
//! their parts give. Every answer is of this call.

use super::mesh::Mesh;
use super::outbox::{Needed, Outgoing};
use super::wire;
use crate::model::Result;
use crate::model::exchange::{Dense, Exchange, Halo, Moments, Rows, SumSites};
use crate::model::tensor::Tensor;
use crate::profile::Work;
use protocol::plan::Shard;
use protocol::{Call, Site};

/// A call of a network in shards.
#[derive(Debug)]
pub struct Sharded<'a> {
    mesh: &'a mut Mesh,
    call: Call,
}

impl<'a> Sharded<'a> {
    /// Model call `call` on `mesh`.
    pub fn new(mesh: &'a mut Mesh, call: Call) -> Self {
        Self { mesh, call }
    }
}

impl Exchange for Sharded<'_> {
    fn halo(&mut self, site: Site, x: &Tensor, rows: usize) -> Result<Halo> {
        Dense.halo(site, x, rows)
    }

    fn moments(&mut self, site: Site, own: &Moments) -> Result<Moments> {
        Dense.moments(site, own)
    }

    fn gather(&mut self, site: Site, own: &Tensor) -> Result<Vec<Rows>> {
        Dense.gather(site, own)
    }

    /// Each rank adds up its part of the result, in rank order, and sends it to the others: (n-1)/n of
    /// the result's size crosses twice, where everyone's summands to everyone would be n-1 times it.
    fn sum(&mut self, sites: SumSites, own: &Tensor) -> Result<Tensor> {
        let values = own.view();
        let group = self.mesh.group(sites.summand).clone();
        let of = group.ranks().len();
        let part = |index| Shard { index, of }.range(values.len());
        for (index, peer) in group.ranks().iter().enumerate() {
            if index != group.own() {
                self.mesh.post(*peer, sites.summand, self.call, &values[part(index)])?;
            }
        }
        let mut sum = vec![0.0; part(group.own()).len()];
        for (index, peer) in group.ranks().iter().enumerate() {
            if index == group.own() {
                add(&mut sum, &values[part(index)]);
            } else {
                let summand = self.mesh.receive(*peer, sites.summand, self.call)?;
                add(&mut sum, &bytemuck::pod_collect_to_vec::<u8, f32>(&summand));
            }
        }
        self.mesh.post_all(sites.sum, self.call, Outgoing::Host((&sum).into()), Needed::Now)?;
        let mut sums = Vec::new();
        for peer in group.peers() {
            sums.push(self.mesh.receive(peer, sites.sum, self.call)?);
        }
        own.make(Work::Copy, own.shape(), |out| {
            let mut theirs = sums.iter();
            for index in 0..of {
                let out = &mut out[part(index)];
                if index == group.own() {
                    out.copy_from_slice(&sum);
                } else if let Some(bytes) = theirs.next() {
                    wire::copy(bytes, out);
                }
            }
            Ok(())
        })
    }
}

fn add(sum: &mut [f32], summand: &[f32]) {
    sum.iter_mut().zip(summand).for_each(|(sum, value)| *sum += value);
}
