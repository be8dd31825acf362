//! The links of a run over each fabric, as workers open them.

use crate::fabric::{bound, landed, plan, sites, slot};
use crate::identity::Cluster;
use protocol::identity::Role;
use protocol::plan::{Fabric, Plan};
use protocol::tls::Security;
use protocol::transport::{Doors, Endpoint, EndpointError, LinkError, RdmaWish};
use protocol::{Call, Fault, FaultKind, Rank};
use std::net::SocketAddr;

const SIZES: [usize; 2] = [64, 1 << 20];

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().expect("an address")
}

/// Endpoints of `count` members of one cluster.
async fn endpoints(count: usize) -> (Cluster, Vec<Endpoint>) {
    let cluster = Cluster::new();
    let mut endpoints = Vec::new();
    for _ in 0..count {
        let security = cluster.security(Role::Worker);
        endpoints.push(bound(loopback(), security, Vec::new()).await);
    }
    (cluster, endpoints)
}

fn plan_of(endpoints: &[Endpoint], fabrics: &[Fabric]) -> Plan {
    let addresses: Vec<_> = endpoints.iter().map(Endpoint::address).collect();
    let mut plan = plan(2, &addresses);
    for (member, endpoint) in plan.members.iter_mut().zip(endpoints) {
        member.offers = endpoint.offers().to_vec();
        member.identity = endpoint.security().identity().map(|identity| identity.fingerprint);
    }
    plan.fabrics = fabrics.to_vec();
    plan
}

/// Three ranks exchange two values each with each other.
async fn exchange(endpoints: &[Endpoint], plan: &Plan) {
    let open = |rank: u16| {
        let endpoint = &endpoints[usize::from(rank)];
        async move { endpoint.open(plan, Rank(rank), &sites(&SIZES)).await.expect("linked").0 }
    };
    let (a, b, c) = tokio::join!(open(0), open(1), open(2));
    let mut all = [a, b, c];
    for (own, links) in (0_u16..).zip(&mut all) {
        for (_, link) in links {
            for (site, bytes) in (0..).zip(SIZES) {
                let fill = u8::try_from(own).expect("small");
                let value = vec![fill; bytes].into();
                link.post(slot(own, site), Call(0), value).expect("posted");
            }
        }
    }
    for (peer, link) in all.iter_mut().flatten() {
        for _ in SIZES {
            let landed = landed(link.as_mut()).await.expect("landed");
            assert_eq!(landed.slot.from, *peer);
            assert!(landed.bytes.iter().all(|byte| u16::from(*byte) == peer.0));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_of_a_cluster_link_up_over_each_fabric_they_share() {
    let (_cluster, endpoints) = endpoints(3).await;
    let offered: Vec<Fabric> = endpoints[0].offers().iter().map(|offer| offer.fabric()).collect();
    for fabric in [Fabric::Shm, Fabric::Quic, Fabric::Tcp] {
        assert!(offered.contains(&fabric), "no {fabric}: {:?}", endpoints[0].lacks());
        let plan = plan_of(&endpoints, &[fabric]);
        assert_eq!(plan.fabric(Rank(0), Rank(2)), Some(fabric));
        exchange(&endpoints, &plan).await;
    }
    let nearest = plan_of(&endpoints, &[]).fabric(Rank(0), Rank(1));
    assert_eq!(nearest, Some(offered[0]), "the nearest is taken by itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_identities_too() {
    let mut endpoints = Vec::new();
    for _ in 0..3 {
        endpoints.push(bound(loopback(), Security::Insecure, Vec::new()).await);
    }
    for fabric in [Fabric::Shm, Fabric::Quic, Fabric::Tcp] {
        exchange(&endpoints, &plan_of(&endpoints, &[fabric])).await;
    }
}

#[tokio::test]
async fn a_fabric_that_is_asked_for_and_cannot_be_had_is_named() {
    let fabrics = vec![Fabric::Tcp, Fabric::Nccl];
    let rdma = RdmaWish::default();
    let doors = Doors { address: loopback(), security: Security::Insecure, fabrics, rdma };
    let error = Endpoint::bind(doors).await.expect_err("no GPU");
    assert!(matches!(error, EndpointError::Fabric { fabric: Fabric::Nccl, .. }), "{error:?}");
    let some = bound(loopback(), Security::Insecure, vec![Fabric::Tcp]).await;
    let lacks: Vec<Fabric> = some.lacks().iter().map(|lack| lack.fabric).collect();
    assert_eq!(lacks, [Fabric::Nccl, Fabric::Shm, Fabric::Rdma, Fabric::Quic]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_whose_ranks_share_nothing_opens_no_link() {
    let (_cluster, endpoints) = endpoints(2).await;
    let plan = plan_of(&endpoints, &[Fabric::Rdma]);
    let error = endpoints[1].open(&plan, Rank(1), &sites(&SIZES)).await.expect_err("no fabric");
    assert!(matches!(error, LinkError::Closed { peer: Rank(0), .. }), "{error:?}");
    assert!(error.to_string().contains("no fabric"), "{error}");
}

/// One cut may be between many: a rank tells of all peers that it cannot call, not of the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_peers_that_cannot_be_called_are_named() {
    let (_cluster, mut endpoints) = endpoints(4).await;
    let plan = plan_of(&endpoints, &[Fabric::Tcp]);
    let (last, first) = (endpoints.pop().expect("four"), endpoints.remove(0));
    drop(endpoints);
    let sites = sites(&SIZES);
    let error = tokio::select! {
        _ = first.open(&plan, Rank(0), &sites) => unreachable!("two never call it, for ten seconds"),
        opened = last.open(&plan, Rank(3), &sites) => opened.expect_err("two are gone"),
    };
    assert_eq!(error.unopened(), [Rank(1), Rank(2)], "{error}");
    assert_eq!(Fault::from(&error).kind, FaultKind::PeerLost);
    assert!(error.to_string().starts_with("no link with rank 1, rank 2: "), "{error}");
}

/// Who calls at the TCP door although QUIC is the pair's fabric is sent away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_by_another_way_is_refused() {
    let (_cluster, endpoints) = endpoints(2).await;
    let plan = plan_of(&endpoints, &[Fabric::Quic]);
    let mut other = plan.clone();
    other.fabrics = vec![Fabric::Tcp];
    let sites = sites(&SIZES);
    let ends = tokio::join!(
        endpoints[0].open(&plan, Rank(0), &sites),
        endpoints[1].open(&other, Rank(1), &sites),
    );
    assert!(matches!(ends.1, Err(LinkError::Refused { peer: Rank(0), .. })), "{:?}", ends.1);
    assert!(ends.0.is_err(), "nobody came by the right way");
}
