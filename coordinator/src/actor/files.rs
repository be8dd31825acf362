//! Files on their way: from clients to the disk, and from there to workers.

use super::session::shutting_down as going;
use super::supervisor::Supervisor;
use crate::director::ClientId;
use crate::files::{Files, Upload};
use actix::prelude::{Addr, AsyncContext, Context, Handler, Message};
use bytes::Bytes;
use protocol::job::{CHUNK_BYTES, FileDigest};
use protocol::message::{ToClient, ToWorker};
use protocol::{Fault, FaultKind, WorkerId};
use std::io::Read;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

/// What a worker's session sends of files, beside its orders: so few parts wait that all others are on the disk.
pub(super) type Parcels = mpsc::Sender<(ToWorker, Bytes)>;
/// How many parts may wait to be sent.
pub(super) const PARCELS_MAX: usize = 2;

/// A client wants to submit a job with a file: whether it is there.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
struct WantsFile {
    client: ClientId,
    file: FileDigest,
}

/// A file came from a client: whether it is still there.
#[derive(Debug, Message)]
#[rtype(result = "bool")]
struct FileCame {
    client: ClientId,
    file: FileDigest,
    bytes: u64,
}

/// A file could not be sent to a worker.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct FileFailed {
    worker: WorkerId,
    file: FileDigest,
    fault: Fault,
}

/// A part of a file, as a client sends it.
#[derive(Clone, Debug)]
pub(super) struct Put {
    pub(super) file: FileDigest,
    pub(super) offset: u64,
    pub(super) total: u64,
    pub(super) bytes: Bytes,
}

/// The files of one client, one after the other.
#[derive(Debug)]
pub(super) struct Uploads {
    client: ClientId,
    files: Files,
    supervisor: Addr<Supervisor>,
    current: Option<Upload>,
}

impl Uploads {
    pub(super) fn new(client: ClientId, files: Files, supervisor: Addr<Supervisor>) -> Self {
        Self { client, files, supervisor, current: None }
    }

    /// Takes a whole file in.
    pub(super) async fn keep(mut self, bytes: Bytes) -> Result<FileDigest, Fault> {
        let (file, total) = (FileDigest::of(&bytes), bytes.len() as u64);
        if self.begin(file, total).await? < total {
            self.go_on(Put { file, offset: 0, total, bytes }).await?;
        }
        Ok(file)
    }

    /// Takes a part in. Gives what the client is to be told, if that is anything.
    pub(super) async fn take(&mut self, put: Put) -> Option<ToClient> {
        let (file, total) = (put.file, put.total);
        let taken = if put.offset == 0 && put.bytes.is_empty() {
            self.begin(file, total).await.map(Some)
        } else {
            self.go_on(put).await
        };
        match taken {
            Ok(bytes) => bytes.map(|bytes| ToClient::Taken { file, bytes }),
            Err(fault) => Some(ToClient::Refused(fault)),
        }
    }

    async fn begin(&mut self, file: FileDigest, total: u64) -> Result<u64, Fault> {
        self.current = None;
        let asked = self.supervisor.send(WantsFile { client: self.client, file }).await;
        if asked.map_err(|_| going())? {
            return Ok(total);
        }
        if total == 0 {
            return Err(Fault::new(FaultKind::InvalidRequest, format!("the file {file} is empty")));
        }
        self.current = Some(self.files.begin(file, total)?);
        Ok(0)
    }

    /// None: more is to come; or the file was refused, and the rest of it comes all the same.
    async fn go_on(&mut self, put: Put) -> Result<Option<u64>, Fault> {
        let Put { file, offset, total, bytes } = put;
        let same = |upload: &Upload| (upload.digest(), upload.total()) == (file, total);
        let Some(mut upload) = self.current.take().filter(same) else { return Ok(None) };
        let written = spawn_blocking(move || {
            if upload.write(offset, &bytes)? {
                return upload.finish().map(|()| None);
            }
            Ok(Some(upload))
        });
        self.current = written.await.map_err(|_| going())??;
        if self.current.is_some() {
            return Ok(None);
        }
        let came = FileCame { client: self.client, file, bytes: total };
        if self.supervisor.send(came).await.map_err(|_| going())? {
            return Ok(Some(total));
        }
        let cause = format!("the file {file} was removed as it came: send it again");
        Err(Fault::new(FaultKind::Storage, cause))
    }
}

