//! Bytes as people see them.

use std::fmt::Write;

/// Why a text is not such bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {digits} hexadecimal digits")]
pub struct HexError {
    /// What was given.
    pub text: String,
    /// How many digits were expected.
    pub digits: usize,
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").ok(); // writing to a string does not fail
        text
    })
}

/// As many bytes as `text` has pairs of digits; None if it has anything else.
pub(crate) fn decode(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<Vec<u32>>>()?;
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| u8::try_from(16 * high + low).ok()).collect()
}

/// Bytes that are written as hexadecimal digits wherever people may read them.
macro_rules! hex_bytes {
    ($(#[$doc:meta])* $vis:vis $name:ident($bytes:literal)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        $vis struct $name($vis [u8; $bytes]);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&$crate::identity::hex::encode(&self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{self}")
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::identity::HexError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let bytes = $crate::identity::hex::decode(text);
                let bytes = bytes.and_then(|bytes| <[u8; $bytes]>::try_from(bytes).ok());
                let wrong = || $crate::identity::HexError { text: text.to_owned(), digits: 2 * $bytes };
                bytes.map(Self).ok_or_else(wrong)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                if to.is_human_readable() { to.collect_str(self) } else { self.0.serialize(to) }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                if !from.is_human_readable() {
                    return <[u8; $bytes]>::deserialize(from).map(Self);
                }
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use hex_bytes;
