//! Files that a job is submitted with.

use super::{Client, ClientError};
use protocol::job::{CHUNK_BYTES, FileDigest};
use protocol::message::{FromClient, ToClient};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A file for a job.
#[derive(Clone, Debug)]
pub struct GivenFile {
    digest: FileDigest,
    total: u64,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Path(PathBuf),
    Bytes(Vec<u8>),
}

impl GivenFile {
    /// A file on this machine: it is read twice, now and when it is sent.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        let digest = FileDigest(*hasher.finalize().as_bytes());
        Ok(Self { digest, total: hasher.count(), source: Source::Path(path.to_owned()) })
    }

    /// One of these bytes.
    #[must_use]
    pub fn of(bytes: Vec<u8>) -> Self {
        let (digest, total) = (FileDigest::of(&bytes), bytes.len() as u64);
        Self { digest, total, source: Source::Bytes(bytes) }
    }

    /// What jobs know it by.
    #[must_use]
    pub fn digest(&self) -> FileDigest {
        self.digest
    }

    /// How many bytes it has.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    fn reader(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(match &self.source {
            Source::Path(path) => Box::new(File::open(path)?),
            Source::Bytes(bytes) => Box::new(&bytes[..]),
        })
    }
}

impl Client {
    /// Sends a file that a job to be submitted is rendered with, if the coordinator does not have it.
    ///
    /// # Errors
    /// If it cannot be read, the coordinator does not take it, or is lost.
    pub async fn put(&mut self, given: &GivenFile) -> Result<(), ClientError> {
        let (file, total) = (given.digest, given.total);
        let part = |offset| FromClient::Put { file, offset, total };
        self.send_part(&part(0), &[]).await?;
        if self.taken(file).await? == total {
            return Ok(());
        }
        let unreadable =
            |error: io::Error| ClientError::Unreadable { file, cause: error.to_string() };
        let mut reader = given.reader().map_err(unreadable)?;
        let mut bytes = vec![0; CHUNK_BYTES];
        let mut offset = 0;
        while offset < total {
            let left = usize::try_from(total - offset).unwrap_or(usize::MAX);
            let bytes = &mut bytes[..left.min(CHUNK_BYTES)];
            // A file that has become shorter since.
            reader.read_exact(bytes).map_err(unreadable)?;
            self.send_part(&part(offset), bytes).await?;
            offset += bytes.len() as u64;
        }
        self.taken(file).await.map(drop)
    }

    async fn send_part(&mut self, part: &FromClient, bytes: &[u8]) -> Result<(), ClientError> {
        self.writer.send(part, bytes).await.map_err(|error| self.lost(&error))
    }

    /// How much of the file the coordinator says is there.
    async fn taken(&mut self, wanted: FileDigest) -> Result<u64, ClientError> {
        match self.next().await?.0 {
            ToClient::Taken { file, bytes } if file == wanted => Ok(bytes),
            ToClient::Refused(fault) => Err(fault.into()),
            other => Err(self.lost(&format!("unexpected answer {other:?}"))),
        }
    }
}
