//! How fast a fabric moves 1 MiB values one way over loopback, or its yardstick does.
//!
//! ```sh
//! cargo run --release -p protocol --example throughput -- tcp --mib 4096
//! ```
//!
//! FABRIC is shm, tcp, tls (tcp between members of a cluster), quic or quic-tls (the same); the
//! yardsticks are memcpy and quinn (one stream of plain quinn). Prints one JSON object: megabytes a
//! second, and the processor seconds that a gigabyte took both ends together.
//!
//! `--slots N` says how many values a call has. A link has two buffers for each, so that a processor's
//! cache holds those of few, as it holds a yardstick's one buffer, and not those of many.
#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a program that prints one figure"
)]

use bytes::Bytes;
use protocol::identity::{Authority, Role, Subject};
use protocol::job::Wire;
use protocol::plan::{Ask, Fabric, Member, Plan, SiteSpec, Stage, netcheck};
use protocol::tls::Security;
use protocol::transport::{Doors, Endpoint, Link, RdmaWish};
use protocol::{Call, JobId, Rank, RunId, Site, Slot, WorkerId};
use rustix::time::{ClockId, clock_gettime};
use std::error::Error;
use std::future::poll_fn;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::runtime::Runtime;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const VALUE_BYTES: usize = 1 << 20;
const USAGE: &str =
    "usage: throughput shm|tcp|tls|quic|quic-tls|memcpy|quinn [--mib N] [--slots N]";

