//! Tokens for the workers of a launch, and what is left of them afterwards: nothing.

use crate::identity::{Folder, FolderError, now};
use protocol::identity::{Fingerprint, Role, Terms, Token, TokenError, TokenId};
use protocol::message::ClusterView;

/// How long a worker has to show its token, in seconds: hosts may be slow to answer, and models to load.
const TOKEN_SECONDS: u64 = 3600;

/// Why workers cannot be let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmissionError {
    /// No token can be made.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// It cannot be kept.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// Lets the workers of a launch into its cluster.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Where the cluster's identity is; None where nobody is asked for theirs.
    folder: Option<Folder>,
    tokens: Vec<TokenId>,
    members: Vec<Fingerprint>,
}

impl Admission {
    pub(crate) fn new(folder: Option<Folder>) -> Self {
        Self { folder, tokens: Vec::new(), members: Vec::new() }
    }

    /// A token for so many workers; None where they need none.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn token(&mut self, uses: usize) -> Result<Option<Token>, AdmissionError> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let authority = folder.authority()?.fingerprint();
        let now = now();
        let uses = u32::try_from(uses).unwrap_or(u32::MAX);
        let terms = Terms { role: Role::Worker, expires: now + TOKEN_SECONDS, uses };
        let token = folder.change(|trust| trust.tokens.make(terms, authority, now))??;
        self.tokens.push(token.id);
        Ok(Some(token))
    }

    /// Takes down which keys its workers have, which are called so.
    pub(crate) fn seen(&mut self, view: &ClusterView, ours: impl Fn(&str) -> bool) {
        let ours = view.workers.iter().filter(|worker| ours(&worker.name));
        for identity in ours.filter_map(|worker| worker.identity) {
            if !self.members.contains(&identity) {
                self.members.push(identity);
            }
        }
    }

    /// Makes its tokens worthless, and forgets its workers: their keys were in their memory alone, and are gone.
    ///
    /// # Errors
    /// If that cannot be written down.
    pub(crate) fn close(self) -> Result<(), AdmissionError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        folder.change(|trust| {
            for token in &self.tokens {
                trust.tokens.revoke(*token);
            }
            trust.forget(&self.members);
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launch_leaves_no_token_that_is_worth_something() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder::find(Some(scratch.path())).unwrap();
        folder.init("me").unwrap();
        let mut admission = Admission::new(Some(folder.clone()));
        let token = admission.token(2).unwrap().unwrap();
        let record = |folder: &Folder| folder.trust().unwrap().tokens.records()[0].clone();
        assert_eq!((record(&folder).uses, record(&folder).id), (2, token.id));
        assert_eq!(record(&folder).refusal(now()), None);
        admission.close().unwrap();
        assert_eq!(record(&folder).refusal(now()), Some(TokenError::Revoked(token.id)));
        assert_eq!(Admission::new(None).token(1).unwrap(), None);
    }
}
