//! A cluster for tests of decisions.

use super::{Director, Effect};
use crate::cluster::registry::tests::join;
use protocol::message::{Join, ToWorker};
use protocol::{RunId, WorkerId};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

pub(super) const CLIENT: u64 = 1;
pub(super) const START: Duration = Duration::from_secs(1);

/// A coordinator that so many workers joined.
pub(super) fn cluster(workers: u16) -> (Director, Vec<WorkerId>) {
    let mut director = Director::default();
    let peer = IpAddr::from(Ipv4Addr::LOCALHOST);
    // Each at its own address: a process that joins again takes the place of what it was.
    let join = |number: u16| {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 5000 + number));
        Join { listen, ..join(&format!("w{number}")) }
    };
    let workers =
        (0..workers).map(|number| director.admit(join(number), peer, None, START).unwrap());
    let workers = workers.collect();
    (director, workers)
}

/// Who is given a part of which run.
pub(super) fn started(effects: &[Effect]) -> Vec<(WorkerId, RunId)> {
    let start = |effect: &Effect| match effect {
        Effect::Order { worker, order, .. } => match &**order {
            ToWorker::Start { plan, .. } => Some((*worker, plan.run)),
            _ => None,
        },
        _ => None,
    };
    effects.iter().filter_map(start).collect()
}