/// How much to move.
#[derive(Clone, Copy)]
struct Load {
    mib: u64,
    /// Values of one call: two calls of them are under way.
    slots: u16,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().ok_or(USAGE)?;
    let mut load = Load { mib: 2048, slots: 16 };
    while let Some(flag) = arguments.next() {
        let number = arguments.next().ok_or(USAGE)?;
        match flag.as_str() {
            "--mib" => load.mib = number.parse()?,
            "--slots" => load.slots = number.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    let Load { mib, slots } = load;
    if slots == 0 || mib == 0 || !mib.is_multiple_of(slots.into()) {
        return Err(format!("--mib {mib} --slots {slots}: give a whole number of calls").into());
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let took = match what.as_str() {
        "memcpy" => copy(load),
        "quinn" => runtime.block_on(quinn_bulk(load.mib))?,
        "shm" => link(&runtime, Fabric::Shm, false, load)?,
        "tcp" => link(&runtime, Fabric::Tcp, false, load)?,
        "tls" => link(&runtime, Fabric::Tcp, true, load)?,
        "quic" => link(&runtime, Fabric::Quic, false, load)?,
        "quic-tls" => link(&runtime, Fabric::Quic, true, load)?,
        other => return Err(format!("no fabric {other}").into()),
    };
    let bytes = (load.mib << 20) as f64;
    println!(
        "{{\"fabric\": \"{what}\", \"mb_per_s\": {:.1}, \"cpu_s_per_gb\": {:.3}}}",
        bytes / took.wall.as_secs_f64() / 1e6,
        took.cpu / (bytes / 1e9)
    );
    Ok(())
}

/// Wall-clock time, and processor seconds of this process.
struct Took {
    wall: Duration,
    cpu: f64,
}

struct Since(Instant, f64);

impl Since {
    fn now() -> Self {
        Self(Instant::now(), cpu())
    }

    fn took(&self) -> Took {
        Took { wall: self.0.elapsed(), cpu: cpu() - self.1 }
    }
}

fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Copies one value to as many places as a link has buffers, as often as it takes.
fn copy(load: Load) -> Took {
    let value = vec![7_u8; VALUE_BYTES];
    let mut places = vec![vec![1_u8; VALUE_BYTES]; 2 * usize::from(load.slots)];
    let since = Since::now();
    for at in 0..load.mib {
        let place = &mut places[at as usize % (2 * usize::from(load.slots))];
        place.copy_from_slice(&value);
        std::hint::black_box(&place);
    }
    since.took()
}

fn sites(slots: u16) -> Vec<SiteSpec> {
    let site = |bytes: usize| SiteSpec {
        path: "throughput".to_owned(),
        ask: Ask::Moments { groups: (bytes / 8) as u32 },
        stage: Stage::Denoise,
        channels: 1,
        halvings: 0,
    };
    assert_eq!(site(8).wire(Wire::F32), Wire::F32);
    std::iter::once(site(8)).chain((0..slots).map(|_| site(VALUE_BYTES))).collect()
}

/// Moves values from rank 0 to rank 1, which says after each call that it has all of it.
fn link(runtime: &Runtime, fabric: Fabric, secure: bool, load: Load) -> Result<Took> {
    let calls = (load.mib / u64::from(load.slots)) as u32;
    let [mut sender, mut receiver] = runtime.block_on(links(fabric, secure, load.slots))?;
    let handle = runtime.handle().clone();
    let receiving = std::thread::spawn(move || -> Result<()> {
        for call in 0..calls {
            for _ in 0..load.slots {
                let landed = handle.block_on(poll_fn(|cx| receiver.poll_landed(cx)))?;
                assert_eq!(landed.bytes.len(), VALUE_BYTES);
            }
            let small = Slot { from: Rank(1), site: netcheck::SMALL };
            receiver.post(small, Call(call), Bytes::from_static(&[1; 8]))?;
        }
        Ok(())
    });
    let value = Bytes::from(vec![7; VALUE_BYTES]);
    let since = Since::now();
    for call in 0..calls {
        for site in 1..=load.slots {
            sender.post(Slot { from: Rank(0), site: Site(site) }, Call(call), value.clone())?;
        }
        if call > 0 {
            runtime.block_on(poll_fn(|cx| sender.poll_landed(cx)))?;
        }
    }
    runtime.block_on(poll_fn(|cx| sender.poll_landed(cx)))?;
    let took = since.took();
    receiving.join().expect("the receiver does not panic")?;
    Ok(took)
}

/// Both ends of a link, opened as workers open it.
async fn links(fabric: Fabric, secure: bool, slots: u16) -> Result<[Box<dyn Link>; 2]> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let authority = Authority::new(now)?;
    let mut endpoints = Vec::new();
    for number in 0..2 {
        let subject = Subject::new(Role::Worker, &format!("worker {number}"), now);
        let security = if secure {
            Security::mutual(authority.credentials(&subject)?)?
        } else {
            Security::Insecure
        };
        let address = "127.0.0.1:0".parse()?;
        let (fabrics, rdma) = (vec![fabric], RdmaWish::default());
        endpoints.push(Endpoint::bind(Doors { address, security, fabrics, rdma }).await?);
    }
    let plan = plan(&endpoints);
    let sites = sites(slots);
    let open = |rank: u16| endpoints[usize::from(rank)].open(&plan, Rank(rank), &sites);
    let (one, other) = tokio::try_join!(open(0), open(1))?;
    let only = |links: protocol::transport::Links| links.into_iter().next().map(|(_, link)| link);
    match (only(one.0), only(other.0)) {
        (Some(one), Some(other)) => Ok([one, other]),
        _ => Err("no link".into()),
    }
}

fn plan(endpoints: &[Endpoint]) -> Plan {
    let whole = protocol::plan::Band { top: 0, rows: 1 };
    let members = (0..).zip(endpoints).map(|(number, endpoint)| Member {
        worker: WorkerId(number),
        name: format!("worker {number}"),
        address: endpoint.address(),
        offers: endpoint.offers().to_vec(),
        branch: protocol::plan::Branch::Whole,
        band: whole,
        decodes: whole,
        identity: endpoint.security().identity().map(|identity| identity.fingerprint),
    });
    let run = RunId { job: JobId(1), epoch: protocol::Epoch(0) };
    netcheck::plan(run, members.collect(), Vec::new())
}

/// One stream of plain quinn with its default transport, read as it comes.
async fn quinn_bulk(mib: u64) -> Result<Took> {
    let (server, client) = (Security::Insecure.server_config(), Security::Insecure.client_config());
    let quic_server = quinn::crypto::rustls::QuicServerConfig::try_from(server)?;
    let quic_client = quinn::crypto::rustls::QuicClientConfig::try_from(client)?;
    let server = quinn::ServerConfig::with_crypto(std::sync::Arc::new(quic_server));
    let client = quinn::ClientConfig::new(std::sync::Arc::new(quic_client));
    let called = quinn::Endpoint::server(server, "127.0.0.1:0".parse()?)?;
    let caller = quinn::Endpoint::client("127.0.0.1:0".parse()?)?;
    let address = called.local_addr()?;
    let sending = tokio::spawn(async move {
        let connection = called.accept().await.ok_or("nobody called")?.await?;
        let mut stream = connection.open_uni().await?;
        let value = Bytes::from(vec![7; VALUE_BYTES]);
        for _ in 0..mib {
            stream.write_chunk(value.clone()).await?;
        }
        stream.finish()?;
        stream.stopped().await?;
        Ok::<_, Box<dyn Error + Send + Sync>>(())
    });
    let connection = caller.connect_with(client, address, protocol::identity::SERVER_NAME)?.await?;
    let mut stream = connection.accept_uni().await?;
    let since = Since::now();
    let mut left = mib << 20;
    while let Some(chunk) = stream.read_chunk(VALUE_BYTES, false).await? {
        left -= chunk.bytes.len() as u64;
    }
    let took = since.took();
    assert_eq!(left, 0, "bytes are missing");
    connection.close(0_u32.into(), b"");
    sending.await?.ok(); // the stream's end is acknowledged, or the connection already closed
    Ok(took)
}
