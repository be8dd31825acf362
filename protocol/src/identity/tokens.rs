//! The tokens that a cluster gave out.

use super::hex::hex_bytes;
use super::{Fingerprint, IdentityError, Role, Token, TokenId, random};
use serde::{Deserialize, Serialize};

/// The most tokens that are remembered: far more than people make, few enough to list.
const TOKENS_MAX: usize = 1024;

/// How long an expired token is remembered, in seconds, so that who still shows it is told why it is
/// refused: a day.
const REMEMBERED: u64 = 86_400;

hex_bytes! {
    /// blake3 of a token's secret: what is stored of it.
    SecretHash(32)
}

/// What a token is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What its holder becomes.
    pub role: Role,
    /// When it expires, in seconds since 1970.
    pub expires: u64,
    /// How many certificates it is worth.
    pub uses: u32,
}

/// What is known of a token that was given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Which it is.
    pub id: TokenId,
    /// What its holder becomes.
    pub role: Role,
    /// When it expires, in seconds since 1970.
    pub expires: u64,
    /// How many certificates it is worth.
    pub uses: u32,
    /// How many were issued for it.
    pub used: u32,
    /// Whether someone revoked it.
    pub revoked: bool,
    secret: SecretHash,
}

impl TokenRecord {
    /// Why it is worth nothing `now`, if so.
    #[must_use]
    pub fn refusal(&self, now: u64) -> Option<TokenError> {
        let id = self.id;
        if self.revoked {
            Some(TokenError::Revoked(id))
        } else if now >= self.expires {
            Some(TokenError::Expired(id))
        } else if self.used >= self.uses {
            Some(TokenError::UsedUp { id, uses: self.uses })
        } else {
            None
        }
    }
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It was never given out, or is long expired.
    #[error("nobody knows this token: make one with `coordinator token`")]
    Unknown,
    /// It is of another cluster.
    #[error("the token is another cluster's")]
    OtherCluster,
    /// It has expired.
    #[error("the token {0} has expired: make another with `coordinator token`")]
    Expired(TokenId),
    /// Someone revoked it.
    #[error("the token {0} was revoked")]
    Revoked(TokenId),
    /// As many certificates were issued for it as it is worth.
    #[error(
        "the token {id} was used {uses} times and is used up: make another with `coordinator token`"
    )]
    UsedUp {
        /// Which.
        id: TokenId,
        /// How many certificates it was worth.
        uses: u32,
    },
    /// There are as many as are remembered.
    #[error("there are {TOKENS_MAX} tokens: wait until some expire")]
    TooMany,
    /// No secret could be made.
    #[error("cannot make a token: the system gives no random numbers")]
    NoRandomness,
}

impl From<IdentityError> for TokenError {
    fn from(_: IdentityError) -> Self {
        Self::NoRandomness
    }
}

/// The tokens that a cluster gave out: hashes of their secrets, not the secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    records: Vec<TokenRecord>,
}

impl Tokens {
    /// Makes one for the cluster of `authority`.
    ///
    /// # Errors
    /// If there are too many, or the system has no random numbers.
    pub fn make(
        &mut self,
        terms: Terms,
        authority: Fingerprint,
        now: u64,
    ) -> Result<Token, TokenError> {
        self.records.retain(|record| now < record.expires.saturating_add(REMEMBERED));
        if self.records.len() >= TOKENS_MAX {
            return Err(TokenError::TooMany);
        }
        let (id, secret) = (TokenId(random()?), random()?);
        let Terms { role, expires, uses } = terms;
        let hash = SecretHash(*blake3::hash(&secret).as_bytes());
        self.records.push(TokenRecord {
            id,
            role,
            expires,
            uses,
            used: 0,
            revoked: false,
            secret: hash,
        });
        Ok(Token { id, role, expires, authority, secret })
    }

