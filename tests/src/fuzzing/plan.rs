//! Plans, as the coordinator sends them.

use super::sample;
use protocol::codec;
use protocol::plan::{
    Ask, Branch, Collectives, Digest, Fabric, Plan, SiteSpec, SlotTable, Stage, rows_sent,
};

/// A plan as it is, and with bands that are a split of its image: if it passes its check, all that ranks
/// derive from it fits together (S-3, N-1, N-2), and none of its numbers overflows.
pub fn plan(data: &[u8]) {
    let Ok(mut plan) = codec::decode_body::<Plan>(data) else { return };
    examine(&plan);
    if plan.geometry.check().is_ok() {
        sample::tile(&mut plan);
    }
    examine(&plan);
}

fn examine(plan: &Plan) {
    if let Err(error) = plan.check() {
        assert!(!error.to_string().is_empty()); // it can be said, whatever the numbers are
        return;
    }
    let sites = sample::sites();
    tables_agree(plan, &sites);
    whole_rows_arrive_once(plan);
    fabrics_agree(plan);
    collectives_agree(plan, &sites);
    assert_eq!(Digest::new(plan, &sites), Digest::new(&plan.clone(), &sites));
}

/// S-3: what one rank posts to another is what lands there.
fn tables_agree(plan: &Plan, sites: &[SiteSpec]) {
    let tables: Vec<SlotTable> =
        plan.ranks().map(|rank| SlotTable::new(plan, sites, rank)).collect();
    let mut posts: Vec<_> = tables.iter().flat_map(|table| &table.posts).collect();
    let mut lands: Vec<_> = tables.iter().flat_map(|table| &table.lands).collect();
    posts.sort_unstable_by_key(|spec| (spec.slot, spec.to));
    lands.sort_unstable_by_key(|spec| (spec.slot, spec.to));
    assert_eq!(posts, lands);
    assert!(posts.windows(2).all(|two| (two[0].slot, two[0].to) != (two[1].slot, two[1].to)));
    let stages = [Stage::Denoise, Stage::Input, Stage::Latent, Stage::Decode, Stage::Tiles];
    for table in &tables {
        let bytes = stages.map(|stage| table.landing_bytes(sites, stage)).iter().sum::<usize>();
        assert_eq!(bytes, table.lands.iter().map(|spec| spec.bytes).sum::<usize>());
    }
}

/// S-3: rows that a rank lacks of the other branch's prediction, or of what it decodes, come from one peer.
fn whole_rows_arrive_once(plan: &Plan) {
    for to in plan.ranks() {
        let rows = |ask| -> u32 {
            let sent = plan.ranks().filter_map(|from| rows_sent(plan, ask, from, to));
            sent.map(|band| band.rows).sum()
        };
        let member = plan.member(to).expect("a rank of the plan");
        let split = member.branch != Branch::Whole && !plan.is_naive();
        assert_eq!(rows(Ask::Prediction), if split { member.band.rows } else { 0 }, "to {to}");
        let lacking = if member.has_what_it_decodes() { 0 } else { member.decodes.rows };
        assert_eq!(rows(Ask::Latent), lacking, "to {to}");
    }
}

/// Both ends of a pair exchange over the same fabric.
fn fabrics_agree(plan: &Plan) {
    for one in plan.ranks() {
        for other in plan.ranks().skip(one.index() + 1) {
            assert_eq!(plan.fabric(one, other), plan.fabric(other, one), "{one}, {other}");
            assert_eq!(plan.link_fabric(one, other), plan.link_fabric(other, one));
            assert_ne!(plan.link_fabric(one, other), Some(Fabric::Nccl), "{one}, {other}");
        }
    }
}

/// N-1 and N-2: a group's ranks do the same operations, and what crosses in them is in no table.
fn collectives_agree(plan: &Plan, sites: &[SiteSpec]) {
    for rank in plan.ranks() {
        let Some(own) = Collectives::new(plan, sites, rank) else { continue };
        let place = own.place(rank).expect("a group holds its ranks");
        let table = SlotTable::new(plan, sites, rank);
        for (site, _) in (0..).map(protocol::Site).zip(sites) {
            let Some(operation) = own.operation(site) else { continue };
            assert!(!operation.steps(place).is_empty() || operation.buffer_bytes() > 0);
            let linked = |spec: &&protocol::plan::SlotSpec| {
                spec.slot.site == site && own.place(spec.to).is_some()
            };
            assert_eq!(table.posts.iter().find(linked), None, "{rank} posts to its group");
        }
        for peer in &own.ranks {
            assert_eq!(Collectives::new(plan, sites, *peer).as_ref(), Some(&own), "{rank}, {peer}");
        }
    }
}
