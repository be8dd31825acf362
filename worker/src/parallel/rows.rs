//! Whole rows of the latent between ranks: the other branch's prediction of the own band, and the
//! rows to decode. Both are of this call and waited for; they are a few KiB.

use super::mesh::Mesh;
use super::outbox::{Address, Needed, Outgoing};
use crate::model::Result;
use crate::model::tensor::Tensor;
use protocol::plan::{Ask, Band, Branch, Member, Plan, rows_sent};
use protocol::{Call, Fault, FaultKind, Rank};

/// The batch [negative's, prompt's] of predictions [2, rows, columns, channels] for the band of
/// `rank`, which computed `own` [1, rows, columns, channels] of them; `own` itself if it computed
/// both or there is only one.
///
/// # Errors
/// If a peer is lost or the run is cancelled.
pub fn meet(mesh: &mut Mesh, plan: &Plan, rank: Rank, call: Call, own: Tensor) -> Result<Tensor> {
    let member = member(plan, rank)?;
    if member.branch == Branch::Whole {
        return Ok(own);
    }
    let place = (plan, rank, call, Ask::Prediction);
    send(mesh, place, &own)?;
    let other = Tensor::cat(&receive(mesh, place, &own)?, 1)?;
    let pair = if member.branch == Branch::Negative { [own, other] } else { [other, own] };
    Tensor::cat(&pair, 0)
}

/// The latent rows [1, rows, columns, channels] that `rank` decodes, given those of its band.
///
/// # Errors
/// If a peer is lost or the run is cancelled.
pub fn to_decode(
    mesh: &mut Mesh,
    plan: &Plan,
    rank: Rank,
    call: Call,
    latent: &Tensor,
) -> Result<Tensor> {
    let member = member(plan, rank)?;
    let place = (plan, rank, call, Ask::Latent);
    send(mesh, place, latent)?;
    if member.has_what_it_decodes() {
        let from = to_usize(member.decodes.top - member.band.top);
        return latent.narrow(1, from, to_usize(member.decodes.rows));
    }
    let mut parts = receive(mesh, place, latent)?;
    // Its own rows, if it is one of those that report, belong between those of the ranks above and
    // below it.
    if let Some(rows) = member.band.overlap(member.decodes).filter(|_| plan.reports(rank)) {
        let own = latent.narrow(1, to_usize(rows.top - member.band.top), to_usize(rows.rows))?;
        let above = plan.ranks().take_while(|peer| *peer < rank);
        let above = above.filter(|peer| rows_sent(plan, Ask::Latent, *peer, rank).is_some());
        parts.insert(above.count(), own);
    }
    Tensor::cat(&parts, 1)
}

/// Plan, rank, call and site.
type Place<'a> = (&'a Plan, Rank, Call, Ask);

/// Sends every peer the rows of `own` that it needs.
fn send(mesh: &mut Mesh, (plan, rank, call, ask): Place<'_>, own: &Tensor) -> Result<()> {
    let site = mesh.site_of(ask)?;
    let band = member(plan, rank)?.band;
    for peer in plan.ranks().filter(|peer| *peer != rank) {
        if let Some(Band { top, rows }) = rows_sent(plan, ask, rank, peer) {
            let rows = Outgoing::rows(own, to_usize(top - band.top), to_usize(rows))?;
            let to = Address { peers: vec![peer], site, call };
            mesh.post_to(to, rows, Needed::Now)?;
        }
    }
    Ok(())
}

/// What peers sent, from the top of the image to its bottom.
fn receive(
    mesh: &mut Mesh,
    (plan, rank, call, ask): Place<'_>,
    own: &Tensor,
) -> Result<Vec<Tensor>> {
    let site = mesh.site_of(ask)?;
    let [batch, _, columns, channels] = own.sizes()?;
    let mut parts = Vec::new();
    for peer in plan.ranks().filter(|peer| *peer != rank) {
        if let Some(band) = rows_sent(plan, ask, peer, rank) {
            let shape = [batch, to_usize(band.rows), columns, channels];
            parts.push(mesh.receive_rows(peer, site, call, (own, shape))?);
        }
    }
    Ok(parts)
}

fn member(plan: &Plan, rank: Rank) -> Result<&Member> {
    let missing = || Fault::new(FaultKind::PlanMismatch, format!("the plan has no {rank}"));
    Ok(plan.member(rank).ok_or_else(missing)?)
}

fn to_usize(value: u32) -> usize {
    usize::try_from(value).expect("this program needs at least 32-bit addresses")
}
