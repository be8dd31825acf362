//! The options that say who a worker is.

use crate::member::Backoff;
use anyhow::{Context, bail};
use protocol::identity::{Credentials, Role, Token};
use protocol::keyfile;
use protocol::tls::Security;
use protocol::transport::enrol;
use protocol::transport::enrol::EnrolError;
use std::fs::{File, TryLockError};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::lookup_host;
use tokio::time::sleep;

/// Gives the token where a command line would show it to others.
const TOKEN_VARIABLE: &str = "TESSERA_TOKEN";
const TOKEN_HELP: &str = "What makes this worker a member of the cluster, from `coordinator token`: \
     needed once [default: $TESSERA_TOKEN, which `ps` does not show]";
const FOLDER_HELP: &str = "The folder to keep its identity in, or `memory`, which needs a token at \
     every start [default: $XDG_STATE_HOME/tessera/NAME or ~/.local/state/tessera/NAME, where NAME is \
     --name or else this host's: workers of one host share it]";

/// How often a folder that another worker is enrolling for is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Where nothing is kept.
const MEMORY: &str = "memory";

#[derive(Clone, Debug, clap::Args)]
pub(super) struct IdentityArgs {
    #[arg(long, help = TOKEN_HELP, conflicts_with = "insecure")]
    token: Option<String>,
    /// A file that holds the token, as container secrets are; looked at only if a token is needed.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["token", "insecure"])]
    token_file: Option<PathBuf>,
    #[arg(long, value_name = "DIR", help = FOLDER_HELP, conflicts_with = "insecure")]
    identity: Option<PathBuf>,
    /// Neither prove who this is nor ask: for a coordinator on this machine that was started so.
    #[arg(long)]
    insecure: bool,
}

