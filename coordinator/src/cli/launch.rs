//! `coordinator launch`.

mod ranks;

use super::identity::ensure;
use super::serve::{self, ServeArgs, Service};
use super::{ADDRESS_DEFAULT, INTERRUPTED, TERMINATED};
use crate::identity::Folder;
use crate::launch::admission::Admission;
use crate::launch::fleet::{Fleet, Order, copied};
use crate::launch::hosts::{self, Host, Place, Settings};
use crate::launch::local::{LaunchError, LocalDevice, worker_binary};
use crate::launch::roll::{Roll, Terms};
use crate::launch::script::Reach;
use anyhow::{Context, bail};
use protocol::job::Dtype;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Where it listens if other machines are to reach it.
const LISTEN_ALL: &str = "0.0.0.0:7411";

#[derive(Debug, clap::Args)]
pub(super) struct LaunchArgs {
    /// Start workers on these hosts over ssh: one a line, `[user@]host[:port] [slots=N] [device=cuda|cpu] [threads=N]
    /// [model=DIR] [worker=PATH]`.
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    hosts: Option<PathBuf>,
    /// Start N workers on this machine.
    #[arg(long, value_name = "N")]
    local: Option<NonZeroU16>,
    /// Be one of the ranks that srun, mpirun or torchrun started: rank 0 runs the coordinator, and each a worker.
    #[arg(long, requires = "share", conflicts_with_all = ["hosts", "local", "insecure"])]
    environment: bool,
    /// A folder that all ranks see, where rank 0 tells the others where it is. Give each run its own.
    #[arg(long, value_name = "DIR", requires = "environment")]
    share: Option<PathBuf>,
    /// How workers reach this machine [default: the address that ssh comes from; of ranks, this machine's name].
    #[arg(long, value_name = "HOST")]
    address: Option<String>,
    /// How ssh is called, as a shell reads it: `ssh -i key`.
    #[arg(long, value_name = "COMMAND", default_value = "ssh", requires = "hosts")]
    ssh: String,
    /// Where the worker binary is on the hosts [default: where it is on this one, or in their PATH].
    #[arg(long, value_name = "PATH", conflicts_with = "copy")]
    worker: Option<String>,
    /// Copy this machine's worker binary to the hosts, into ~/.cache/tessera, unless it is there.
    #[arg(long, requires = "hosts")]
    copy: bool,
    /// The folder of the checkpoint, on each host [default: the built-in emoji-xl].
    #[arg(long, value_name = "DIR")]
    model: Option<String>,
    /// The type weights are held in.
    #[arg(long, value_name = "TYPE")]
    dtype: Option<Dtype>,
    /// What workers compute on; with cuda each of a host has a GPU of its own [default: cpu].
    #[arg(long, value_name = "DEVICE", value_enum)]
    device: Option<LocalDevice>,
    /// Compute threads of each worker [default: its host's cores shared out].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroU16>,
    /// Give up if fewer workers come [default: all].
    #[arg(long, value_name = "N")]
    min_workers: Option<NonZeroUsize>,
    /// How many seconds they have to come.
    #[arg(long, value_name = "SECONDS", default_value = "120")]
    patience: u32,
    /// How often in a row a worker is started again that was there and died.
    #[arg(long, value_name = "N", default_value = "3")]
    restarts: u32,
    #[command(flatten)]
    serve: ServeArgs,
}

/// The signals that end a launch.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let [interrupt, terminate, hangup] =
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
        Ok(Self { interrupt: interrupt?, terminate: terminate?, hangup: hangup? })
    }

    /// Waits for one of them, and gives the exit code that it makes.
    async fn recv(&mut self) -> ExitCode {
        tokio::select! {
            _ = self.interrupt.recv() => ExitCode::from(INTERRUPTED),
            _ = self.terminate.recv() => ExitCode::from(TERMINATED),
            _ = self.hangup.recv() => ExitCode::from(TERMINATED),
        }
    }
}

pub(super) async fn run(arguments: LaunchArgs) -> anyhow::Result<ExitCode> {
    arguments.serve.begin_log();
    let mut signals = Signals::new()?;
    if let (true, Some(share)) = (arguments.environment, &arguments.share) {
        return ranks::run(&arguments, share, &mut signals).await;
    }
    let hosts = arguments.hosts()?;
    let folder = arguments.folder()?;
    let elsewhere = hosts.iter().any(|host| host.place != Place::Here);
    let default = if elsewhere { LISTEN_ALL } else { ADDRESS_DEFAULT };
    let listen = arguments.serve.listen.as_deref().unwrap_or(default);
    let mut service = serve::start(&arguments.serve, listen).await?;
    let reach = arguments.reach(service.coordinator.address(), elsewhere);
    let order = reach.and_then(|(here, there)| arguments.order(hosts, Vec::new(), here, there));
    let outcome = match order {
        Ok(order) => arguments.keep(&mut service, folder, order, &mut signals).await,
        Err(error) => Err(error),
    };
    service.stop().await;
    outcome
}

