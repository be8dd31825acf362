//! Where a command's jobs are rendered: on a cluster, or by workers started for it.

use super::identity::IdentityArgs;
use super::request::RequestArgs;
use super::{ADDRESS_DEFAULT, INTERRUPTED, TERMINATED};
use crate::client::{ClientError, Destination};
use crate::launch::local::{LocalCluster, LocalDevice, LocalWorkers};
use anyhow::bail;
use protocol::FaultKind;
use std::num::NonZeroU16;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// How long after its connection a worker's process may end: both happen at once.
const OBITUARY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(super) struct ClusterArgs {
    /// Start N workers on this machine for this command, and stop them after it.
    #[arg(long, value_name = "N")]
    local: Option<NonZeroU16>,
    /// The coordinator to submit to.
    #[arg(long, value_name = "HOST:PORT", default_value = ADDRESS_DEFAULT, conflicts_with = "local")]
    coordinator: String,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Compute threads of each local worker [default: this machine's cores shared out].
    #[arg(long, value_name = "N", requires = "local")]
    threads: Option<NonZeroU16>,
    /// What each local worker computes on. A GPU needs a worker that was built for it: docs/gpu.md.
    #[arg(long, value_name = "DEVICE", value_enum, default_value_t, requires = "local")]
    device: LocalDevice,
}

impl ClusterArgs {
    /// How many workers are started on this machine, if any are.
    pub(super) fn local(&self) -> Option<u16> {
        self.local.map(NonZeroU16::get)
    }

    /// The options that make another command call the same coordinator.
    pub(super) fn options(&self) -> String {
        self.identity.options(&self.coordinator)
    }

    /// Does `work` with the coordinator, until it is done or a signal or a local worker's
    /// death ends it; then stops what was started for it.
    pub(super) async fn run(
        &self,
        request: &RequestArgs,
        work: impl AsyncFnOnce(&Destination) -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        if self.local.is_some() && self.identity.given() {
            bail!("--local needs no identity: leave --identity and --insecure out");
        }
        let mut cluster = match self.local {
            Some(count) => Some(LocalCluster::start(&self.local_workers(request, count)).await?),
            None => None,
        };
        let destination = match &cluster {
            Some(cluster) => cluster.destination(),
            None => self.identity.destination(&self.coordinator).await?,
        };
        let outcome = {
            let worker_died = async {
                match &mut cluster {
                    Some(cluster) => cluster.worker_died().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                done = work(&destination) => done.map(|()| ExitCode::SUCCESS),
                died = worker_died => Err(died.into()),
                _ = interrupt.recv() => Ok(ExitCode::from(INTERRUPTED)),
                _ = terminate.recv() => Ok(ExitCode::from(TERMINATED)),
            }
        };
        match cluster {
            Some(cluster) => explain(outcome, cluster).await,
            None => outcome,
        }
    }

    fn local_workers(&self, request: &RequestArgs, count: NonZeroU16) -> LocalWorkers {
        LocalWorkers {
            count,
            threads: self.threads,
            model: request.model.clone(),
            dtype: request.dtype,
            device: self.device,
        }
    }
}

/// Ends the local workers. If one was lost, how its process ended says more than that it did.
async fn explain(
    outcome: anyhow::Result<ExitCode>,
    mut cluster: LocalCluster,
) -> anyhow::Result<ExitCode> {
    let lost = outcome.as_ref().is_err_and(|error| {
        matches!(
            error.downcast_ref(),
            Some(ClientError::Refused(fault))
                if matches!(fault.kind, FaultKind::WorkerLost | FaultKind::PeerLost)
        )
    });
    let died = if lost { timeout(OBITUARY, cluster.worker_died()).await.ok() } else { None };
    cluster.stop().await;
    died.map_or(outcome, |died| Err(died.into()))
}
