//! `coordinator launch --environment`: one of several processes that srun, mpirun or torchrun started.

use super::{LaunchArgs, Signals, host_port};
use crate::cli::serve;
use crate::launch::admission::Admission;
use crate::launch::call::{self, Call};
use crate::launch::failure::Ending;
use crate::launch::hosts::{Host, Place, Settings};
use crate::launch::local::{LocalDevice, worker_binary};
use crate::launch::ranks::Ranks;
use crate::launch::rendezvous::Rendezvous;
use crate::launch::script::{self, Joining, Reach};
use anyhow::{Context, bail};
use std::num::NonZeroU16;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::{Instant, sleep};

/// Any port: several runs may share a machine.
const LISTEN: &str = "0.0.0.0:0";
/// How often the shared folder is looked at: it is on a server that many look at.
const LOOK: Duration = Duration::from_millis(500);

pub(super) async fn run(
    arguments: &LaunchArgs,
    share: &Path,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    let ranks = Ranks::of(|name| std::env::var(name).ok())?;
    if ranks.rank == 0 {
        first(arguments, ranks, share, signals).await
    } else {
        tokio::select! {
            done = further(arguments, ranks, share) => done,
            code = signals.recv() => Ok(code),
        }
    }
}

/// Runs the coordinator and a worker, and tells the others.
async fn first(
    arguments: &LaunchArgs,
    ranks: Ranks,
    share: &Path,
    signals: &mut Signals,
) -> anyhow::Result<ExitCode> {
    // One of an earlier run, which others might take for this one's.
    Rendezvous::withdraw(share)?;
    let folder = arguments.folder()?;
    let host = match &arguments.address {
        Some(host) => host.clone(),
        None => own_name(ranks).await?,
    };
    let listen = arguments.serve.listen.as_deref().unwrap_or(LISTEN);
    let mut service = serve::start(&arguments.serve, listen).await?;
    let address = host_port(&host, service.coordinator.address().port());
    let reach = Reach::At(address.clone());
    let own = Host {
        name: Ranks::name(0),
        place: Place::Here,
        slots: NonZeroU16::MIN,
        settings: settings(arguments, ranks),
    };
    let elsewhere = (1..ranks.size).map(Ranks::name).collect();
    let order = arguments.order(vec![own], elsewhere, reach.clone(), reach);
    let outcome = async {
        let order = order?;
        let mut admission = Admission::new(folder.clone());
        if let Some(token) = admission.token(usize::from(ranks.size - 1).max(1))? {
            Rendezvous { address, token }.publish(share)?;
        }
        let outcome = arguments.attend(&mut service, &mut admission, order, signals).await;
        Rendezvous::withdraw(share)?;
        admission.close().context("the tokens of this launch are still good for an hour")?;
        outcome
    }
    .await;
    service.stop().await;
    outcome
}

/// Is a worker of the first rank's coordinator, until that withdraws.
async fn further(arguments: &LaunchArgs, ranks: Ranks, share: &Path) -> anyhow::Result<ExitCode> {
    let patience = Duration::from_secs(arguments.patience.into());
    let binary = worker_binary()?.display().to_string();
    let binary = arguments.worker.clone().unwrap_or(binary);
    let (name, settings) = (Ranks::name(ranks.rank), settings(arguments, ranks));
    let start = Instant::now();
    let mut told = None;
    loop {
        let Some(found) = Rendezvous::find(share)?.filter(|found| told.as_ref() != Some(found))
        else {
            if start.elapsed() > patience {
                bail!(
                    "in {} s rank 0 did not tell in {} where it is: --share must name a folder that all ranks see",
                    patience.as_secs(),
                    share.display()
                );
            }
            sleep(LOOK).await;
            continue;
        };
        let joining = Joining {
            worker: &binary,
            coordinator: &Reach::At(found.address.clone()),
            token: Some(&found.token),
            name: &name,
            slot: ranks.gpu(std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref()),
            shared: 1,
            settings: &settings,
        };
        let script = script::join(&joining);
        let speak = call::speak(&name, arguments.serve.log.json());
        let started = Call::start(&Place::Here, "", &script, speak).await;
        let mut call = started.map_err(|failure| anyhow::anyhow!("{}", failure.words))?;
        let ended = tokio::select! {
            ended = call.wait() => Some(ended.ending()),
            () = until_withdrawn(share, &found) => None,
        };
        match ended {
            None => {
                call.stop().await;
                if Rendezvous::find(share)?.is_none() {
                    tracing::info!("rank 0 ended");
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Some(Ending::Left) => return Ok(ExitCode::SUCCESS),
            // What it was told may have been an earlier run's: the next may be this one's.
            Some(Ending::Failed(failure)) if start.elapsed() > patience => {
                bail!("the worker {name} {}: {}", failure.kind.name(), failure.words)
            }
            Some(Ending::Failed(failure)) => {
                tracing::warn!("the worker {name} {}: {}", failure.kind.name(), failure.words);
            }
        }
        told = Some(found);
    }
}

/// Waits until rank 0 says something else, or nothing any more.
async fn until_withdrawn(share: &Path, told: &Rendezvous) {
    loop {
        sleep(LOOK).await;
        // What cannot be read now may be later: a network's file system comes and goes.
        if let Ok(found) = Rendezvous::find(share)
            && found.as_ref() != Some(told)
        {
            return;
        }
    }
}

fn settings(arguments: &LaunchArgs, ranks: Ranks) -> Settings {
    let mut settings = arguments.settings();
    // GPUs have no threads to share; the cores of a machine whose ranks nothing keeps apart do.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if let Some(beside) = ranks.beside
        && settings.device != Some(LocalDevice::Cuda)
    {
        let shared = u16::try_from(cores / usize::from(beside.max(1))).unwrap_or(u16::MAX);
        settings.threads =
            settings.threads.or_else(|| Some(NonZeroU16::new(shared).unwrap_or(NonZeroU16::MIN)));
    }
    settings
}

/// This machine's name, if others reach it by that.
async fn own_name(ranks: Ranks) -> anyhow::Result<String> {
    let name = gethostname::gethostname().to_string_lossy().into_owned();
    let found = lookup_host((name.clone(), 0)).await;
    let mut found = found.with_context(|| {
        format!("this machine's name is {name}, which nobody finds: give --address HOST")
    })?;
    if !ranks.all_here() && found.any(|address| address.ip().is_loopback()) {
        bail!("this machine's name, {name}, is to itself a loopback address: give --address HOST");
    }
    Ok(name)
}