impl LaunchArgs {
    /// The hosts, and what their workers are started with.
    fn hosts(&self) -> anyhow::Result<Vec<Host>> {
        let settings = self.settings();
        let mut all = Vec::new();
        if let Some(slots) = self.local {
            let name = "local".to_owned();
            all.push(Host { name, place: Place::Here, slots, settings: settings.clone() });
        }
        if let Some(file) = &self.hosts {
            let text = std::fs::read_to_string(file);
            let text = text.with_context(|| format!("--hosts {}", file.display()))?;
            let named =
                hosts::parse(&text).with_context(|| format!("--hosts {}", file.display()))?;
            let with = |host: Host| Host { settings: host.settings.or(&settings), ..host };
            all.extend(named.into_iter().map(with));
        }
        if all.is_empty() {
            bail!(
                "give --hosts FILE for workers on other machines, --local N for workers on this one, \
                 or under srun or mpirun --environment --share DIR"
            );
        }
        Ok(all)
    }

    fn settings(&self) -> Settings {
        Settings {
            device: self.device,
            threads: self.threads,
            model: self.model.clone(),
            dtype: self.dtype,
            worker: self.worker.clone(),
        }
    }

    /// The cluster's identity, which is made if there is none; None without identities.
    fn folder(&self) -> anyhow::Result<Option<Folder>> {
        if self.serve.identity.insecure {
            return Ok(None);
        }
        let folder = Folder::find(self.serve.identity.identity.as_deref())?;
        if ensure(&folder)? {
            tracing::info!("made a cluster's identity in {}", folder.path().display());
        }
        Ok(Some(folder))
    }

    /// How workers on this machine, and those on others, reach a coordinator that listens at `address`.
    fn reach(&self, address: SocketAddr, elsewhere: bool) -> anyhow::Result<(Reach, Reach)> {
        let (ip, port) = (address.ip(), address.port());
        let given = self.address.as_ref().map(|host| Reach::At(host_port(host, port)));
        if elsewhere && ip.is_loopback() && given.is_none() {
            // Some hosts may be other names of this machine, but nobody can know.
            tracing::warn!("only this machine reaches {address}: others need another --listen");
        }
        let listened = Reach::At(address.to_string());
        Ok(match given {
            Some(given) => (given.clone(), given),
            None if !ip.is_unspecified() => (listened.clone(), listened),
            None if elsewhere && self.local.is_some() => bail!(
                "workers on this machine and on others call each other at addresses that all of them \
                 reach: give this machine's with --address HOST"
            ),
            None => {
                let here = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                (Reach::At(here.to_string()), Reach::Caller(port))
            }
        })
    }

    /// What is to be started.
    fn order(
        &self,
        hosts: Vec<Host>,
        elsewhere: Vec<String>,
        here: Reach,
        there: Reach,
    ) -> anyhow::Result<Order> {
        let binary = match worker_binary() {
            // Hosts may have one there all the same.
            Err(LaunchError::NoBinary(path)) if !self.copy => path,
            found => found?,
        };
        let copy = if self.copy {
            let read = copied(&binary);
            Some(read.with_context(|| format!("cannot copy {}", binary.display()))?)
        } else {
            None
        };
        let count = hosts.iter().map(|host| usize::from(host.slots.get())).sum::<usize>();
        let count = count + elsewhere.len();
        let min_workers = self.min_workers.map_or(count, NonZeroUsize::get);
        if min_workers > count {
            bail!("--min-workers {min_workers}: only {count} are started");
        }
        let patience = Duration::from_secs(self.patience.into());
        let terms = Terms { min_workers, patience, restarts: self.restarts };
        let (ssh, json) = (self.ssh.clone(), self.serve.log.json());
        Ok(Order { hosts, elsewhere, ssh, binary, copy, here, there, terms, json })
    }

    /// Starts workers and keeps them, until a signal ends it or too few are left; then ends them all.
    async fn keep(
        &self,
        service: &mut Service,
        folder: Option<Folder>,
        order: Order,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitCode> {
        let mut admission = Admission::new(folder);
        let outcome = self.attend(service, &mut admission, order, signals).await;
        admission.close().context("the tokens of this launch are still good for an hour")?;
        outcome
    }

    async fn attend(
        &self,
        service: &mut Service,
        admission: &mut Admission,
        order: Order,
        signals: &mut Signals,
    ) -> anyhow::Result<ExitCode> {
        let mut fleet = Fleet::start(order, admission)?;
        let mut address = service.coordinator.address();
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let submit = self.serve.identity.options(&address.to_string());
        let ready = |roll: &Roll| {
            let (here, asked) = roll.count();
            if here < asked {
                tracing::warn!("{here} of {asked} workers came:\n{}", roll.table());
            }
            tracing::info!(
                "ready, {here} of {asked} workers: coordinator submit{submit} \"red apple\""
            );
        };
        let outcome = tokio::select! {
            ended = fleet.follow(&service.coordinator, admission, ready) => {
                ended.map(|()| ExitCode::SUCCESS).map_err(anyhow::Error::new)
            }
            code = signals.recv() => Ok(code),
            taken = service.taken.wait() => Err(taken.into()),
        };
        tracing::info!("ending all workers");
        fleet.stop().await;
        outcome
    }
}

/// An address with a port; that of an IPv6 host has brackets.
fn host_port(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}
