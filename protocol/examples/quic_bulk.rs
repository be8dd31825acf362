//! Bulk throughput of a link over QUIC beside plain quinn moving the same bytes, as quinn's own
//! bulk benchmark does: one stream, default parameters, client and server in one process.
//!
//! ```text
//! cargo run --release -p protocol --example quic_bulk -- --rounds 5 --mib 512 --congestion cubic
//! ```
#![allow(clippy::print_stdout, reason = "it prints a table")]

use bytes::Bytes;
use protocol::plan::{SlotSpec, SlotTable};
use protocol::transport::quic::{Congestion, QuicEndpoint, QuicLink};
use protocol::transport::{Hangup, Link, LinkSpec};
use protocol::{Call, Epoch, Rank, Site, Slot};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::error::Error;
use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const VALUE_BYTES: usize = 1 << 20;

/// Values of one call.
const SLOTS: u16 = 8;

/// What the receiver answers when it has read a call, so that at most two are under way.
const READY: Slot = Slot { from: Rank(1), site: Site(SLOTS) };
const READY_BYTES: usize = 8;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

struct Options {
    rounds: usize,
    mib: u32,
    congestion: Congestion,
}

fn options() -> Outcome<Options> {
    let mut options = Options { rounds: 5, mib: 512, congestion: Congestion::default() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--rounds" => options.rounds = value.parse()?,
            "--mib" => options.mib = value.parse()?,
            "--congestion" => {
                options.congestion = match value.as_str() {
                    "cubic" => Congestion::Cubic,
                    "bbr" => Congestion::Bbr,
                    "newreno" => Congestion::NewReno,
                    _ => return Err("--congestion is cubic, bbr or newreno".into()),
                }
            }
            _ => return Err(format!("there is no {word}").into()),
        }
    }
    if options.rounds == 0 || options.mib == 0 || !options.mib.is_multiple_of(SLOTS.into()) {
        return Err(format!("--rounds is at least 1, --mib a multiple of {SLOTS}").into());
    }
    Ok(options)
}

/// What one transfer took.
#[derive(Clone, Copy)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

fn main() -> Outcome<()> {
    let options = options()?;
    let tls = tls()?;
    let (mut plain, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        plain.push(quinn_bulk(&tls, options.mib)?);
        ours.push(link_bulk(&tls, &options)?);
    }
    let bytes = f64::from(options.mib) * f64::from(1 << 20);
    println!("{} rounds of {} MiB, {:?}", options.rounds, options.mib, options.congestion);
    println!("{:<12} {:>8} {:>12}", "", "MB/s", "CPU s per GB");
    let plain = row("quinn bulk", &plain, bytes);
    let ours = row("link", &ours, bytes);
    println!("{:<12} {:>8.2}", "ratio", ours / plain);
    Ok(())
}

/// Prints medians, and gives the throughput.
fn row(name: &str, costs: &[Cost], bytes: f64) -> f64 {
    let median = |part: fn(&Cost) -> Duration| {
        let mut parts: Vec<f64> = costs.iter().map(|cost| part(cost).as_secs_f64()).collect();
        parts.sort_by(f64::total_cmp);
        parts[parts.len() / 2]
    };
    let rate = bytes / median(|cost| cost.wall) / 1e6;
    println!("{name:<12} {rate:>8.0} {:>12.2}", median(|cost| cost.cpu) / (bytes / 1e9));
    rate
}

/// User and system time of this process.
fn cpu() -> Outcome<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<_, _>>()?;
    Ok(Duration::from_millis(ticks * 10)) // USER_HZ is 100 on every Linux
}

