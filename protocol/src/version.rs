//! Wire versions. Processes of this release speak two with the coordinator, their own and the one before, so that a cluster can be
//! upgraded one process at a time.
//!
//! The two ends of a control connection speak the newest version that both know: the caller says it in its
//! [`Hello`](crate::message::Hello), and calls again with the one before if it is refused. What came with a version is marked:
//!
//! ```ignore
//! #[serde(skip_serializing_if = "version::unknown::<10, _>", deserialize_with = "version::since::<10, _, _>")]
//! again: bool,
//! ```
//!
//! An end of the version before is not told of such a member, and what it says has the default for it. New variants are added at the
//! end of their enum; one is said to an older end only in answer to what that cannot ask for. Links between workers have a version of their
//! own, [`LINK_VERSION`](crate::LINK_VERSION), so that workers of two releases render one image.
//!
//! Who raises [`WIRE_VERSION`] raises [`WIRE_VERSION_OLDEST`] with it, and drops the marks that are then of no use.

use crate::{WIRE_VERSION, WIRE_VERSION_OLDEST};
use serde::{Deserialize, Deserializer};
use std::cell::Cell;
use std::fmt;
use std::sync::OnceLock;

/// A wire version that this release speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u16);

/// The newest that this process speaks, if that was limited.
static LIMIT: OnceLock<Version> = OnceLock::new();

thread_local! {
    /// What is encoded and decoded on this thread.
    static SPOKEN: Cell<u16> = const { Cell::new(WIRE_VERSION) };
}

/// The environment variable that limits what a process speaks: an upgrade is tried with it before there is one.
pub const VARIABLE: &str = "TESSERA_WIRE";

/// A wire version that this release does not speak.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this release speaks the wire versions {WIRE_VERSION_OLDEST} to {WIRE_VERSION}, not `{0}`: correct {VARIABLE}, or unset it"
)]
pub struct UnknownVersion(String);

impl Version {
    /// The oldest.
    pub const OLDEST: Self = Self(WIRE_VERSION_OLDEST);

    /// The newest that this process speaks.
    #[must_use]
    pub fn newest() -> Self {
        LIMIT.get().copied().unwrap_or(Self(WIRE_VERSION))
    }

    /// From now on this process speaks no newer version than `version`, [`VARIABLE`]'s value, as if it were of the release before;
    /// any, if there is none. The first call decides.
    ///
    /// # Errors
    /// If that is none of this release's.
    pub fn limit(version: Option<String>) -> Result<(), UnknownVersion> {
        let Some(version) = version.filter(|version| !version.is_empty()) else { return Ok(()) };
        let known = version.parse().ok().and_then(Self::of).ok_or(UnknownVersion(version))?;
        LIMIT.get_or_init(|| known);
        Ok(())
    }

    /// The version of this number, if this process speaks it.
    #[must_use]
    pub fn of(wire: u16) -> Option<Self> {
        (WIRE_VERSION_OLDEST..=Self::newest().0).contains(&wire).then_some(Self(wire))
    }

    /// The one before, if it is spoken.
    #[must_use]
    pub fn before(self) -> Option<Self> {
        Self::of(self.0 - 1)
    }

    /// Its number.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }

    /// What `work` encodes and decodes is of this version.
    pub fn speak<T>(self, work: impl FnOnce() -> T) -> T {
        /// Puts back what was spoken, also if `work` panics.
        struct Before(u16);
        impl Drop for Before {
            fn drop(&mut self) {
                SPOKEN.set(self.0);
            }
        }
        let _before = Before(SPOKEN.replace(self.0));
        work()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether the version that is spoken is older than `SINCE`: what came with that is not written.
pub(crate) fn unknown<const SINCE: u16, T>(_: &T) -> bool {
    SPOKEN.get() < SINCE
}

/// Reads what came with the version `SINCE`; an older end does not write it.
pub(crate) fn since<'de, const SINCE: u16, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    if unknown::<SINCE, _>(&()) { Ok(T::default()) } else { T::deserialize(deserializer) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode_body, encode_body};
    use serde::Serialize;

    /// As it was, and as it is.
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        job: u64,
        after: u8,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        job: u64,
        #[serde(
            skip_serializing_if = "unknown::<WIRE_VERSION, _>",
            deserialize_with = "since::<WIRE_VERSION, _, _>"
        )]
        text: Option<String>,
        after: u8,
    }

    #[test]
    fn an_end_of_the_version_before_is_understood_and_understands() {
        let old = Version::OLDEST;
        let new = New { job: 3, text: Some("new".to_owned()), after: 7 };
        let said = old.speak(|| encode_body(&new)).unwrap();
        assert_eq!(decode_body::<Old>(&said), Ok(Old { job: 3, after: 7 }));
        let said = encode_body(&Old { job: 4, after: 8 }).unwrap();
        let heard = old.speak(|| decode_body::<New>(&said));
        assert_eq!(heard, Ok(New { job: 4, text: None, after: 8 }));
        // Nothing of that is left.
        let said = encode_body(&new).unwrap();
        assert_eq!(decode_body::<New>(&said), Ok(new));
        assert!(decode_body::<Old>(&said).is_err());
    }

    #[test]
    fn what_is_spoken_outlives_no_panic() {
        let panics = std::panic::catch_unwind(|| Version::OLDEST.speak(|| panic!("on purpose")));
        assert!(panics.is_err() && SPOKEN.get() == WIRE_VERSION);
    }

    #[test]
    fn no_other_version_is_spoken() {
        assert_eq!(Version::of(WIRE_VERSION), Some(Version::newest()));
        assert_eq!(Version::newest().before(), Some(Version::OLDEST));
        assert_eq!(Version::OLDEST.before(), None);
        assert_eq!(Version::of(WIRE_VERSION + 1), None);
        let beyond = [WIRE_VERSION_OLDEST - 1, WIRE_VERSION + 1].map(|wire| wire.to_string());
        for wrong in [&*beyond[0], &beyond[1], "0", "nine"] {
            let error = Version::limit(Some(wrong.to_owned())).unwrap_err().to_string();
            assert!(error.contains(&format!("`{wrong}`")), "{error}");
        }
    }
}
