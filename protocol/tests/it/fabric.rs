//! Plans with slots of given sizes, and pairs of links of every fabric.

use crate::authority::Authority;
use crate::identity::{Cluster, connect};
use protocol::identity::Role;
use protocol::job::{Decode, GnVariance, JobSpec, Mode, Parallelism, Scheduler, Warmup, Wire};
use protocol::plan::{
    self, Ask, Band, Branch, Geometry, Member, Offer, Plan, SiteSpec, SlotTable, Stage,
};
use protocol::tls::Security;
use protocol::transport::connection::Connection;
use protocol::transport::quic::{Congestion, QuicEndpoint, QuicLink};
use protocol::transport::shm::{self, ShmLink};
use protocol::transport::tcp::TcpLink;
use protocol::transport::{
    Doors, Endpoint, Hangup, Landed, Link, LinkError, LinkSpec, RdmaWish, memory,
};
use protocol::{Epoch, JobId, Rank, RunId, Site, Slot, WorkerId};
use std::future::poll_fn;
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// A plan for as many ranks as there are addresses.
pub(crate) fn plan(epoch: u32, addresses: &[SocketAddr]) -> Plan {
    let members = addresses.iter().zip(0_u32..).map(|(address, rank)| Member {
        worker: WorkerId(u64::from(rank)),
        name: format!("worker {rank}"),
        address: *address,
        offers: vec![Offer::Tcp],
        branch: Branch::Whole,
        band: Band { top: 8 * rank, rows: 8 },
        decodes: Band { top: 8 * rank, rows: 8 },
        identity: None,
    });
    let rows = 8 * u32::try_from(addresses.len()).expect("few ranks");
    Plan {
        run: RunId { job: JobId(1), epoch: Epoch(epoch) },
        spec: JobSpec {
            prompt: "red apple".to_owned(),
            negative: None,
            width: 64,
            height: 8 * rows,
            steps: 3,
            guidance: 1.0,
            seed: 7,
            scheduler: Scheduler::Euler,
            warmup: Warmup::Calls(0),
            parallelism: Parallelism::Patch,
            mode: Mode::Corrected,
            gn_variance: GnVariance::Population,
            probe: false,
            profile: false,
            loras: Vec::new(),
            init: None,
            decode: Decode::Whole,
            wire: Wire::F32,
        },
        geometry: Geometry { rows, columns: 8, channels: 4, row_unit: 8, vae_factor: 8 },
        members: members.collect(),
        fabrics: Vec::new(),
        broken: Vec::new(),
    }
}

/// Sites whose slots have these sizes, which must be multiples of 8.
pub(crate) fn sites(bytes: &[usize]) -> Vec<SiteSpec> {
    let site = |bytes: &usize| SiteSpec {
        path: format!("norm of {bytes}"),
        ask: Ask::Moments { groups: u32::try_from(bytes / 8).expect("a small slot") },
        stage: Stage::Denoise,
        channels: 8,
        halvings: 0,
    };
    bytes.iter().map(site).collect()
}

/// What the two ends of a link between ranks 0 and 1 carry.
pub(crate) fn specs(bytes: &[usize], epochs: [u32; 2]) -> [LinkSpec; 2] {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    [(0, 1, epochs[0]), (1, 0, epochs[1])].map(|(own, peer, epoch)| {
        let plan = plan(epoch, &[address, address]);
        let table = SlotTable::new(&plan, &sites(bytes), Rank(own));
        LinkSpec::new(plan.run.epoch, Rank(own), Rank(peer), &table)
    })
}

pub(crate) fn slot(from: u16, site: u16) -> Slot {
    Slot { from: Rank(from), site: Site(site) }
}

pub(crate) async fn landed(link: &mut dyn Link) -> Result<Landed, LinkError> {
    poll_fn(|cx| link.poll_landed(cx)).await
}

/// A way to make both ends of a link.
pub(crate) trait Fabric {
    /// How many values of 1 MiB it moves in some seconds.
    fn large_values(&self) -> u32 {
        10_000
    }

    /// Why it cannot be tried on this machine.
    fn missing(&self) -> Option<String> {
        None
    }

    async fn pair(&self, specs: &[LinkSpec; 2]) -> [Box<dyn Link>; 2];
}

pub(crate) struct Memory {
    pub(crate) seed: Option<u64>,
}