    /// Takes one use of a token, and says what its holder becomes.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn redeem(
        &mut self,
        token: &Token,
        authority: Fingerprint,
        now: u64,
    ) -> Result<Role, TokenError> {
        if token.authority != authority {
            return Err(TokenError::OtherCluster);
        }
        let shown = blake3::hash(&token.secret);
        // Comparing blake3's own type takes the same time wherever the two differ.
        let same = |record: &&mut TokenRecord| {
            record.id == token.id && blake3::Hash::from(record.secret.0) == shown
        };
        let record = self.records.iter_mut().find(same).ok_or(TokenError::Unknown)?;
        if let Some(refusal) = record.refusal(now) {
            return Err(refusal);
        }
        record.used += 1;
        Ok(record.role)
    }

    /// Revokes a token; false if there is none of that number.
    pub fn revoke(&mut self, id: TokenId) -> bool {
        let found = self.records.iter_mut().find(|record| record.id == id);
        found.map(|record| record.revoked = true).is_some()
    }

    /// All that are remembered, in the order they were made.
    #[must_use]
    pub fn records(&self) -> &[TokenRecord] {
        &self.records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;
    const OURS: Fingerprint = Fingerprint([1; 32]);

    fn made(uses: u32) -> (Tokens, Token) {
        let mut tokens = Tokens::default();
        let terms = Terms { role: Role::Worker, expires: NOW + 60, uses };
        let token = tokens.make(terms, OURS, NOW).expect("made");
        (tokens, token)
    }

    #[test]
    fn a_token_is_worth_what_it_says_and_no_more() {
        let (mut tokens, token) = made(2);
        for _ in 0..2 {
            assert_eq!(tokens.redeem(&token, OURS, NOW), Ok(Role::Worker));
        }
        let id = token.id;
        assert_eq!(tokens.redeem(&token, OURS, NOW), Err(TokenError::UsedUp { id, uses: 2 }));
    }

    #[test]
    fn an_expired_or_revoked_one_is_refused_with_that_reason() {
        let (mut tokens, token) = made(1);
        let expired = Err(TokenError::Expired(token.id));
        assert_eq!(tokens.redeem(&token, OURS, NOW + 60), expired);
        assert!(tokens.revoke(token.id));
        assert_eq!(tokens.redeem(&token, OURS, NOW), Err(TokenError::Revoked(token.id)));
        assert!(!tokens.revoke(TokenId([0; 4])));
    }

    #[test]
    fn a_wrong_secret_or_cluster_is_unknown() {
        let (mut tokens, token) = made(1);
        let mut forged = token.clone();
        forged.secret[15] ^= 1;
        assert_eq!(tokens.redeem(&forged, OURS, NOW), Err(TokenError::Unknown));
        let theirs = Fingerprint([2; 32]);
        assert_eq!(tokens.redeem(&token, theirs, NOW), Err(TokenError::OtherCluster));
        assert_eq!(tokens.redeem(&token, OURS, NOW), Ok(Role::Worker));
    }

    #[test]
    fn a_holder_cannot_make_more_of_it() {
        let (mut tokens, token) = made(1);
        let longer = Token { role: Role::Client, expires: NOW + 6000, ..token };
        assert_eq!(tokens.redeem(&longer, OURS, NOW), Ok(Role::Worker), "the record counts");
        let (mut tokens, token) = made(1);
        let longer = Token { expires: NOW + 6000, ..token };
        assert!(tokens.redeem(&longer, OURS, NOW + 70).is_err());
    }

    #[test]
    fn they_are_few_and_forgotten_after_a_day() {
        let (mut tokens, _) = made(1);
        let terms = Terms { role: Role::Client, expires: NOW + 60, uses: 1 };
        for _ in 1..TOKENS_MAX {
            tokens.make(terms, OURS, NOW).expect("made");
        }
        assert_eq!(tokens.make(terms, OURS, NOW), Err(TokenError::TooMany));
        assert!(tokens.make(terms, OURS, NOW + 61 + REMEMBERED).is_ok());
        assert_eq!(tokens.records().len(), 1);
    }
}
