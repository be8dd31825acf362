//! Naive patch parallelism, the paper's baseline: each rank predicts a strip of the image as if it
//! were an image of its own, and the strips are put together after every call. Fast, and with
//! seams.

use super::mesh::Mesh;
use crate::model::Result;
use crate::model::tensor::Tensor;
use protocol::plan::{Ask, Axis, Branch, Plan, Strip};
use protocol::{Call, Fault, FaultKind, Rank};

/// The strip of `x` [batch, rows, columns, channels] that a rank predicts.
///
/// # Errors
/// If the strip is not within `x`.
pub fn cut(x: &Tensor, strip: Strip) -> Result<Tensor> {
    let Strip { axis, range } = strip;
    x.narrow(dim(axis), to_usize(range.top), to_usize(range.rows))
}

/// The whole image's predictions [1 or 2, rows, columns, channels], the negative's first, from the
/// strips of all ranks, of which `rank` computed `own`.
///
/// # Errors
/// If a peer is lost or the run is cancelled.
pub fn join(mesh: &mut Mesh, plan: &Plan, rank: Rank, call: Call, own: &Tensor) -> Result<Tensor> {
    let no_strip = |rank| Fault::new(FaultKind::PlanMismatch, format!("{rank} has no strip"));
    let Strip { axis, .. } = plan.strip(rank, call).ok_or_else(|| no_strip(rank))?;
    let site = mesh.site_of(Ask::Strip(axis))?;
    for peer in plan.ranks().filter(|peer| *peer != rank) {
        mesh.post(peer, site, call, own.view())?;
    }
    let [_, rows, columns, channels] = own.sizes()?;
    let mut branches = Vec::new();
    for branch in [Branch::Whole, Branch::Negative, Branch::Prompt] {
        let mut strips = Vec::new();
        for peer in plan.ranks() {
            if plan.member(peer).is_none_or(|member| member.branch != branch) {
                continue;
            }
            if peer == rank {
                strips.push(own.clone());
                continue;
            }
            let Strip { range, .. } = plan.strip(peer, call).ok_or_else(|| no_strip(peer))?;
            let batch = to_usize(plan.batch(peer));
            let shape = match axis {
                Axis::Rows => [batch, to_usize(range.rows), columns, channels],
                Axis::Columns => [batch, rows, to_usize(range.rows), channels],
            };
            strips.push(mesh.receive_rows(peer, site, call, (own, shape))?);
        }
        if !strips.is_empty() {
            branches.push(Tensor::cat(&strips, dim(axis))?);
        }
    }
    Tensor::cat(&branches, 0)
}

/// Of [batch, rows, columns, channels].
fn dim(axis: Axis) -> usize {
    match axis {
        Axis::Rows => 1,
        Axis::Columns => 2,
    }
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).expect("this program needs at least 32-bit addresses")
}
