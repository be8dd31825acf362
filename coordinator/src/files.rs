//! The files that jobs are rendered with, on the coordinator's disk: checked as they come, each under its digest.

use blake3::Hasher;
use protocol::job::{FILE_BYTES_MAX, FileDigest};
use protocol::{Fault, FaultKind};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tempfile::TempDir;

/// The most bytes of all files: eight of the largest.
pub const FILES_BYTES_MAX: u64 = 8 * FILE_BYTES_MAX;
/// The most files: four for each job that may wait.
pub const FILES_MAX: usize = 4096;
/// The folder in that of `--data`.
const FOLDER: &str = "files";

/// A folder of files. Clones are of the same.
#[derive(Clone, Debug)]
pub struct Files(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    /// What is in it, and what is coming, in bytes.
    files: Mutex<BTreeMap<FileDigest, u64>>,
    coming: AtomicU64,
    begun: AtomicU64,
    /// Removed with this, if nothing is kept.
    temporary: Option<TempDir>,
}

impl Files {
    /// Those in the folder `data` of a coordinator that keeps its jobs. What never came whole is removed.
    ///
    /// # Errors
    /// If the folder cannot be used.
    pub fn open(data: &Path) -> io::Result<Self> {
        let folder = data.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let digest =
                entry.file_name().to_str().and_then(|name| name.parse::<FileDigest>().ok());
            match digest {
                Some(digest) => drop(files.insert(digest, entry.metadata()?.len())),
                None => fs::remove_file(entry.path())?,
            }
        }
        Ok(Self::of(folder, files, None))
    }

    /// Of a coordinator that keeps nothing: in a folder that goes with it.
    ///
    /// # Errors
    /// If there is no room for one.
    pub fn temporary() -> io::Result<Self> {
        let temporary = tempfile::Builder::new().prefix("tessera-files-").tempdir()?;
        let folder = temporary.path().to_owned();
        Ok(Self::of(folder, BTreeMap::new(), Some(temporary)))
    }

    fn of(folder: PathBuf, files: BTreeMap<FileDigest, u64>, temporary: Option<TempDir>) -> Self {
        let (coming, begun) = (AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Shared { folder, files: Mutex::new(files), coming, begun, temporary }))
    }

    /// What is there, and how many bytes each has.
    #[must_use]
    pub fn all(&self) -> Vec<(FileDigest, u64)> {
        self.files().iter().map(|(digest, bytes)| (*digest, *bytes)).collect()
    }

    /// Whether this one is there.
    #[must_use]
    pub fn has(&self, digest: FileDigest) -> bool {
        self.files().contains_key(&digest)
    }

    /// Opens one.
    ///
    /// # Errors
    /// If it is not there.
    pub fn read(&self, digest: FileDigest) -> io::Result<File> {
        File::open(self.path(digest))
    }

    /// Removes one.
    ///
    /// # Errors
    /// If that fails.
    pub fn remove(&self, digest: FileDigest) -> io::Result<()> {
        if self.files().remove(&digest).is_none() {
            return Ok(());
        }
        fs::remove_file(self.path(digest))
    }

    /// Begins to take one in that is known by this digest; or by whatever its digest turns out to be.
    ///
    /// # Errors
    /// If it is too large, or there is no room for it.
    pub fn begin(&self, digest: Option<FileDigest>, total: u64) -> Result<Upload, Fault> {
        if total > FILE_BYTES_MAX {
            let name = name(digest);
            let cause = format!("{name} has {total} bytes; at most {FILE_BYTES_MAX} are taken");
            return Err(Fault::new(FaultKind::InvalidRequest, cause));
        }
        let (bytes, count) = {
            let files = self.files();
            (files.values().sum::<u64>(), files.len())
        };
        let coming = self.0.coming.fetch_add(total, Ordering::Relaxed);
        // From here on given back when the upload is dropped.
        let mut upload = Upload {
            files: self.clone(),
            digest,
            total,
            bytes: 0,
            hasher: Hasher::new(),
            part: None,
        };
        if count >= FILES_MAX || bytes + coming + total > FILES_BYTES_MAX {
            let cause = format!(
                "no room for a file of {total} bytes: {count} files of {} bytes are kept for other jobs; \
                 try again later",
                bytes + coming
            );
            return Err(Fault::new(FaultKind::QueueFull, cause));
        }
        let number = self.0.begun.fetch_add(1, Ordering::Relaxed);
        let path = self.0.folder.join(format!("part-{number}"));
        let file = File::create_new(&path).map_err(|error| upload.storage(&error))?;
        upload.part = Some((path, file));
        Ok(upload)
    }

    fn path(&self, digest: FileDigest) -> PathBuf {
        self.0.folder.join(digest.to_string())
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<FileDigest, u64>> {
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that comes. Dropped before it is whole, nothing is left of it.
#[derive(Debug)]
pub struct Upload {
    files: Files,
    digest: Option<FileDigest>,
    total: u64,
    bytes: u64,
    hasher: Hasher,
    part: Option<(PathBuf, File)>,
}

impl Upload {
    /// Which file, if that was said.
    #[must_use]
    pub fn digest(&self) -> Option<FileDigest> {
        self.digest
    }

    /// How many bytes it will have.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Takes what comes after the first `offset` bytes, and says whether that is all.
    ///
    /// # Errors
    /// If it does not fit what came before, or cannot be kept.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<bool, Fault> {
        let after = self.bytes + bytes.len() as u64;
        if offset != self.bytes || after > self.total {
            let cause = format!("the parts of {} do not fit each other", name(self.digest));
            return Err(Fault::new(FaultKind::Protocol, cause));
        }
        let Some((_, file)) = &mut self.part else { return Ok(false) };
        let written = file.write_all(bytes);
        written.map_err(|error| self.storage(&error))?;
        self.hasher.update(bytes);
        self.bytes = after;
        Ok(after == self.total)
    }

    /// What came so far, from its beginning.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn reader(&self) -> Result<File, Fault> {
        let Some((path, _)) = &self.part else {
            return Err(self.storage(&io::ErrorKind::NotFound.into()));
        };
        File::open(path).map_err(|error| self.storage(&error))
    }

    /// Keeps it, whole, and says which it is.
    ///
    /// # Errors
    /// If it is not what it was said to be, or cannot be kept.
    pub fn finish(mut self) -> Result<FileDigest, Fault> {
        let got = FileDigest(*self.hasher.finalize().as_bytes());
        if self.digest.is_some_and(|digest| digest != got) || self.bytes != self.total {
            let name = name(self.digest);
            let cause = format!(
                "{name} came as {got}, {} of {} bytes: send it again",
                self.bytes, self.total
            );
            return Err(Fault::new(FaultKind::InvalidRequest, cause));
        }
        let Some((path, file)) = self.part.take() else { return Ok(got) };
        let kept = (|| {
            if self.files.0.temporary.is_none() {
                file.sync_all()?;
            }
            fs::rename(&path, self.files.path(got))
        })();
        if let Err(error) = kept {
            self.part = Some((path, file));
            return Err(self.storage(&error));
        }
        self.files.files().insert(got, self.total);
        Ok(got)
    }

    fn storage(&self, error: &io::Error) -> Fault {
        let folder = self.files.0.folder.display();
        let cause = format!("{} cannot be kept in {folder}: {error}", name(self.digest));
        Fault::new(FaultKind::Storage, cause)
    }
}

