//! Whom the cluster knows: the certificates it issued, those it revoked, and its tokens.

use protocol::identity::{Credentials, Fingerprint, PeerIdentity, Tokens};
use protocol::{Fault, FaultKind};
use serde::{Deserialize, Serialize};

/// The most certificates that are remembered: ten years of a new worker a day.
const MEMBERS_MAX: usize = 4096;

/// How few digits of a fingerprint name a member: what `status` and logs show.
const DIGITS_MIN: usize = 8;

/// A process that a certificate was issued for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Who it is.
    #[serde(flatten)]
    pub identity: PeerIdentity,
    /// Whether it is let in no more.
    pub revoked: bool,
}

/// Whom the cluster knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// The tokens that were given out.
    pub tokens: Tokens,
    /// The certificates that were issued, in that order.
    pub members: Vec<Issued>,
}

/// Why a member cannot be named so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// There is none.
    #[error(
        "no member is called {0:?}, and no fingerprint starts so: `coordinator token list` shows them"
    )]
    Unknown(String),
    /// There are several.
    #[error("{text:?} starts {count} fingerprints: give more digits")]
    Ambiguous {
        /// What was given.
        text: String,
        /// How many members it fits.
        count: usize,
    },
    /// There is no room for more.
    #[error("{MEMBERS_MAX} certificates were issued, and none of them has expired")]
    Full,
}

impl Trust {
    /// A certificate was issued `now`.
    ///
    /// # Errors
    /// If there are as many members as are remembered.
    pub fn issued(&mut self, credentials: &PeerIdentity, now: u64) -> Result<(), TrustError> {
        // An expired certificate opens nothing, whether it was revoked or not.
        self.members.retain(|member| now < member.identity.expires);
        if self.members.len() >= MEMBERS_MAX {
            return Err(TrustError::Full);
        }
        self.members.push(Issued { identity: credentials.clone(), revoked: false });
        Ok(())
    }

    /// Those of the authority's own making, at the start.
    #[must_use]
    pub fn of(credentials: &[&Credentials]) -> Self {
        let issued =
            |made: &&Credentials| Issued { identity: made.identity().clone(), revoked: false };
        Self { tokens: Tokens::default(), members: credentials.iter().map(issued).collect() }
    }

    /// Revokes all of that name, or the one whose fingerprint is or starts so; gives who they are.
    ///
    /// # Errors
    /// If there is none, or several fingerprints start so.
    pub fn revoke(&mut self, text: &str) -> Result<Vec<PeerIdentity>, TrustError> {
        let named = |member: &Issued| member.identity.name == text;
        let starts = |member: &Issued| {
            text.len() >= DIGITS_MIN && member.identity.fingerprint.to_string().starts_with(text)
        };
        let by_name = self.members.iter().any(named);
        let count = self.members.iter().filter(|member| starts(member)).count();
        if !by_name && count != 1 {
            let text = text.to_owned();
            return Err(match count {
                0 => TrustError::Unknown(text),
                _ => TrustError::Ambiguous { text, count },
            });
        }
        let meant = |member: &&mut Issued| if by_name { named(member) } else { starts(member) };
        let revoke = |member: &mut Issued| {
            member.revoked = true;
            member.identity.clone()
        };
        Ok(self.members.iter_mut().filter(meant).map(revoke).collect())
    }

    /// Forgets certificates whose keys are gone: nobody can show them any more. Those that were revoked stay so.
    pub fn forget(&mut self, fingerprints: &[Fingerprint]) {
        let gone = |member: &Issued| fingerprints.contains(&member.identity.fingerprint);
        self.members.retain(|member| member.revoked || !gone(member));
    }

    /// Whether a process that has a valid certificate may still come in.
    ///
    /// # Errors
    /// `Unauthorised` if it was revoked.
    pub fn check(&self, fingerprint: Fingerprint) -> Result<(), Fault> {
        let found = |member: &&Issued| member.identity.fingerprint == fingerprint && member.revoked;
        let Some(member) = self.members.iter().find(found) else { return Ok(()) };
        let cause = format!("the identity of {} was revoked", member.identity);
        Err(Fault::new(FaultKind::Unauthorised, cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::identity::Role;

    fn identity(number: u8, name: &str) -> PeerIdentity {
        let fingerprint = Fingerprint([number; 32]);
        PeerIdentity { fingerprint, role: Role::Worker, name: name.to_owned(), expires: 100 }
    }

    fn trust() -> Trust {
        let mut trust = Trust::default();
        for (number, name) in [(1, "apple"), (2, "pear"), (3, "pear")] {
            trust.issued(&identity(number, name), 0).unwrap();
        }
        trust
    }

    #[test]
    fn members_are_revoked_by_name_or_by_the_start_of_their_fingerprint() {
        let mut all = trust();
        assert_eq!(all.revoke("pear").unwrap(), [identity(2, "pear"), identity(3, "pear")]);
        assert!(all.check(Fingerprint([1; 32])).is_ok());
        let fault = all.check(Fingerprint([2; 32])).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Unauthorised);
        assert!(fault.cause.contains("the worker pear (02020202) was revoked"), "{fault}");
        assert_eq!(all.revoke("01010101").unwrap(), [identity(1, "apple")]);
        assert!(all.check(Fingerprint([1; 32])).is_err());
        for unknown in ["plum", "0202", "09090909", ""] {
            assert!(matches!(all.revoke(unknown), Err(TrustError::Unknown(_))), "{unknown}");
        }
        all.issued(&identity(1, "twin"), 0).unwrap();
        assert!(matches!(all.revoke("01010101"), Err(TrustError::Ambiguous { count: 2, .. })));
    }

    #[test]
    fn members_whose_keys_are_gone_are_forgotten_unless_they_were_revoked() {
        let mut all = trust();
        all.revoke("02020202").unwrap();
        all.forget(&[1, 2].map(|number| Fingerprint([number; 32])));
        let names: Vec<&str> = all.members.iter().map(|each| &*each.identity.name).collect();
        assert_eq!((names, all.members[0].revoked), (vec!["pear", "pear"], true));
    }

    #[test]
    fn expired_members_are_forgotten() {
        let mut all = trust();
        all.issued(&PeerIdentity { expires: 900, ..identity(4, "plum") }, 100).unwrap();
        assert_eq!(all.members.len(), 1);
    }
}
