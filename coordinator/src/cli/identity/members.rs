//! `coordinator init`, `enroll` and `revoke`.

use super::super::ADDRESS_DEFAULT;
use super::FolderArgs;
use crate::identity::{Folder, FolderError};
use anyhow::bail;
use protocol::identity::{Fingerprint, PeerIdentity, Role, Token};
use protocol::transport::enrol;
use serde_json::{Value, json};
use std::process::ExitCode;

/// Gives the token where a command line would show it to others.
const TOKEN_VARIABLE: &str = "TESSERA_TOKEN";
const TOKEN_HELP: &str = "A client's token, from `coordinator token --role client` on the \
     coordinator's machine [default: $TESSERA_TOKEN, which `ps` does not show]";

#[derive(Debug, clap::Args)]
pub(crate) struct InitArgs {
    /// Keep the cluster that is there, if one is: for what starts a coordinator unattended.
    #[arg(long)]
    keep: bool,
    #[command(flatten)]
    folder: FolderArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct EnrollArgs {
    /// The coordinator to enrol with.
    #[arg(long, value_name = "HOST:PORT", default_value = ADDRESS_DEFAULT)]
    coordinator: String,
    #[arg(long, help = TOKEN_HELP)]
    token: Option<String>,
    /// What the cluster calls this client [default: user and host name].
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    folder: FolderArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArgs {
    /// Whose: a name, or the first eight digits or more of a fingerprint, as `status` and `token list`
    /// show them.
    #[arg(value_name = "NAME|FINGERPRINT")]
    member: String,
    #[command(flatten)]
    folder: FolderArgs,
}

/// Makes a cluster's authority, its coordinator's credentials and a client's.
pub(crate) fn init(arguments: &InitArgs) -> anyhow::Result<ExitCode> {
    let folder = arguments.folder.find()?;
    if arguments.keep {
        match folder.authority() {
            Err(FolderError::Missing { .. }) => {}
            found => {
                let cluster = found?.fingerprint();
                let text = format!(
                    "kept the cluster {} in {}\n",
                    cluster.short(),
                    folder.path().display()
                );
                let made = made(cluster, &folder, false);
                return arguments.folder.say(&text, &made);
            }
        }
    }
    let authority = folder.init(&own_name())?.fingerprint();
    let given = arguments.folder.identity.as_ref();
    let option = given.map_or_else(String::new, |at| format!(" --identity {}", at.display()));
    let text = format!(
        "made the cluster {} in {}\n\
         \n\
         next, here:        coordinator serve{option} --listen ADDR:7411\n\
         and for workers:   coordinator token{option}\n\
         on each of theirs: worker join --coordinator THIS-HOST:7411 --token TOKEN\n\
         and then, here:    coordinator submit{option} \"red apple\"\n\
         \n\
         Who has the folder's files can make members of this cluster: keep them to yourself.\n",
        authority.short(),
        folder.path().display()
    );
    arguments.folder.say(&text, &made(authority, &folder, true))
}

/// Makes a cluster in the folder, unless there is one; gives whether it did.
pub(crate) fn ensure(folder: &Folder) -> Result<bool, FolderError> {
    match folder.authority() {
        Err(FolderError::Missing { .. }) => folder.init(&own_name()).map(|_| true),
        found => found.map(|_| false),
    }
}

fn made(cluster: Fingerprint, folder: &Folder, new: bool) -> Value {
    json!({ "cluster": cluster, "folder": folder.path(), "new": new })
}

/// Gets a client's credentials from a coordinator.
pub(crate) async fn enroll(arguments: EnrollArgs) -> anyhow::Result<ExitCode> {
    let folder = arguments.folder.find()?;
    folder.check_no_client()?;
    let token = arguments.token.or_else(|| std::env::var(TOKEN_VARIABLE).ok());
    let Some(token) = token else {
        bail!("give --token, or {TOKEN_VARIABLE}: `coordinator token --role client` prints one");
    };
    let token: Token = token.parse()?;
    if token.role != Role::Client {
        bail!("the token {} is a {}'s: make one with --role client", token.id, token.role);
    }
    let name = arguments.name.unwrap_or_else(own_name);
    let credentials = enrol(&arguments.coordinator, &token, &name).await?;
    folder.store_client(&credentials)?;
    let (identity, cluster) = (credentials.identity(), credentials.authority());
    let text = format!(
        "{identity} is a member of the cluster {} now; its key is in {}\n",
        cluster.short(),
        folder.path().display()
    );
    let json = json!({
        "cluster": cluster, "folder": folder.path(), "member": member(identity),
    });
    arguments.folder.say(&text, &json)
}

/// Lets a member in no more.
pub(crate) fn revoke(arguments: &RevokeArgs) -> anyhow::Result<ExitCode> {
    let folder = arguments.folder.find()?;
    let revoked = folder.change(|trust| trust.revoke(&arguments.member))??;
    let lines = revoked.iter().map(|identity| {
        format!("revoked {identity}: a running coordinator ends its session within a second\n")
    });
    let members: Vec<Value> = revoked.iter().map(member).collect();
    arguments.folder.say(&lines.collect::<String>(), &json!({ "revoked": members }))
}

/// A member as JSON.
pub(super) fn member(identity: &PeerIdentity) -> Value {
    json!({
        "fingerprint": identity.fingerprint,
        "name": identity.name,
        "role": identity.role.name(),
        "expires": identity.expires,
    })
}

fn own_name() -> String {
    let user = std::env::var("USER").unwrap_or_else(|_| "client".to_owned());
    format!("{user}@{}", gethostname::gethostname().to_string_lossy())
}
