//! Files on their way: from clients to the disk, and from there to workers.

use super::Coordinator;
use super::session::shutting_down as going;
use super::supervisor::Supervisor;
use super::visit::Visit;
use crate::director::ClientId;
use crate::files::{Files, Upload};
use actix::prelude::{Addr, AsyncContext, Context, Handler, Message};
use bytes::Bytes;
use protocol::job::{CHUNK_BYTES, FileDigest};
use protocol::message::{ToClient, ToWorker};
use protocol::{Fault, FaultKind, WorkerId};
use std::fs::File;
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
    async fn keep(mut self, bytes: Bytes) -> Result<FileDigest, Fault> {
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
        self.current = Some(self.files.begin(Some(file), total)?);
        Ok(0)
    }

    /// None: more is to come; or the file was refused, and the rest of it comes all the same.
    async fn go_on(&mut self, put: Put) -> Result<Option<u64>, Fault> {
        let Put { file, offset, total, bytes } = put;
        let same = |upload: &Upload| (upload.digest(), upload.total()) == (Some(file), total);
        let Some(mut upload) = self.current.take().filter(same) else { return Ok(None) };
        let written = spawn_blocking(move || {
            if upload.write(offset, &bytes)? {
                return upload.finish().map(|_| None);
            }
            Ok(Some(upload))
        });
        self.current = written.await.map_err(|_| going())??;
        if self.current.is_some() {
            return Ok(None);
        }
        came(&self.supervisor, FileCame { client: self.client, file, bytes: total }).await?;
        Ok(Some(total))
    }
}

async fn came(supervisor: &Addr<Supervisor>, came: FileCame) -> Result<(), Fault> {
    let cause = format!("the file {} was removed as it came: send it again", came.file);
    let there = supervisor.send(came).await.map_err(|_| going())?;
    if there { Ok(()) } else { Err(Fault::new(FaultKind::Storage, cause)) }
}

/// A file that comes from a client in this process, and is known by its digest once it is whole.
#[derive(Debug)]
pub struct Arrival {
    client: ClientId,
    supervisor: Addr<Supervisor>,
    upload: Upload,
    offset: u64,
}

impl Arrival {
    /// Takes what comes next.
    ///
    /// # Errors
    /// If it is more than was said, or cannot be kept.
    pub async fn write(self, bytes: Bytes) -> Result<Self, Fault> {
        let Self { client, supervisor, mut upload, offset } = self;
        let after = offset + bytes.len() as u64;
        let written = spawn_blocking(move || upload.write(offset, &bytes).map(|_| upload));
        let upload = written.await.map_err(|_| going())??;
        Ok(Self { client, supervisor, upload, offset: after })
    }

    /// What came so far, from its beginning.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn reader(&self) -> Result<File, Fault> {
        self.upload.reader()
    }

    /// Keeps it, whole, and says which it is.
    ///
    /// # Errors
    /// If it cannot be kept.
    pub async fn finish(self) -> Result<FileDigest, Fault> {
        let Self { client, supervisor, upload, offset: bytes } = self;
        let file = spawn_blocking(move || upload.finish()).await.map_err(|_| going())??;
        came(&supervisor, FileCame { client, file, bytes }).await?;
        Ok(file)
    }
}

impl Coordinator {
    /// Keeps a file that a client in this process submits jobs with.
    ///
    /// # Errors
    /// If it is too large, or cannot be kept.
    pub async fn keep_file(&self, visit: &Visit, bytes: Bytes) -> Result<FileDigest, Fault> {
        let uploads = Uploads::new(visit.client(), self.files.clone(), self.supervisor.clone());
        uploads.keep(bytes).await
    }

    /// Begins to take in a file of so many bytes, of a client in this process.
    ///
    /// # Errors
    /// If it is too large, or there is no room for it.
    pub fn take_file(&self, visit: &Visit, total: u64) -> Result<Arrival, Fault> {
        let (client, supervisor) = (visit.client(), self.supervisor.clone());
        let upload = self.files.begin(None, total)?;
        Ok(Arrival { client, supervisor, upload, offset: 0 })
    }

    /// A client in this process wants to submit a job with this file. Says whether it is there; then it stays for as long as
    /// the client does.
    pub async fn wants_file(&self, visit: &Visit, file: FileDigest) -> bool {
        self.supervisor.send(WantsFile { client: visit.client(), file }).await.unwrap_or(false)
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
    use crate::cluster::failure::TICK;
    use crate::director::{Director, Standing};
    use crate::files::Files;
    use crate::identity::Access;
    use bytes::Bytes;
    use protocol::tls::Security;

    #[test]
    fn files_come_from_clients_wherever_they_are_and_stay() {
        block_on(async {
            let files = Files::temporary().unwrap();
            let (access, director) = (Access::Insecure, Director::default());
            let started = Coordinator::start_with("127.0.0.1:0", access, director, files.clone());
            let coordinator = started.await.unwrap();
            let large = vec![7; 3 << 16 | 5];
            let visit = coordinator.visit(Standing::of("me"));
            let kept = coordinator.keep_file(&visit, Bytes::from(large.clone())).await.unwrap();
            assert_eq!(files.all(), [(kept, large.len() as u64)]);
            let mut arrival = coordinator.take_file(&visit, large.len() as u64).unwrap();
            for part in large.chunks(1 << 16) {
                arrival = arrival.write(part.to_vec().into()).await.unwrap();
            }
            assert_eq!(arrival.finish().await, Ok(kept));
            assert!(coordinator.wants_file(&visit, kept).await);
            assert!(coordinator.take_file(&visit, 9).unwrap().finish().await.is_err());
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
            drop((client, visit));
            tokio::time::sleep(2 * TICK).await;
            assert!(files.has(kept) && files.has(other.digest()), "they are idle for a while");
        });
    }
}
