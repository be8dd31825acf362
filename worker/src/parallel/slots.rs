//! What landed, and is waited for: two versions of every slot.

use bytes::Bytes;
use protocol::{Call, Fault, FaultKind, Rank, Site};

/// The landed values of every slot of a run.
#[derive(Debug)]
pub(super) struct Slots {
    sites: usize,
    versions: Vec<[Option<Version>; 2]>,
}

#[derive(Clone, Debug)]
struct Version {
    call: Call,
    bytes: Bytes,
}

impl Slots {
    pub(super) fn new(ranks: usize, sites: usize) -> Self {
        Self { sites, versions: vec![[None, None]; ranks * sites] }
    }

    /// Keeps what `from` computed for `site` in `call`, in place of the version two calls older.
    pub(super) fn land(
        &mut self,
        from: Rank,
        site: Site,
        call: Call,
        bytes: Bytes,
    ) -> Result<(), Fault> {
        let index = self.index(from, site);
        let slot = self.versions.get_mut(index).ok_or_else(|| {
            Fault::new(FaultKind::Protocol, format!("{from} sent a value for the unknown {site}"))
        })?;
        slot[parity(call)] = Some(Version { call, bytes });
        Ok(())
    }

    /// What `from` computed for `site` in `call`, if it landed. Older versions are let go, so that their
    /// memory takes what lands next; this one, too, unless it `stays`.
    pub(super) fn consume(
        &mut self,
        from: Rank,
        site: Site,
        call: Call,
        stays: bool,
    ) -> Option<Bytes> {
        let index = self.index(from, site);
        let versions = self.versions.get_mut(index)?;
        let version = versions[parity(call)].as_ref().filter(|version| version.call == call)?;
        let bytes = version.bytes.clone();
        for version in versions {
            let past = |version: &Version| version.call < call || version.call == call && !stays;
            if version.as_ref().is_some_and(past) {
                *version = None;
            }
        }
        Some(bytes)
    }

    fn index(&self, from: Rank, site: Site) -> usize {
        from.index() * self.sites + usize::from(site.0)
    }
}

fn parity(call: Call) -> usize {
    usize::from(call.0 % 2 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p2_a_newer_version_replaces_the_one_two_calls_older_only() {
        let mut slots = Slots::new(2, 3);
        let (from, site) = (Rank(1), Site(2));
        for call in 0..3 {
            slots.land(from, site, Call(call), Bytes::from(vec![0; call as usize])).unwrap();
        }
        assert_eq!(slots.consume(from, site, Call(0), true), None);
        assert_eq!(slots.consume(from, site, Call(1), true).unwrap().len(), 1);
        assert_eq!(slots.consume(from, site, Call(2), true).unwrap().len(), 2);
        assert_eq!(slots.consume(Rank(0), site, Call(2), true), None);
    }

    #[test]
    fn a_version_that_is_read_no_more_is_let_go() {
        let mut slots = Slots::new(1, 1);
        let (from, site, buffer) = (Rank(0), Site(0), Bytes::from(vec![7; 64]));
        slots.land(from, site, Call(0), buffer.clone()).unwrap();
        // A synchronous call's value is read by the next one, too.
        assert!(slots.consume(from, site, Call(0), true).is_some());
        slots.land(from, site, Call(1), Bytes::from(vec![8; 64])).unwrap();
        assert!(!buffer.is_unique(), "still to be read");
        assert!(slots.consume(from, site, Call(0), false).is_some());
        assert!(buffer.is_unique(), "its memory may take call 2");
        // A synchronous call after it reads a newer value; the one between is never read.
        slots.land(from, site, Call(2), buffer).unwrap();
        assert!(slots.consume(from, site, Call(2), true).is_some());
        assert_eq!(slots.consume(from, site, Call(1), true), None);
    }

    #[test]
    fn a_site_that_does_not_exist_is_a_fault() {
        let mut slots = Slots::new(2, 3);
        assert!(slots.land(Rank(1), Site(3), Call(0), Bytes::new()).is_err());
    }
}