/// What people hear of a file that comes.
fn name(digest: Option<FileDigest>) -> String {
    digest.map_or_else(|| "the file".to_owned(), |digest| format!("the file {digest}"))
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.files.0.coming.fetch_sub(self.total, Ordering::Relaxed);
        if let Some((path, _)) = &self.part {
            fs::remove_file(path).ok(); // a later coordinator removes what is left
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_file_outlives_the_coordinator_and_half_of_one_does_not() {
        let data = tempfile::tempdir().unwrap();
        let (whole, half) = (FileDigest::of(b"whole"), FileDigest::of(b"half"));
        let files = Files::open(data.path()).unwrap();
        let mut upload = files.begin(Some(whole), 5).unwrap();
        assert!(!upload.write(0, b"who").unwrap());
        assert!(upload.write(3, b"le").unwrap());
        assert_eq!(upload.finish(), Ok(whole));
        let mut upload = files.begin(Some(half), 4).unwrap();
        upload.write(0, b"ha").unwrap();
        // As if the process was killed: nothing was dropped.
        fs::copy(&upload.part.as_ref().unwrap().0, files.path(half).with_extension("part-9"))
            .unwrap();
        drop(upload);
        let files = Files::open(data.path()).unwrap();
        assert_eq!(files.all(), [(whole, 5)]);
        assert_eq!(fs::read_dir(data.path().join(FOLDER)).unwrap().count(), 1);
        let mut text = String::new();
        files.read(whole).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "whole");
        files.remove(whole).unwrap();
        assert!(!files.has(whole) && files.read(whole).is_err());
    }

    #[test]
    fn a_file_whose_digest_nobody_said_is_known_by_what_it_turns_out_to_be() {
        let files = Files::temporary().unwrap();
        let mut upload = files.begin(None, 5).unwrap();
        upload.write(0, b"who").unwrap();
        let mut text = String::new();
        upload.reader().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "who");
        assert!(upload.write(3, b"le").unwrap());
        assert_eq!(upload.finish(), Ok(FileDigest::of(b"whole")));
        assert!(files.has(FileDigest::of(b"whole")));
        let half = files.begin(None, 5).unwrap().finish().unwrap_err();
        assert!(half.cause.contains("0 of 5 bytes"), "{half}");
    }

    #[test]
    fn what_cannot_be_taken_is_refused() {
        let files = Files::temporary().unwrap();
        let digest = FileDigest::of(b"abc");
        let fault = files.begin(Some(digest), FILE_BYTES_MAX + 1).unwrap_err();
        assert!(fault.cause.contains("2147483648"), "{fault}");
        let mut upload = files.begin(Some(digest), 3).unwrap();
        assert!(upload.write(1, b"bc").is_err());
        assert!(upload.write(0, b"abcd").is_err());
        assert!(upload.write(0, b"abd").unwrap());
        let fault = upload.finish().unwrap_err();
        assert!(fault.cause.contains(&digest.to_string()), "{fault}");
        let all: Vec<_> =
            (0..8).map(|_| files.begin(Some(digest), FILE_BYTES_MAX).unwrap()).collect();
        assert_eq!(files.begin(Some(digest), 1).unwrap_err().kind, FaultKind::QueueFull);
        drop(all);
        files.begin(Some(digest), 1).unwrap();
        assert_eq!(fs::read_dir(&files.0.folder).unwrap().count(), 0);
    }
}
