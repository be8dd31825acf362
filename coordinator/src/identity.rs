//! Who is let in: the keeper of the cluster's authority, and the folder it is kept in.

mod folder;

pub use folder::{Folder, FolderError};

use crate::cluster::trust::Trust;
use protocol::identity::{
    Authority, IdentityError, PeerIdentity, Role, Subject, Terms, Token, TokenError,
};
use protocol::message::Enrolment;
use protocol::tls::Security;
use protocol::{Fault, FaultKind};
use std::future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::sleep;

/// How often the folder is looked at: a revoked worker is out within a second.
const LOOK: Duration = Duration::from_millis(500);

/// Seconds since 1970, as certificates and tokens count.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whom a coordinator lets in.
#[derive(Clone, Debug)]
pub enum Access {
    /// Whoever calls: for one machine's loopback alone.
    Insecure,
    /// Members of its cluster.
    Members(Arc<Keeper>),
}

impl Access {
    /// How its connections are protected.
    #[must_use]
    pub fn security(&self) -> &Security {
        match self {
            Self::Insecure => &Security::Insecure,
            Self::Members(keeper) => &keeper.security,
        }
    }

    /// Ready when the identity is revoked, with the reason; never, if nothing is protected.
    pub async fn revoked(&self, identity: Option<&PeerIdentity>) -> Fault {
        match (self, identity) {
            (Self::Members(keeper), Some(identity)) => keeper.revoked(identity).await,
            _ => future::pending().await,
        }
    }
}

/// Has the cluster's authority and decides who is a member.
#[derive(Debug)]
pub struct Keeper {
    authority: Authority,
    security: Security,
    folder: Option<Folder>,
    trust: Mutex<Trust>,
    /// Counts the times that `trust` was read anew.
    changes: watch::Sender<u64>,
}

impl Keeper {
    /// The one of the cluster in this folder, whose changes it follows ([`Self::follow`]).
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn open(folder: Folder) -> Result<Self, FolderError> {
        let authority = folder.authority()?;
        let credentials = folder.credentials(Role::Coordinator)?;
        let security = Security::mutual(credentials).map_err(|error| folder.damaged(&error))?;
        let trust = Mutex::new(folder.trust()?);
        let (folder, changes) = (Some(folder), watch::Sender::new(0));
        Ok(Self { authority, security, folder, trust, changes })
    }

    /// One in memory, for a cluster that ends with this process.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn ephemeral() -> Result<Self, IdentityError> {
        let authority = Authority::new(now())?;
        let own = Subject::new(Role::Coordinator, "coordinator", now());
        let security = Security::mutual(authority.credentials(&own)?)?;
        let (trust, changes) = (Mutex::default(), watch::Sender::new(0));
        Ok(Self { authority, security, folder: None, trust, changes })
    }

    /// A client in this process.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn client(&self) -> Result<Security, IdentityError> {
        let subject = Subject::new(Role::Client, "this process", now());
        Security::mutual(self.authority.credentials(&subject)?)
    }

    /// A token of a cluster in memory; others' are made in their folder.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn token(&self, terms: Terms) -> Result<Token, TokenError> {
        self.lock().tokens.make(terms, self.authority.fingerprint(), now())
    }

    fn lock(&self) -> MutexGuard<'_, Trust> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Issues a certificate for a token's use: it and the authority's, as PEM.
    ///
    /// # Errors
    /// `Unauthorised` if the token is refused.
    pub fn enrol(&self, enrolment: &Enrolment) -> Result<(PeerIdentity, String), Fault> {
        let Some(folder) = &self.folder else {
            return self.issue(&mut self.lock(), enrolment);
        };
        // Under the folder's lock: a token that is worth one certificate is not worth two at once.
        let changed = folder.change(|trust| {
            let issued = self.issue(trust, enrolment);
            self.lock().clone_from(trust);
            issued
        });
        changed.unwrap_or_else(|error| Err(unauthorised(&error)))
    }

    fn issue(
        &self,
        trust: &mut Trust,
        enrolment: &Enrolment,
    ) -> Result<(PeerIdentity, String), Fault> {
        let now = now();
        let Enrolment { token, name, request } = enrolment;
        let redeemed = trust.tokens.redeem(token, self.authority.fingerprint(), now);
        let role = redeemed.map_err(|error| unauthorised(&error))?;
        let issued = self.authority.issue(request, &Subject::new(role, name, now));
        let certificates = issued.map_err(|error| unauthorised(&error))?;
        let identity = PeerIdentity::of_pem(&certificates).map_err(|error| unauthorised(&error))?;
        trust.issued(&identity, now).map_err(|error| unauthorised(&error))?;
        Ok((identity, certificates))
    }

    /// Whether a caller with a valid certificate may come in as `role`.
    ///
    /// # Errors
    /// `Unauthorised` if it was revoked, or is something else.
    pub fn check(&self, identity: &PeerIdentity, role: Role) -> Result<(), Fault> {
        if identity.role != role {
            return Err(unauthorised(&format!("{identity} cannot come in as a {role}")));
        }
        self.lock().check(identity.fingerprint)
    }

    async fn revoked(&self, identity: &PeerIdentity) -> Fault {
        let mut changes = self.changes.subscribe();
        loop {
            if let Err(fault) = self.lock().check(identity.fingerprint) {
                return fault;
            }
            if changes.changed().await.is_err() {
                future::pending::<()>().await; // not while `self` is there
            }
        }
    }

    /// Reads the folder anew whenever it was changed, for ever.
    pub async fn follow(self: Arc<Self>) {
        let Some(folder) = &self.folder else { return };
        let mut seen = folder.stamp();
        loop {
            sleep(LOOK).await;
            let stamp = folder.stamp();
            if stamp == seen {
                continue;
            }
            seen = stamp;
            match folder.trust() {
                Ok(trust) => {
                    *self.lock() = trust;
                    self.changes.send_modify(|changes| *changes += 1);
                }
                Err(error) => tracing::warn!("{error}; what it said before still counts"),
            }
        }
    }
}

fn unauthorised(cause: &dyn ToString) -> Fault {
    Fault::new(FaultKind::Unauthorised, cause.to_string())
}