fn tls() -> Outcome<(ServerConfig, ClientConfig)> {
    let own = rcgen::generate_simple_self_signed(["worker".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
    let mut roots = RootCertStore::empty();
    roots.add(own.cert.der().clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((server, client))
}

/// One thread for each side.
fn runtime() -> Outcome<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// Runs the receiver on a thread of its own, the sender here.
fn race(
    receive: impl Future<Output = Outcome<()>> + Send + 'static,
    send: impl Future<Output = Outcome<()>>,
    here: &Runtime,
    there: Runtime,
) -> Outcome<Cost> {
    let (start, used) = (Instant::now(), cpu()?);
    let receiver = std::thread::spawn(move || there.block_on(receive));
    here.block_on(send)?;
    receiver.join().map_err(|_| "the receiver panicked")??;
    Ok(Cost { wall: start.elapsed(), cpu: cpu()? - used })
}

fn quinn_bulk(tls: &(ServerConfig, ClientConfig), mib: u32) -> Outcome<Cost> {
    use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
    let (here, there) = (runtime()?, runtime()?);
    let crypto = Arc::new(QuicServerConfig::try_from(tls.0.clone())?);
    let server = {
        let _entered = there.enter();
        quinn::Endpoint::server(quinn::ServerConfig::with_crypto(crypto), LOOPBACK)?
    };
    let address = server.local_addr()?;
    let crypto = Arc::new(QuicClientConfig::try_from(tls.1.clone())?);
    let receive = async move {
        let connection = server.accept().await.ok_or("closed")?.await?;
        let mut stream = connection.accept_uni().await?;
        let mut chunks: [Bytes; 32] = std::array::from_fn(|_| Bytes::new());
        while stream.read_chunks(&mut chunks).await?.is_some() {}
        connection.close(0_u32.into(), b"");
        server.wait_idle().await;
        Ok(())
    };
    let send = async {
        let client = quinn::Endpoint::client(LOOPBACK)?;
        let config = quinn::ClientConfig::new(crypto);
        let connection = client.connect_with(config, address, "worker")?.await?;
        let mut stream = connection.open_uni().await?;
        let value = Bytes::from(vec![7; VALUE_BYTES]);
        for _ in 0..mib {
            stream.write_chunk(value.clone()).await?;
        }
        stream.finish()?;
        connection.closed().await;
        Ok(())
    };
    race(receive, send, &here, there)
}

fn link_bulk(tls: &(ServerConfig, ClientConfig), options: &Options) -> Outcome<Cost> {
    let (here, there) = (runtime()?, runtime()?);
    let bind = |side: &Runtime| {
        side.block_on(QuicEndpoint::bind(LOOPBACK, &tls.0, &tls.1, options.congestion))
    };
    let (caller, called) = (bind(&here)?, bind(&there)?);
    let address = called.address();
    let calls = options.mib / u32::from(SLOTS);
    let [one, other] = specs();
    let receive = async move {
        let (connection, _hello) = called.accept().await.ok_or("closed")?;
        let mut link = QuicLink::start(connection, &other, &Hangup::default());
        for call in 0..calls {
            for _ in 0..SLOTS {
                poll_fn(|cx| link.poll_landed(cx)).await?;
            }
            link.post(READY, Call(call), Bytes::from_static(&[0; READY_BYTES]))?;
        }
        drop(link);
        called.wait_idle().await;
        Ok(())
    };
    let send = async {
        let (connection, mut hello) = caller.connect(address, "worker").await?;
        hello.writing.write_all(b"hello").await?;
        let mut link = QuicLink::start(connection, &one, &Hangup::default());
        let value = Bytes::from(vec![7; VALUE_BYTES]);
        for call in 0..calls {
            if call >= 2 {
                poll_fn(|cx| link.poll_landed(cx)).await?;
            }
            for site in 0..SLOTS {
                link.post(Slot { from: Rank(0), site: Site(site) }, Call(call), value.clone())?;
            }
        }
        drop(link);
        caller.wait_idle().await;
        Ok(())
    };
    race(receive, send, &here, there)
}

fn specs() -> [LinkSpec; 2] {
    let bulk = (0..SLOTS).map(|site| SlotSpec {
        slot: Slot { from: Rank(0), site: Site(site) },
        to: Rank(1),
        bytes: VALUE_BYTES,
    });
    let (bulk, ready) =
        (bulk.collect::<Vec<_>>(), vec![SlotSpec { slot: READY, to: Rank(0), bytes: READY_BYTES }]);
    let one = SlotTable { posts: bulk.clone(), lands: ready.clone() };
    let other = SlotTable { posts: ready, lands: bulk };
    [
        LinkSpec::new(Epoch(0), Rank(0), Rank(1), &one),
        LinkSpec::new(Epoch(0), Rank(1), Rank(0), &other),
    ]
}
