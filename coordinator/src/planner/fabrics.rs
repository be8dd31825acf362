//! Over what workers exchange, and why over nothing nearer.

use super::Candidate;
use protocol::job::Field;
use protocol::message::PairView;
use protocol::plan::netcheck::LinkFigures;
use protocol::plan::{Fabric, Member, Plan, nearest, shared};
use protocol::{Fault, FaultKind, Rank, WorkerId};

/// Checks that every two ranks of `plan` share a fabric that may be used; `workers` are its ranks.
pub(super) fn check(plan: &Plan, workers: &[&Candidate]) -> Result<(), Fault> {
    for (rank, one) in plan.ranks().zip(workers) {
        for (peer, other) in plan.ranks().zip(workers).skip(rank.index() + 1) {
            if !exchange(plan, rank, peer) {
                let cause = none_shared(one, other, &plan.fabrics);
                let field = (!plan.fabrics.is_empty()).then_some(Field::Fabrics);
                return Err(Fault { field, ..Fault::new(FaultKind::InvalidRequest, cause) });
            }
        }
    }
    Ok(())
}

/// What of `broken` is between ranks of a plan with these members.
pub(super) fn broken(
    members: &[Member],
    broken: &[([WorkerId; 2], Fabric)],
) -> Vec<([Rank; 2], Fabric)> {
    let rank = |worker| {
        let place = members.iter().position(|member| member.worker == worker)?;
        u16::try_from(place).ok().map(Rank)
    };
    let between = |(workers, fabric): &([WorkerId; 2], Fabric)| {
        let [one, other] = [rank(workers[0])?, rank(workers[1])?];
        Some(([one.min(other), one.max(other)], *fabric))
    };
    broken.iter().filter_map(between).collect()
}

/// Those of `workers` between whom something is left that carries. Of those that shared fabrics until they broke the one
/// goes that is cut off from the most that others compute, then the next, so that of two groups the faster stays; where that
/// is alike, the one that came last goes.
#[must_use]
pub fn connected(
    mut workers: Vec<Candidate>,
    allowed: &[Fabric],
    broken: &[([WorkerId; 2], Fabric)],
) -> Vec<Candidate> {
    let cut = |one: &Candidate, other: &Candidate| {
        let is_broken = |fabric: &Fabric| {
            broken.iter().any(|(pair, each)| {
                each == fabric && pair.contains(&one.worker) && pair.contains(&other.worker)
            })
        };
        let mut left = shared(&one.offers, &other.offers);
        left.retain(|fabric| allowed.is_empty() || allowed.contains(fabric));
        one.worker != other.worker && !left.is_empty() && left.iter().all(is_broken)
    };
    loop {
        let cuts = |each: &Candidate| -> u128 {
            let others = workers.iter().filter(|other| cut(each, other));
            others.map(|other| u128::from(other.speed.max(1))).sum()
        };
        let worst = (0..workers.len()).max_by_key(|at| (cuts(&workers[*at]), *at));
        match worst.filter(|at| cuts(&workers[*at]) > 0) {
            Some(at) => drop(workers.remove(at)),
            None => return workers,
        }
    }
}

/// Whether two ranks of `plan` have what it asks for. NCCL is within a branch: if it alone may be used, what
/// crosses between branches has links none the less, as all that is small.
fn exchange(plan: &Plan, one: Rank, other: Rank) -> bool {
    let branch = |rank: Rank| plan.member(rank).map(|member| member.branch);
    let nccl_alone = plan.fabrics == [Fabric::Nccl] && branch(one) == branch(other);
    match plan.fabric(one, other) {
        None => false,
        Some(fabric) => fabric == Fabric::Nccl || !nccl_alone,
    }
}

fn none_shared(one: &Candidate, other: &Candidate, allowed: &[Fabric]) -> String {
    let asked = if allowed.is_empty() { Fabric::ALL } else { allowed };
    let asked: Vec<String> = asked.iter().map(|fabric| why_not(one, other, *fabric)).collect();
    let have = shared(&one.offers, &other.offers);
    let have: Vec<&str> = have.iter().map(|fabric| fabric.name()).collect();
    let instead = match have[..] {
        [] => String::new(),
        _ => format!("; they share {}", have.join(", ")),
    };
    format!("{} and {} cannot exchange: {}{instead}", one.name, other.name, asked.join("; "))
}