impl IdentityArgs {
    /// The address to listen on, unless it cannot be had without identities.
    pub(super) fn listen(&self, asked: Option<SocketAddr>) -> anyhow::Result<SocketAddr> {
        let all = if self.insecure { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        let listen = asked.unwrap_or_else(|| SocketAddr::from((all, 0)));
        if self.insecure && !listen.ip().is_loopback() {
            bail!(
                "--listen {listen}: with --insecure whoever can reach it is let in, which only this \
                 machine's own addresses (127.0.0.1) may be; give --token instead of --insecure"
            );
        }
        Ok(listen)
    }

    /// How this worker proves who it is: by what it keeps, or what it gets from the coordinator at
    /// `address` for a token.
    pub(super) async fn security(
        &self,
        address: &str,
        name: Option<&str>,
    ) -> anyhow::Result<Security> {
        if self.insecure {
            check_loopback(address).await?;
            tracing::warn!(
                "insecure: whoever is on this machine can reach this worker, and nothing is encrypted"
            );
            return Ok(Security::Insecure);
        }
        let host = || gethostname::gethostname().to_string_lossy().into_owned();
        let name = name.map_or_else(host, str::to_owned);
        let credentials = match self.folder(&name)? {
            None => enrolled(address, &self.given_token()?, &name).await?,
            Some(folder) => self.kept(&folder, address, &name).await?,
        };
        Ok(Security::mutual(credentials)?)
    }

    /// Where the identity is kept; None: nowhere.
    fn folder(&self, name: &str) -> anyhow::Result<Option<PathBuf>> {
        if let Some(folder) = &self.identity {
            return Ok(Some(folder.clone()).filter(|folder| folder != Path::new(MEMORY)));
        }
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let state = variable("XDG_STATE_HOME").map(PathBuf::from);
        let state = state.or_else(|| Some(Path::new(&variable("HOME")?).join(".local/state")));
        let state =
            state.context("no folder for this worker's identity: set HOME, or give --identity")?;
        // A name is one folder, whatever it holds.
        let plain = |letter: char| if letter.is_alphanumeric() { letter } else { '-' };
        Ok(Some(state.join("tessera").join(name.chars().map(plain).collect::<String>())))
    }

    fn given_token(&self) -> anyhow::Result<Token> {
        let token = match &self.token_file {
            // Others may read it: whoever hands out secrets sets modes, and this one is soon worthless.
            Some(path) => Some(
                std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the token in {}", path.display()))?,
            ),
            None => self.token.clone().or_else(|| std::env::var(TOKEN_VARIABLE).ok()),
        };
        let Some(token) = token else {
            bail!(
                "a new worker needs a token: `coordinator token`, on the coordinator's machine, prints \
                 one for --token, --token-file or {TOKEN_VARIABLE}; or if the coordinator is on this machine and was \
                 started with --insecure, give --insecure"
            );
        };
        let token: Token = token.parse()?;
        if token.role != Role::Worker {
            bail!("the token {} is a {}'s: make one with --role worker", token.id, token.role);
        }
        Ok(token)
    }

    /// The identity in `folder`, or else a new one, which is kept there.
    async fn kept(&self, folder: &Path, address: &str, name: &str) -> anyhow::Result<Credentials> {
        keyfile::make_folder(folder)?;
        // Of several workers that start at once and share it, one enrols.
        let lock = File::create(folder.join("lock"));
        let lock = lock.with_context(|| format!("cannot write into {}", folder.display()))?;
        while let Err(error) = lock.try_lock() {
            match error {
                TryLockError::WouldBlock => sleep(LOOK).await,
                TryLockError::Error(error) => return Err(error.into()),
            }
        }
        if let Some(found) = keyfile::load(folder, Role::Worker.name())? {
            let token = self.given_token();
            let place = folder.display();
            if let Ok(token) = &token
                && token.authority != found.authority()
            {
                bail!(
                    "the identity in {place} is of the cluster {}, the token of {}: give another \
                     --identity folder, or remove that one",
                    found.authority().short(),
                    token.authority.short()
                );
            }
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            if now < found.identity().expires {
                tracing::info!("this is {}, kept in {place}", found.identity());
                return Ok(found);
            }
            tracing::warn!("the certificate in {place} has expired; asking for another");
        }
        let credentials = enrolled(address, &self.given_token()?, name).await?;
        keyfile::store(folder, Role::Worker.name(), &credentials)?;
        tracing::info!("kept in {}: from now on it joins without a token", folder.display());
        Ok(credentials)
    }
}

/// Becomes a member, calling the coordinator again while it is not there.
async fn enrolled(address: &str, token: &Token, name: &str) -> anyhow::Result<Credentials> {
    let mut backoff = Backoff::default();
    let mut reported = false;
    loop {
        match enrol(address, token, name).await {
            Ok(credentials) => {
                tracing::info!("became a member: {}", credentials.identity());
                return Ok(credentials);
            }
            Err(error @ EnrolError::Absent { may_pass: true, .. }) => {
                if !reported {
                    tracing::warn!("{error}; calling it again until it is there");
                }
                reported = true;
                sleep(backoff.pause()).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn check_loopback(address: &str) -> anyhow::Result<()> {
    for found in lookup_host(address).await.with_context(|| format!("--coordinator {address}"))? {
        if !found.ip().is_loopback() {
            bail!(
                "--coordinator {address}: with --insecure nobody proves who they are and nothing is \
                 encrypted, which only this machine's own addresses (127.0.0.1) may be; give --token \
                 instead of --insecure"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments() -> IdentityArgs {
        IdentityArgs { token: None, token_file: None, identity: None, insecure: false }
    }

    #[test]
    fn what_is_not_protected_listens_on_loopback_alone() {
        let everywhere: SocketAddr = "0.0.0.0:0".parse().unwrap();
        assert_eq!(arguments().listen(None).unwrap(), everywhere);
        let insecure = IdentityArgs { insecure: true, ..arguments() };
        assert!(insecure.listen(None).unwrap().ip().is_loopback());
        let refused = insecure.listen(Some(everywhere)).unwrap_err().to_string();
        assert!(refused.contains("0.0.0.0:0") && refused.contains("--token"), "{refused}");
    }

    #[test]
    fn an_identity_is_kept_where_it_is_asked_for() {
        let kept = |identity: &str| {
            let identity = Some(PathBuf::from(identity));
            IdentityArgs { identity, ..arguments() }.folder("apple").unwrap()
        };
        assert_eq!(kept("/some/where"), Some(PathBuf::from("/some/where")));
        assert_eq!(kept("memory"), None);
        let odd = arguments().folder("../a b").unwrap().unwrap();
        assert!(odd.ends_with("tessera/---a-b"), "{}", odd.display());
    }
}
