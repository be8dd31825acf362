//! The files that jobs are rendered with, as they come from the coordinator: checked, and kept for the next job, the least
//! lately used making room. They are in the system's temporary folder without a name, so that none outlives this process,
//! however it ends.

use crate::engine::Files;
use protocol::job::{FILE_BYTES_MAX, FileDigest, JOB_FILES_BYTES_MAX, LORAS_MAX};
use protocol::{Fault, FaultKind};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

/// The most bytes held: the files of the job that is rendered and of the one after it.
pub const CACHE_BYTES_MAX: u64 = 2 * JOB_FILES_BYTES_MAX;
/// The most files that come at once: those of a job.
const COMING_MAX: usize = LORAS_MAX + 1;

/// What a worker holds.
#[derive(Debug, Default)]
pub struct Cache {
    /// The least lately used first.
    held: VecDeque<(FileDigest, Held)>,
    coming: BTreeMap<FileDigest, Coming>,
    /// Those that were given up, of which parts may still come.
    given_up: BTreeSet<FileDigest>,
}

#[derive(Debug)]
struct Held {
    bytes: u64,
    file: Arc<File>,
}

/// A file of which not all has come.
#[derive(Debug)]
struct Coming {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
    total: u64,
}

/// A part of a file.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// How many of its bytes came before.
    pub offset: u64,
    /// How many it has.
    pub total: u64,
    /// These.
    pub bytes: &'a [u8],
}

impl Cache {
    /// All files that are whole.
    #[must_use]
    pub fn held(&self) -> Vec<FileDigest> {
        self.held.iter().map(|(digest, _)| *digest).collect()
    }

    /// Takes the next part of a file, and says whether it is whole.
    ///
    /// # Errors
    /// If it cannot be held, or is not what it was said to be: then nothing is kept of it, and of what still comes of
    /// it nothing is said.
    pub fn take(&mut self, digest: FileDigest, part: Part<'_>) -> Result<bool, Fault> {
        if part.offset == 0 {
            self.given_up.remove(&digest);
        } else if self.given_up.contains(&digest) {
            return Ok(false);
        }
        let taken = self.take_part(digest, part);
        if taken.is_err() {
            self.given_up.insert(digest);
        }
        taken
    }

    fn take_part(&mut self, digest: FileDigest, part: Part<'_>) -> Result<bool, Fault> {
        let storage =
            |cause: String| Fault::new(FaultKind::Storage, format!("the file {digest}: {cause}"));
        if part.offset == 0 {
            let coming = self.begin(digest, part.total).map_err(storage)?;
            self.coming.insert(digest, coming);
        }
        let Some(mut coming) = self.coming.remove(&digest) else {
            return Err(storage("its first part never came".to_owned()));
        };
        let after = coming.bytes + part.bytes.len() as u64;
        if part.offset != coming.bytes || part.total != coming.total || after > coming.total {
            return Err(storage("its parts do not fit each other".to_owned()));
        }
        coming.file.write_all(part.bytes).map_err(|error| storage(error.to_string()))?;
        coming.hasher.update(part.bytes);
        coming.bytes = after;
        if after < coming.total {
            self.coming.insert(digest, coming);
            return Ok(false);
        }
        let got = FileDigest(*coming.hasher.finalize().as_bytes());
        if got != digest {
            return Err(storage(format!("what came is {got}")));
        }
        self.held.retain(|(other, _)| *other != digest);
        let held = Held { bytes: coming.total, file: Arc::new(coming.file) };
        self.held.push_back((digest, held));
        Ok(true)
    }

