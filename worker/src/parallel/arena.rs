//! What landed, and is waited for: two versions of every slot.

use bytes::Bytes;
use protocol::{Call, Fault, FaultKind, Rank, Site};

/// The landed values of every slot of a run.
#[derive(Debug)]
pub(super) struct Arena {
    sites: usize,
    versions: Vec<[Option<Version>; 2]>,
}

#[derive(Clone, Debug)]
struct Version {
    call: Call,
    bytes: Bytes,
}

impl Arena {
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

    /// What `from` computed for `site` in `call`, if it landed.
    pub(super) fn get(&self, from: Rank, site: Site, call: Call) -> Option<Bytes> {
        let version = self.versions.get(self.index(from, site))?[parity(call)].as_ref()?;
        (version.call == call).then(|| version.bytes.clone())
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
        let mut arena = Arena::new(2, 3);
        let (from, site) = (Rank(1), Site(2));
        for call in 0..3 {
            arena.land(from, site, Call(call), Bytes::from(vec![0; call as usize])).unwrap();
        }
        assert_eq!(arena.get(from, site, Call(0)), None);
        assert_eq!(arena.get(from, site, Call(1)).unwrap().len(), 1);
        assert_eq!(arena.get(from, site, Call(2)).unwrap().len(), 2);
        assert_eq!(arena.get(Rank(0), site, Call(2)), None);
    }

    #[test]
    fn a_site_that_does_not_exist_is_a_fault() {
        let mut arena = Arena::new(2, 3);
        assert!(arena.land(Rank(1), Site(3), Call(0), Bytes::new()).is_err());
    }
}