/// Sends a file to a worker, as fast as its session takes it.
pub(super) fn provide(
    files: &Files,
    (worker, file): (WorkerId, FileDigest),
    parcels: Parcels,
    supervisor: Addr<Supervisor>,
) {
    let files = files.clone();
    actix::spawn(async move {
        let sent = spawn_blocking(move || send(&files, file, &parcels)).await;
        if let Err(fault) = sent.unwrap_or_else(|_| Err(going())) {
            supervisor.do_send(FileFailed { worker, file, fault });
        }
    });
}

fn send(files: &Files, file: FileDigest, parcels: &Parcels) -> Result<(), Fault> {
    let unreadable = |error: std::io::Error| {
        Fault::new(FaultKind::Storage, format!("the file {file} cannot be read: {error}"))
    };
    let mut source = files.read(file).map_err(unreadable)?;
    let total = source.metadata().map_err(unreadable)?.len();
    let mut offset = 0;
    while offset < total {
        let left = usize::try_from(total - offset).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(CHUNK_BYTES)];
        source.read_exact(&mut bytes).map_err(unreadable)?;
        let sent = bytes.len() as u64;
        let part = ToWorker::File { file, offset, total };
        if parcels.blocking_send((part, bytes.into())).is_err() {
            return Ok(()); // the worker is gone, which others say
        }
        offset += sent;
    }
    Ok(())
}

impl Handler<WantsFile> for Supervisor {
    type Result = bool;

    fn handle(&mut self, WantsFile { client, file }: WantsFile, _: &mut Context<Self>) -> bool {
        self.director.wants_file(client, file)
    }
}

impl Handler<FileCame> for Supervisor {
    type Result = bool;

    fn handle(&mut self, came: FileCame, _: &mut Context<Self>) -> bool {
        let FileCame { client, file, bytes } = came;
        let there = self.files.has(file);
        if there {
            self.director.file_came(client, file, bytes);
        }
        there
    }
}

impl Handler<FileFailed> for Supervisor {
    type Result = ();

    fn handle(&mut self, failed: FileFailed, ctx: &mut Context<Self>) {
        let FileFailed { worker, file, fault } = failed;
        self.director.file_failed(worker, file, fault, self.now());
        self.carry(&ctx.address());
    }
}

#[cfg(test)]
mod tests {
    use crate::actor::{Coordinator, block_on};
    use crate::client::{Client, Destination, GivenFile};
    use crate::director::Director;
    use crate::files::Files;
    use crate::identity::Access;
    use bytes::Bytes;
    use protocol::tls::Security;
    use std::time::Duration;

    #[test]
    fn a_file_stays_as_long_as_one_of_its_clients_does() {
        block_on(async {
            let files = Files::temporary().unwrap();
            let (access, director) = (Access::Insecure, Director::default());
            let started = Coordinator::start_with("127.0.0.1:0", access, director, files.clone());
            let coordinator = started.await.unwrap();
            let large = vec![7; 3 << 16 | 5];
            let kept = coordinator.keep_file(1 << 40, Bytes::from(large.clone())).await.unwrap();
            assert_eq!(files.all(), [(kept, large.len() as u64)]);
            let address = coordinator.address().to_string();
            let to = Destination { address, security: Security::Insecure };
            let mut client = Client::connect(&to).await.unwrap();
            let given = GivenFile::of(large);
            assert_eq!(given.digest(), kept);
            client.put(&given).await.unwrap();
            let other = GivenFile::of(vec![8; 3 << 16]);
            client.put(&other).await.unwrap();
            assert!(files.has(other.digest()));
            let refused = client.put(&GivenFile::of(Vec::new())).await.unwrap_err();
            assert!(refused.to_string().contains("empty"), "{refused}");
            drop(client);
            while files.has(other.digest()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(files.has(kept), "one of its clients is there");
        });
    }
}
