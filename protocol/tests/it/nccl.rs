//! N-1 and N-2 for any plan and any GPUs: what crosses by NCCL, and what over links.

use crate::plan::{plans, sites};
use proptest::collection::vec;
use proptest::prelude::*;
use protocol::plan::{
    Ask, Collectives, Fabric, NcclDevice, Offer, Operation, Plan, SiteSpec, SlotTable, Step,
};
use protocol::{Rank, Site};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

fn gpu(host: u8, number: u8) -> Offer {
    let (host, gpu) = (format!("host {host}"), format!("GPU {host}.{number}"));
    Offer::Nccl(NcclDevice { host, gpu, version: 22_803 })
}

/// Plans whose ranks have GPUs of three machines with four each, of which some are shared, or have none.
fn plans_on_gpus() -> impl Strategy<Value = Plan> {
    (plans(), vec((0_u8..4, 0_u8..4), 14)).prop_map(|(mut plan, gpus)| {
        for (member, (host, number)) in plan.members.iter_mut().zip(gpus) {
            member.offers = vec![Offer::Tcp];
            if host < 3 {
                member.offers.push(gpu(host, number));
            }
        }
        plan
    })
}

/// Every slot of the plan as (site, from, to) and its bytes, but for those that only groups have.
fn slots(plan: &Plan, sites: &[SiteSpec]) -> BTreeMap<(Site, Rank, Rank), usize> {
    let mut slots = BTreeMap::new();
    for rank in plan.ranks() {
        let table = SlotTable::new(plan, sites, rank);
        let of_all = |site: Site| sites[usize::from(site.0)].ask != Ask::Communicator;
        for spec in table.posts.iter().filter(|spec| of_all(spec.slot.site)) {
            let before = slots.insert((spec.slot.site, rank, spec.to), spec.bytes);
            assert_eq!(before, None, "a slot twice");
        }
    }
    slots
}

/// The bytes that one rank sends another in `operation`, by place.
fn sent(operation: &Operation, ranks: usize) -> BTreeMap<(usize, usize), usize> {
    let mut sent = BTreeMap::new();
    for own in 0..ranks {
        for step in operation.steps(own) {
            match step {
                Step::AllGather(all) => {
                    for peer in (0..ranks).filter(|peer| *peer != own) {
                        *sent.entry((own, peer)).or_default() += all.len() / ranks;
                    }
                }
                Step::Send(peer, bytes) => *sent.entry((own, peer)).or_default() += bytes.len(),
                Step::Receive(..) => {}
            }
        }
    }
    sent
}

/// What the buffer of each rank holds after `operation`, given what it held before.
fn done(operation: &Operation, mut buffers: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let ranks = buffers.len();
    let mut under_way: BTreeMap<(usize, usize), VecDeque<Vec<u8>>> = BTreeMap::new();
    let part = |all: &Range<usize>, place: usize| {
        let bytes = all.len() / ranks;
        all.start + place * bytes..all.start + (place + 1) * bytes
    };
    for (own, buffer) in buffers.iter().enumerate() {
        for step in operation.steps(own) {
            let peers: Vec<(usize, Range<usize>)> = match step {
                Step::AllGather(all) => {
                    let peers = (0..ranks).filter(|peer| *peer != own);
                    peers.map(|peer| (peer, part(&all, own))).collect()
                }
                Step::Send(peer, bytes) => vec![(peer, bytes)],
                Step::Receive(..) => vec![],
            };
            for (peer, bytes) in peers {
                let value = buffer[bytes].to_vec();
                under_way.entry((own, peer)).or_default().push_back(value);
            }
        }
    }
    for (own, buffer) in buffers.iter_mut().enumerate() {
        for step in operation.steps(own) {
            let peers: Vec<(usize, Range<usize>)> = match step {
                Step::AllGather(all) => {
                    let peers = (0..ranks).filter(|peer| *peer != own);
                    peers.map(|peer| (peer, part(&all, peer))).collect()
                }
                Step::Receive(peer, bytes) => vec![(peer, bytes)],
                Step::Send(..) => vec![],
            };
            for (peer, bytes) in peers {
                let value = under_way.get_mut(&(peer, own)).and_then(VecDeque::pop_front);
                buffer[bytes].copy_from_slice(&value.expect("what is received was sent"));
            }
        }
    }
    assert!(under_way.values().all(VecDeque::is_empty), "what is sent is received");
    buffers
}

/// What the rank at `own` computed, in its place.
fn begun(operation: &Operation, own: usize) -> Vec<u8> {
    let mut buffer = vec![0; operation.buffer_bytes()];
    let value = u8::try_from(own + 1).expect("few ranks");
    match operation {
        Operation::Gather { images, parts } => {
            let whole: usize = parts.iter().sum();
            for image in 0..*images {
                let start = image * whole + parts[..own].iter().sum::<usize>();
                buffer[start..start + parts[own]].fill(value);
            }
        }
        Operation::Edges { bytes, .. } => {
            buffer[..*bytes].fill(value);
            buffer[*bytes..2 * bytes].fill(100 + value);
        }
    }
    buffer
}