    /// Makes room for a file.
    fn begin(&mut self, digest: FileDigest, total: u64) -> Result<Coming, String> {
        self.coming.remove(&digest);
        if total > FILE_BYTES_MAX {
            return Err(format!("it has {total} bytes; at most {FILE_BYTES_MAX} are taken"));
        }
        if self.coming.len() >= COMING_MAX {
            return Err(format!("{COMING_MAX} others come already"));
        }
        let coming: u64 = self.coming.values().map(|coming| coming.total).sum();
        let room = CACHE_BYTES_MAX.saturating_sub(coming + total);
        while self.held.iter().map(|(_, held)| held.bytes).sum::<u64>() > room {
            self.held.pop_front();
        }
        let file = tempfile::tempfile()
            .map_err(|error| format!("no room in {}: {error}", std::env::temp_dir().display()))?;
        Ok(Coming { file, hasher: blake3::Hasher::new(), bytes: 0, total })
    }

    /// Nothing more comes of what has not come whole.
    pub fn stop(&mut self) {
        self.coming.clear();
        self.given_up.clear();
    }

    /// Those of `wanted` that are held; they are used now.
    pub fn open(&mut self, wanted: impl Iterator<Item = FileDigest>) -> Files {
        let mut files = Files::new();
        for digest in wanted {
            let Some(place) = self.held.iter().position(|(held, _)| *held == digest) else {
                continue;
            };
            let Some(held) = self.held.remove(place) else { continue };
            files.insert(digest, Arc::clone(&held.1.file));
            self.held.push_back(held);
        }
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u64, total: u64, bytes: &[u8]) -> Part<'_> {
        Part { offset, total, bytes }
    }

    #[test]
    fn a_file_is_whole_once_all_parts_came_in_order() {
        let (mut cache, digest) = (Cache::default(), FileDigest::of(b"abcdef"));
        assert!(!cache.take(digest, part(0, 6, b"abc")).unwrap());
        assert!(cache.held().is_empty() && cache.open([digest].into_iter()).is_empty());
        assert!(cache.take(digest, part(3, 6, b"def")).unwrap());
        assert_eq!(cache.held(), [digest]);
        let file = &cache.open([digest].into_iter())[&digest];
        assert_eq!(file.metadata().unwrap().len(), 6);
    }

    #[test]
    fn what_is_not_what_was_said_is_not_kept() {
        let (mut cache, digest) = (Cache::default(), FileDigest::of(b"abcdef"));
        assert!(cache.take(digest, part(3, 6, b"def")).is_err());
        assert!(cache.take(digest, part(0, FILE_BYTES_MAX + 1, b"")).is_err());
        // Its other parts are on their way: why it is refused was said.
        assert!(!cache.take(digest, part(3, 6, b"def")).unwrap());
        let fault = cache.take(digest, part(0, 6, b"abcdeg")).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Storage);
        assert!(fault.cause.contains(&digest.to_string()), "{fault}");
        cache.take(digest, part(0, 6, b"abc")).unwrap();
        assert!(cache.take(digest, part(2, 6, b"def")).is_err());
        cache.take(digest, part(0, 6, b"abc")).unwrap();
        cache.stop();
        assert!(cache.take(digest, part(3, 6, b"def")).is_err());
        assert!(cache.held().is_empty());
    }

    #[test]
    fn the_least_lately_used_makes_room() {
        let mut cache = Cache::default();
        let digests = [b"a", b"b", b"c"].map(|bytes| {
            let digest = FileDigest::of(bytes);
            assert!(cache.take(digest, part(0, 1, bytes)).unwrap());
            digest
        });
        cache.open([digests[0]].into_iter());
        let huge = FileDigest([1; 32]);
        // As if the others were large.
        cache.held.iter_mut().for_each(|(_, held)| held.bytes = CACHE_BYTES_MAX / 4);
        cache.take(huge, part(0, FILE_BYTES_MAX, b"")).unwrap();
        assert_eq!(cache.held(), [digests[1], digests[2], digests[0]]);
        cache.take(FileDigest([2; 32]), part(0, FILE_BYTES_MAX, b"")).unwrap();
        assert_eq!(cache.held(), [digests[2], digests[0]]);
    }
}