impl Fabric for Memory {
    async fn pair(&self, specs: &[LinkSpec; 2]) -> [Box<dyn Link>; 2] {
        let (one, other) = memory::pair(&specs[0], &specs[1], self.seed);
        [Box::new(one), Box::new(other)]
    }
}

pub(crate) struct Tcp;

impl Fabric for Tcp {
    async fn pair(&self, specs: &[LinkSpec; 2]) -> [Box<dyn Link>; 2] {
        let [one, other] = sockets().await;
        let start = |stream, spec| -> Box<dyn Link> {
            Box::new(TcpLink::start(over(stream), spec, &Hangup::default()))
        };
        [start(one, &specs[0]), start(other, &specs[1])]
    }
}

pub(crate) struct Quic;

impl Fabric for Quic {
    async fn pair(&self, specs: &[LinkSpec; 2]) -> [Box<dyn Link>; 2] {
        let [one, other] = connections().await;
        let start = |connection, spec| -> Box<dyn Link> {
            Box::new(QuicLink::start(connection, spec, &Hangup::default()))
        };
        [start(one, &specs[0]), start(other, &specs[1])]
    }
}

/// TCP under TLS.
pub(crate) struct Tls;

impl Fabric for Tls {
    async fn pair(&self, specs: &[LinkSpec; 2]) -> [Box<dyn Link>; 2] {
        let cluster = Cluster::new();
        let [caller, called] = [cluster.security(Role::Worker), cluster.security(Role::Worker)];
        let [one, other] = connect(&caller, &called).await;
        let start = |connection: Result<Connection, _>, spec| -> Box<dyn Link> {
            Box::new(TcpLink::start(connection.expect("members"), spec, &Hangup::default()))
        };
        [start(one, &specs[0]), start(other, &specs[1])]
    }
}

/// An endpoint on loopback with a certificate of `authority`, which trusts others of it.
pub(crate) async fn endpoint(authority: &Authority) -> QuicEndpoint {
    let (server, client) = authority.member(authority);
    let address = "127.0.0.1:0".parse().expect("an address");
    QuicEndpoint::bind(address, &server, &client, Congestion::default()).await.expect("bound")
}

/// Both ends of one QUIC connection, with the hello's stream open.
pub(crate) async fn connections() -> [quinn::Connection; 2] {
    let authority = Authority::new();
    let (caller, called) = (endpoint(&authority).await, endpoint(&authority).await);
    join(&caller, &called, called.address()).await
}

/// Connects two endpoints, the second of which is reached at `address`.
pub(crate) async fn join(
    caller: &QuicEndpoint,
    called: &QuicEndpoint,
    address: SocketAddr,
) -> [quinn::Connection; 2] {
    let call = async {
        let (connection, mut hello) = caller.connect(address, "worker").await.expect("called");
        hello.writing.write_all(b"hello").await.expect("written");
        connection
    };
    let (near, far) = tokio::join!(call, called.accept());
    [near, far.expect("accepted").0]
}

pub(crate) struct Shm;

impl Fabric for Shm {
    async fn pair(&self, specs: &[LinkSpec; 2]) -> [Box<dyn Link>; 2] {
        let [one, other] = shm_pair(specs, &Hangup::default()).await;
        [Box::new(one), Box::new(other)]
    }
}

pub(crate) async fn shm_pair(specs: &[LinkSpec; 2], hangup: &Hangup) -> [ShmLink; 2] {
    let ([near, far], never) = (sockets().await, Hangup::default());
    let (one, other) = tokio::join!(
        shm::establish(over(near), &specs[0], hangup),
        shm::establish(over(far), &specs[1], &never)
    );
    [one.expect("one end"), other.expect("the other end")]
}

/// Both ends of one connection.
pub(crate) async fn sockets() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (called, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    [called.expect("called"), accepted.expect("accepted").0]
}

/// A connection over this socket.
pub(crate) fn over(socket: TcpStream) -> Connection {
    Connection::plain(socket).expect("a fresh socket")
}

/// A worker's endpoint that offers these fabrics; all that there are, if none is named.
pub(crate) async fn bound(
    address: SocketAddr,
    security: Security,
    fabrics: Vec<plan::Fabric>,
) -> Endpoint {
    Endpoint::bind(Doors { address, security, fabrics, rdma: RdmaWish::default() })
        .await
        .expect("a free port")
}