fn check(operation: &Operation, buffers: &[Vec<u8>]) {
    let ranks = buffers.len();
    let number = |place: usize| u8::try_from(place + 1).expect("few ranks");
    for (own, buffer) in buffers.iter().enumerate() {
        match operation {
            Operation::Gather { images, parts } => {
                let image = parts.iter().enumerate();
                let image = image.flat_map(|(place, part)| vec![number(place); *part]);
                assert_eq!(*buffer, image.collect::<Vec<_>>().repeat(*images));
            }
            Operation::Edges { uppers, bytes } => {
                let above = own.checked_sub(1).filter(|above| uppers.contains(above));
                let below = Some(own + 1).filter(|_| uppers.contains(&own) && own + 1 < ranks);
                let above = above.map_or(0, |above| 100 + number(above));
                assert_eq!(buffer[2 * bytes..3 * bytes], vec![above; *bytes]);
                assert_eq!(buffer[3 * bytes..], vec![below.map_or(0, number); *bytes]);
            }
        }
    }
}

proptest! {
    #[test]
    fn n1_every_slot_crosses_by_nccl_or_a_link_and_once(plan in plans_on_gpus()) {
        let sites = sites();
        let linked = slots(&plan, &sites);
        let mut all = linked.clone();
        let mut groups: Vec<Collectives> =
            plan.ranks().filter_map(|rank| Collectives::new(&plan, &sites, rank)).collect();
        groups.dedup_by_key(|group| group.ranks.clone());
        groups.sort_by_key(|group| group.ranks.clone());
        groups.dedup_by_key(|group| group.ranks.clone());
        for group in &groups {
            for site in (0..sites.len()).map(|site| Site(u16::try_from(site).expect("few sites"))) {
                let Some(operation) = group.operation(site) else { continue };
                for ((from, to), bytes) in sent(operation, group.ranks.len()) {
                    let slot = (site, group.ranks[from], group.ranks[to]);
                    prop_assert_eq!(all.insert(slot, bytes), None, "by NCCL and a link, or twice");
                }
            }
        }
        let mut alone = plan.clone();
        alone.members.iter_mut().for_each(|member| member.offers = vec![Offer::Tcp]);
        prop_assert_eq!(all, slots(&alone, &sites));
    }

    #[test]
    fn n2_a_group_has_the_same_operations_and_what_is_sent_is_received(plan in plans_on_gpus()) {
        let sites = sites();
        for rank in plan.ranks() {
            let Some(group) = Collectives::new(&plan, &sites, rank) else { continue };
            prop_assert!(group.ranks.len() > 1 && group.ranks.is_sorted());
            for peer in &group.ranks {
                let theirs = Collectives::new(&plan, &sites, *peer);
                prop_assert_eq!(theirs.as_ref(), Some(&group));
            }
            for site in (0..sites.len()).map(|site| Site(u16::try_from(site).expect("few sites"))) {
                let Some(operation) = group.operation(site) else { continue };
                let begun = (0..group.ranks.len()).map(|own| begun(operation, own)).collect();
                check(operation, &done(operation, begun));
            }
        }
    }

    #[test]
    fn ranks_of_a_group_are_of_one_branch_and_machine_with_a_gpu_each(plan in plans_on_gpus()) {
        let device = |rank: Rank| plan.members[rank.index()].offers.iter().find_map(|offer| {
            if let Offer::Nccl(device) = offer { Some(device) } else { None }
        });
        for rank in plan.ranks() {
            for peer in plan.nccl_group(rank).into_iter().filter(|peer| *peer != rank) {
                prop_assert!(device(rank).zip(device(peer)).is_some_and(|(own, theirs)| own.reaches(theirs)));
                let branch = |rank: Rank| plan.members[rank.index()].branch;
                prop_assert_eq!(branch(rank), branch(peer));
                prop_assert_eq!(plan.fabric(rank, peer), Some(Fabric::Nccl));
                prop_assert_eq!(plan.link_fabric(rank, peer), Some(Fabric::Tcp));
            }
        }
    }
}

#[test]
fn equal_parts_are_gathered_in_place_and_unequal_ones_sent() {
    let steps = |parts: &[usize]| Operation::Gather { images: 2, parts: parts.to_vec() }.steps(1);
    assert_eq!(steps(&[8, 8]), [Step::AllGather(0..16), Step::AllGather(16..32)]);
    let unequal = [(4..12, 0..4), (16..24, 12..16)];
    let unequal = unequal.map(|(own, peers)| [Step::Send(0, own), Step::Receive(0, peers)]);
    assert_eq!(steps(&[4, 8]), unequal.concat());
}

#[test]
fn fabrics_that_leave_nccl_out_leave_all_to_links() {
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let mut plan = crate::fabric::plan(1, &[address, address]);
    for (member, number) in plan.members.iter_mut().zip(0..) {
        member.offers = vec![Offer::Tcp, gpu(0, number)];
    }
    assert_eq!(plan.nccl_group(Rank(1)), [Rank(0), Rank(1)]);
    plan.fabrics = vec![Fabric::Nccl];
    assert_eq!(plan.nccl_group(Rank(1)), [Rank(0), Rank(1)]);
    assert_eq!(plan.link_fabric(Rank(0), Rank(1)), Some(Fabric::Tcp), "for what is small");
    plan.fabrics = vec![Fabric::Tcp];
    assert!(plan.nccl_group(Rank(1)).is_empty());
    assert_eq!(plan.fabric(Rank(0), Rank(1)), Some(Fabric::Tcp));
}
