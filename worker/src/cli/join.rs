//! `worker join`.

use super::EngineArgs;
use super::identity::IdentityArgs;
use super::logging::LogArgs;
use crate::actor;
use crate::engine::cores::Placement;
use crate::engine::{Engine, EngineOptions, MemoryLeft};
use crate::memory::resident_bytes;
use anyhow::{Context, bail};
use protocol::message::Join;
use protocol::plan::{Fabric, Lack, Offer};
use protocol::transport::{Doors, Endpoint, RdmaWish};
use std::io::Read;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// The exit code of a command that Ctrl-C ended, as shells have it.
const INTERRUPTED: u8 = 130;

#[derive(Debug, clap::Args)]
pub(super) struct JoinArgs {
    /// The coordinator to render for. It need not be there yet.
    #[arg(long, value_name = "HOST:PORT")]
    coordinator: String,
    /// Where other workers reach this one. The address 0.0.0.0 means: the one from which this
    /// machine reaches the coordinator; port 0 means: any free one [default: 0.0.0.0:0, with
    /// --insecure 127.0.0.1:0].
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// The fabrics to exchange over with other workers, such as `shm,tcp`; each must be to be had. Two workers
    /// take the nearest that both have: nccl, shm, rdma, quic, tcp [default: all that there are].
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    fabric: Vec<Fabric>,
    /// The RDMA device to use, as in /sys/class/infiniband [default: the first that has an active port].
    #[arg(long, value_name = "NAME")]
    rdma_device: Option<String>,
    /// Its port [default: the first active one].
    #[arg(long, value_name = "N")]
    rdma_port: Option<u8>,
    /// The index in the port's GID table [default: over RoCE the version 2 entry of the address].
    #[arg(long, value_name = "N")]
    rdma_gid: Option<u8>,
    /// What logs and status call this worker [default: host name and process number].
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    engine: EngineArgs,
    /// The memory that this worker may take of its machine's, or of its GPU's, such as 12GiB or 900MiB
    /// [default: what is left].
    /// Images whose decode would take more are decoded in tiles.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<u64>,
    /// Exit when standard input is closed: for a parent process, however it ends.
    #[arg(long)]
    with_parent: bool,
    #[command(flatten)]
    log: LogArgs,
}

pub(super) async fn run(arguments: JoinArgs) -> anyhow::Result<ExitCode> {
    arguments.log.begin(tracing::Level::INFO);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let with_parent = arguments.with_parent;
    let (leave, leaving) = watch::channel(false);
    // Once politely; whoever insists does not wait for a band to be handed over.
    let terminated = async {
        terminate.recv().await;
        leave.send(true).ok();
        terminate.recv().await;
    };
    tokio::select! {
        outcome = serve(arguments, leaving) => outcome,
        () = parent_gone(), if with_parent => Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::from(INTERRUPTED)),
        () = terminated => Ok(ExitCode::SUCCESS),
    }
}

async fn serve(
    arguments: JoinArgs,
    mut leaving: watch::Receiver<bool>,
) -> anyhow::Result<ExitCode> {
    check_address(&arguments.coordinator)?;
    let identity = &arguments.identity;
    let listen = identity.listen(arguments.listen)?;
    let (address, name) = (arguments.coordinator, arguments.name);
    let security = identity.security(&address, name.as_deref()).await?;
    let doors = Doors {
        address: listen,
        security: security.clone(),
        fabrics: arguments.fabric.iter().copied().filter(|fabric| fabric.is_link()).collect(),
        rdma: RdmaWish {
            device: arguments.rdma_device,
            port: arguments.rdma_port,
            gid_index: arguments.rdma_gid,
        },
    };
    let endpoint = Endpoint::bind(doors).await?;
    let options = arguments.engine.options();
    let engine = tokio::select! {
        engine = load(options) => engine?,
        _ = leaving.changed() => return Ok(ExitCode::SUCCESS),
    };
    let (offers, lacks) = offered(&endpoint, &engine, &arguments.fabric)?;
    let names: Vec<&str> = offers.iter().map(|offer| offer.fabric().name()).collect();
    tracing::info!("fabrics offered to peers: {}", names.join(", "));
    for lack in &lacks {
        tracing::info!("no {}: {}", lack.fabric, lack.cause);
    }
    let threads = engine.cores().threads();
    let threads = u16::try_from(threads.get()).context("--threads is too large")?;
    match engine.cores().placement() {
        pinned @ Placement::Pinned(_) => {
            tracing::info!("compute threads: {threads}, {pinned}");
        }
        anywhere @ Placement::Anywhere(_) => {
            tracing::warn!("compute threads: {threads}, {anywhere}");
        }
    }
    let about = Join {
        name: name.unwrap_or_else(own_name),
        listen: endpoint.address(),
        offers,
        lacks,
        model: engine.card().clone(),
        threads,
        kernels: engine.kernels(),
        resident_bytes: resident_bytes(),
        speed: engine.speed(),
        free_bytes: allowed(arguments.memory, engine.memory()?)?,
    };
    let (card, mib) = (&about.model, |bytes: u64| bytes >> 20);
    tracing::info!("loaded {} ({} MiB as {})", card.name, mib(card.weight_bytes), card.dtype);
    let resident = mib(about.resident_bytes);
    if let Some(activations) = engine.activations() {
        tracing::info!(
            "resident: {resident} MiB, and at most {} MiB more for an image of {}x{} that it renders alone",
            mib(u64::try_from(activations.arena)?),
            card.native.0,
            card.native.1
        );
    } else {
        let (free, device) = (mib(about.free_bytes), engine.kernels());
        tracing::info!("resident: {resident} MiB; free on {device}: {free} MiB");
    }
    let coordinator = actor::Coordinator { address, security };
    actor::join(&coordinator, about, engine, endpoint, leaving).await?;
    Ok(ExitCode::SUCCESS)
}