/// Why two workers do not share `fabric`.
fn why_not(one: &Candidate, other: &Candidate, fabric: Fabric) -> String {
    for worker in [one, other] {
        if worker.offers.iter().all(|offer| offer.fabric() != fabric) {
            let lack = worker.lacks.iter().find(|lack| lack.fabric == fabric);
            let cause = lack.map_or("this release does not know it", |lack| &lack.cause);
            return format!("no {fabric}, for {} has none: {cause}", worker.name);
        }
    }
    match fabric {
        Fabric::Nccl => format!(
            "no {fabric}, for they are not on two GPUs of one machine with one version of it, or do not \
             render bands of one branch"
        ),
        Fabric::Shm => format!("no {fabric}, for they share no memory"),
        _ => format!("no {fabric}, for one device is InfiniBand and the other Ethernet"),
    }
}

/// Over what each pair of `workers` would exchange; `broken` is what does not carry, and `figures` tells what
/// was measured.
pub fn pairs(
    workers: &[Candidate],
    broken: &[([WorkerId; 2], Fabric)],
    figures: impl Fn([WorkerId; 2], Fabric) -> Option<LinkFigures>,
) -> Vec<PairView> {
    let mut pairs = Vec::new();
    for (at, one) in workers.iter().enumerate() {
        for other in &workers[at + 1..] {
            let workers = [one.worker, other.worker];
            let broke = |fabric: &Fabric| broken.contains(&(workers, *fabric));
            let whole: Vec<Fabric> =
                Fabric::ALL.iter().copied().filter(|each| !broke(each)).collect();
            let fabric = nearest(&one.offers, &other.offers, &whole);
            let nearer =
                Fabric::ALL.iter().copied().filter(|each| fabric.is_none_or(|it| *each < it));
            let why: Vec<String> = nearer
                .map(|nearer| match broke(&nearer) {
                    true => {
                        format!("no {nearer}, for it broke between them; it is tried again soon")
                    }
                    false => why_not(one, other, nearer),
                })
                .collect();
            let figures = fabric.and_then(|fabric| figures(workers, fabric));
            pairs.push(PairView { workers, fabric, why: why.join("; "), figures });
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::tests::candidates;
    use protocol::plan::{Lack, Offer, SharedMemory};

    #[test]
    fn what_keeps_two_workers_apart_is_named() {
        let mut workers = candidates(2);
        let cause = "no RDMA device".to_owned();
        workers[1].lacks = vec![Lack { fabric: Fabric::Rdma, cause }];
        workers[0].offers.push(Offer::Rdma { roce: true });
        let text = none_shared(&workers[0], &workers[1], &[Fabric::Rdma]);
        assert_eq!(
            text,
            "w1 and w2 cannot exchange: no rdma, for w2 has none: no RDMA device; they share tcp"
        );
    }

    #[test]
    fn a_pair_whose_fabric_broke_takes_another_and_of_two_that_have_none_left_one_goes() {
        let mut workers = candidates(3);
        for worker in &mut workers[..2] {
            worker.offers.insert(0, Offer::Quic { port: 1 });
        }
        let pair = [workers[0].worker, workers[1].worker];
        let mut broken = vec![(pair, Fabric::Quic)];
        assert_eq!(connected(workers.clone(), &[], &broken).len(), 3);
        let shown = &pairs(&workers, &broken, |_, _| None)[0];
        assert_eq!(shown.fabric, Some(Fabric::Tcp));
        assert!(shown.why.contains("no quic, for it broke"), "{}", shown.why);
        broken.push((pair, Fabric::Tcp));
        let left: Vec<_> =
            connected(workers, &[], &broken).into_iter().map(|each| each.name).collect();
        assert_eq!(left, ["w1", "w3"]);
    }

    #[test]
    fn of_two_groups_that_are_cut_off_from_each_other_the_faster_stays() {
        let mut workers = candidates(5);
        let pairs = workers[..2].iter().flat_map(|one| {
            workers[2..].iter().map(|other| ([one.worker, other.worker], Fabric::Tcp))
        });
        let broken: Vec<_> = pairs.collect();
        let stay = |workers: &[Candidate]| -> Vec<String> {
            let stay = connected(workers.to_vec(), &[], &broken);
            stay.into_iter().map(|each| each.name).collect()
        };
        assert_eq!(stay(&workers), ["w3", "w4", "w5"]);
        workers[0].speed = 300;
        assert_eq!(stay(&workers), ["w1", "w2"]);
    }

    #[test]
    fn a_pair_says_why_it_uses_nothing_nearer() {
        let mut workers = candidates(2);
        for (worker, boot) in workers.iter_mut().zip(["a", "b"]) {
            let memory = SharedMemory { boot: boot.to_owned(), device: 1, user: 0 };
            worker.offers.insert(0, Offer::Shm(memory));
        }
        let pairs = pairs(&workers, &[], |_, _| None);
        assert_eq!(pairs[0].fabric, Some(Fabric::Tcp));
        assert!(pairs[0].why.contains("no shm, for they share no memory"), "{}", pairs[0].why);
    }
}
