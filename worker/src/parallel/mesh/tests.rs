//! What is sent when.

use super::*;
use protocol::job::{Decode, JobSpec, Parallelism, Scheduler, Warmup};
use protocol::plan::{Branch, Geometry};
use protocol::transport::{Landed, LinkError};
use protocol::{RunId, WorkerId};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

/// Writes down what it is given.
#[derive(Clone, Debug, Default)]
struct Notes(Arc<Mutex<Vec<(Site, u32)>>>);

impl Notes {
    fn take(&self) -> Vec<(u16, u32)> {
        let notes = std::mem::take(&mut *self.0.lock().unwrap());
        notes.into_iter().map(|(site, call)| (site.0, call)).collect()
    }
}

impl Link for Notes {
    fn post(&mut self, slot: Slot, call: Call, _: Bytes) -> std::result::Result<(), LinkError> {
        self.0.lock().unwrap().push((slot.site, call.0));
        Ok(())
    }

    fn poll_landed(&mut self, _: &mut Context<'_>) -> Poll<std::result::Result<Landed, LinkError>> {
        Poll::Pending
    }
}

/// A mesh, and what would cancel its run: that it is gone cancels it, too.
fn mesh(notes: &Notes) -> (Mesh, oneshot::Sender<Fault>) {
    let spec = JobSpec {
        prompt: String::new(),
        negative: None,
        width: 64,
        height: 64,
        steps: 10,
        guidance: 1.0,
        seed: 1,
        scheduler: Scheduler::Euler,
        warmup: Warmup::Calls(0),
        parallelism: Parallelism::Patch,
        mode: Mode::Corrected,
        gn_variance: GnVariance::Population,
        wire: Wire::F32,
        decode: Decode::Whole,
        probe: false,
        profile: false,
        loras: Vec::new(),
        init: None,
    };
    let member = |number: u32| Member {
        worker: WorkerId(number.into()),
        name: String::new(),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 1)),
        offers: Vec::new(),
        branch: Branch::Whole,
        band: Band { top: 4 * number, rows: 4 },
        decodes: Band { top: 4 * number, rows: 4 },
        identity: None,
    };
    let geometry = Geometry { rows: 8, columns: 8, channels: 4, row_unit: 4, vae_factor: 8 };
    let run = RunId::default();
    let members = vec![member(0), member(1)];
    let plan = Plan { run, spec, geometry, members, fabrics: Vec::new(), broken: Vec::new() };
    let site = |ask| SiteSpec {
        path: String::new(),
        ask,
        stage: Stage::Denoise,
        channels: 4,
        halvings: 0,
    };
    let sites = [site(Ask::Moments { groups: 2 }), site(Ask::Gather)];
    let links: Links = vec![(Rank(1), Box::new(notes.clone()))];
    let (held, cancel) = oneshot::channel();
    (Mesh::new(&plan, &sites, Rank(0), links, cancel).unwrap(), held)
}

#[test]
fn small_values_ride_with_the_next_large_one_or_the_end_of_the_call() {
    let notes = Notes::default();
    let (mut mesh, _held) = mesh(&notes);
    let (norm, attention) = (Site(0), Site(1));
    let large = vec![0.0; RIDER_BYTES_MAX];
    let mut post = |site, call, values: &[f32], needed| {
        mesh.post_all(site, Call(call), Outgoing::Host(values.into()), needed).unwrap();
        notes.take()
    };
    assert_eq!(post(norm, 0, &[1.0; 4], Needed::Now), [(0, 0)], "waited for");
    assert_eq!(post(norm, 1, &[1.0; 4], Needed::Later), []);
    assert_eq!(post(attention, 1, &large, Needed::Later), [(0, 1), (1, 1)]);
    assert_eq!(post(norm, 2, &[1.0; 4], Needed::Later), []);
    mesh.leave().unwrap();
    assert_eq!(notes.take(), [(0, 2)]);
    let posted = [norm, attention].map(|site| mesh.posted_bytes(site));
    assert_eq!(posted, [3 * 16, 4 * large.len() as u64]);
}

#[test]
fn a_cancelled_run_is_noticed_where_nothing_is_waited_for() {
    let notes = Notes::default();
    let (mut mesh, held) = mesh(&notes);
    held.send(Fault::new(FaultKind::Cancelled, "stop")).unwrap();
    let posted = mesh.post_all(Site(0), Call(0), Outgoing::Host([1.0; 4][..].into()), Needed::Now);
    assert!(matches!(posted, Err(crate::model::Error::Exchange(fault)) if fault.cause == "stop"));
    assert_eq!(notes.take(), []);
}