/// What it offers its peers and why not more: the endpoint's fabrics, and NCCL if it computes on a GPU.
fn offered(
    endpoint: &Endpoint,
    engine: &Engine,
    asked: &[Fabric],
) -> anyhow::Result<(Vec<Offer>, Vec<Lack>)> {
    let (fabric, mut offers) = (Fabric::Nccl, endpoint.offers().to_vec());
    let links = endpoint.lacks().iter().filter(|lack| lack.fabric.is_link());
    let mut lacks: Vec<Lack> = links.cloned().collect();
    let nccl = match engine.nccl() {
        _ if !asked.is_empty() && !asked.contains(&fabric) => {
            Err("it was not among those of --fabric".to_owned())
        }
        Err(error) if asked.is_empty() => Err(error.to_string()),
        nccl => Ok(nccl.with_context(|| format!("--fabric {fabric}"))?),
    };
    match nccl {
        Ok(device) => offers.insert(0, Offer::Nccl(device)),
        Err(cause) => lacks.insert(0, Lack { fabric, cause }),
    }
    Ok((offers, lacks))
}

/// Bytes that it may still take, of what the machine or its GPU has left, having loaded its model.
fn allowed(memory: Option<u64>, has: MemoryLeft) -> anyhow::Result<u64> {
    let MemoryLeft { taken, free } = has;
    let Some(memory) = memory else { return Ok(free) };
    let Some(left) = memory.checked_sub(taken) else {
        bail!(
            "--memory {} MiB: {} MiB are taken with the model loaded; give more, or hold its weights \
             in a smaller type with --dtype",
            memory >> 20,
            taken >> 20
        );
    };
    Ok(free.min(left))
}

/// Reads a size in bytes with its unit.
fn size(text: &str) -> Result<u64, String> {
    let units = [("GiB", 30), ("MiB", 20)];
    let read = units.iter().find_map(|(unit, shift)| {
        let number: u64 = text.strip_suffix(unit)?.trim().parse().ok()?;
        number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
    });
    read.ok_or_else(|| "give a whole number of GiB or MiB, such as 12GiB".to_owned())
}

fn check_address(address: &str) -> anyhow::Result<()> {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => bail!("--coordinator {address}: give HOST:PORT, such as 10.0.0.1:7411"),
    }
}

/// Loads on a thread of its own, so that signals are answered meanwhile.
async fn load(options: EngineOptions) -> anyhow::Result<Engine> {
    let (loaded, engine) = oneshot::channel();
    std::thread::Builder::new().name("load".to_owned()).spawn(move || {
        // Nobody waits for it any more if this process is ending.
        loaded.send(Engine::load(&options)).ok();
    })?;
    Ok(engine.await.context("loading the model panicked")??)
}

/// Waits until standard input is closed, on a thread that does not keep this process alive.
async fn parent_gone() {
    let (gone, parent) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        drop(gone);
    });
    parent.await.ok();
}

fn own_name() -> String {
    let host = gethostname::gethostname();
    format!("{}-{}", host.to_string_lossy(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("12GiB"), Ok(12 << 30));
        assert_eq!(size("900 MiB"), Ok(900 << 20));
        for wrong in ["12", "0GiB", "1.5GiB", "-1MiB", "99999999999999GiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_model_larger_than_its_memory_is_refused() {
        let has = MemoryLeft { taken: 2 << 30, free: 9 << 30 };
        assert!(allowed(Some(1 << 20), has).unwrap_err().to_string().contains("--memory 1 MiB"));
        assert_eq!(allowed(None, has).unwrap(), 9 << 30);
        assert_eq!(allowed(Some(1 << 50), has).unwrap(), 9 << 30);
        assert_eq!(allowed(Some(6 << 30), has).unwrap(), 4 << 30);
    }
}
