//! What a process shows that is not a member yet.

use super::hex::{self, hex_bytes};
use super::{Fingerprint, Role};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What every token starts with: it says what the rest is, and which form it has.
const PREFIX: &str = "tessera1.";

hex_bytes! {
    /// Which token: what people revoke it by. No secret.
    pub TokenId(4)
}

/// A secret that is worth a certificate, once or some times, until it expires.
///
/// As text, it is one word, which goes on a command line or into an environment variable.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Which it is.
    pub id: TokenId,
    /// What its holder becomes.
    pub role: Role,
    /// When it expires, in seconds since 1970.
    pub expires: u64,
    /// Whose certificates it is worth: its holder knows the coordinator by it before it has any.
    pub authority: Fingerprint,
    /// What proves that it was not made up.
    pub(super) secret: [u8; 16],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = Role::ALL.iter().position(|role| *role == self.role).unwrap_or_default();
        let mut bytes = vec![u8::try_from(role).unwrap_or_default()];
        bytes.extend(self.id.0);
        bytes.extend(self.expires.to_be_bytes());
        bytes.extend(self.secret);
        bytes.extend(self.authority.0);
        write!(f, "{PREFIX}{}", hex::encode(&bytes))
    }
}

/// The text is no token. It may be a secret all the same, so it is not repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no token: expected {PREFIX} and 122 digits, as `coordinator token` prints it")]
pub struct TokenFormatError;

impl FromStr for Token {
    type Err = TokenFormatError;

    fn from_str(text: &str) -> Result<Self, TokenFormatError> {
        let bytes = text.trim().strip_prefix(PREFIX).and_then(hex::decode);
        read(&bytes.ok_or(TokenFormatError)?).ok_or(TokenFormatError)
    }
}

fn read(bytes: &[u8]) -> Option<Token> {
    let (role, rest) = bytes.split_first()?;
    let role = *Role::ALL.get(usize::from(*role))?;
    let (id, rest) = rest.split_first_chunk()?;
    let (expires, rest) = rest.split_first_chunk()?;
    let (secret, rest) = rest.split_first_chunk()?;
    let authority = Fingerprint(rest.try_into().ok()?);
    let expires = u64::from_be_bytes(*expires);
    Some(Token { id: TokenId(*id), role, expires, authority, secret: *secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        let (id, authority) = (TokenId([1, 2, 3, 255]), Fingerprint([7; 32]));
        Token { id, role: Role::Client, expires: 1_800_000_000, authority, secret: [9; 16] }
    }

    #[test]
    fn a_token_is_one_word_that_reads_back() {
        let text = token().to_string();
        assert!(text.starts_with("tessera1.02010203ff") && !text.contains(' '), "{text}");
        assert_eq!(text.len(), PREFIX.len() + 122);
        assert_eq!(text.parse(), Ok(token()));
        assert_eq!(format!("  {text}\n").parse(), Ok(token()));
        for cut in 0..text.len() {
            assert_eq!(text[..cut].parse::<Token>(), Err(TokenFormatError), "{cut}");
        }
        assert!((text.clone() + "00").parse::<Token>().is_err());
        assert!(text.replacen(".02", ".03", 1).parse::<Token>().is_err(), "no such role");
    }

    #[test]
    fn logs_do_not_show_its_secret() {
        let shown = format!("{:?}", token());
        assert_eq!(shown, "Token(010203ff)");
    }
}
