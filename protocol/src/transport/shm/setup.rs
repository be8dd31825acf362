//! How the two ends of a link come to map each other's region.
//!
//! Each makes its own, tells the other its name, maps the other's, and says so; then the names go. An
//! end that fails tells the other why.

use super::super::connection::{Connection, Reading, Writing};
use super::super::stream::{FrameReader, StreamError};
use super::super::{LinkError, LinkSpec};
use super::buffers::Mapped;
use super::control::Word;
use super::file::{self, OwnFile, ShmError};
use super::layout::Layout;
use super::region::Region;
use crate::codec::{self, Limits};
use crate::fault::{Fault, FaultKind};
use crate::id::Rank;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// How long an end that failed waits for the other to have heard why: it answers at once, if at all.
const FAREWELL: Duration = Duration::from_secs(1);

/// What crosses the connection before values cross the memory.
#[derive(Debug, Serialize, Deserialize)]
enum Setup {
    /// The sender's region has this name.
    Region(String),
    /// The sender has mapped the receiver's.
    Mapped,
    /// There will be no link.
    Failed(Fault),
}

/// The own region and the peer's, in `folder`; their files are unlinked.
pub(super) async fn regions(
    folder: &Path,
    connection: &mut Connection,
    spec: &LinkSpec,
) -> Result<(Mapped, Mapped), LinkError> {
    let mut line = Line::new(connection, spec.peer);
    let own = Layout::new(spec.lands());
    let place = folder.to_owned();
    let made = line.attempt(blocking(move || make(&place, own)).await).await?;
    let (file, own) = made;
    line.send(&Setup::Region(file.name.clone())).await?;
    let Setup::Region(name) = line.receive().await? else {
        return Err(line.broke("it did not name its region"));
    };
    let (place, peers) = (folder.to_owned(), Layout::new(spec.posts()));
    let peers = line.attempt(blocking(move || find(&place, &name, peers)).await).await?;
    line.send(&Setup::Mapped).await?;
    let Setup::Mapped = line.receive().await? else {
        return Err(line.broke("it did not say that it mapped the region"));
    };
    line.end()?;
    Ok((own, peers))
}

/// Runs what may take long, setting much memory aside, where it holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("it neither panics nor is it aborted")
}

fn make(folder: &Path, layout: Layout) -> Result<(OwnFile, Mapped), ShmError> {
    let own = file::create(folder, layout.bytes)?;
    let mapped = map(folder, &own.file, layout)?;
    let heading = mapped.layout.heading();
    for (word, value) in mapped.control().heading(heading.len()).zip(heading) {
        word.set(value);
    }
    Ok((own, mapped))
}

fn find(folder: &Path, name: &str, layout: Layout) -> Result<Mapped, ShmError> {
    let file = file::open(folder, name, layout.bytes)?;
    let mapped = map(folder, &file, layout)?;
    let heading = mapped.layout.heading();
    if !mapped.control().heading(heading.len()).map(Word::get).eq(heading) {
        let what = "has another layout: install the same release on both".to_owned();
        return Err(ShmError::Unlike { what });
    }
    Ok(mapped)
}

fn map(folder: &Path, file: &OwnedFd, layout: Layout) -> Result<Mapped, ShmError> {
    let path = PathBuf::from(folder);
    let failed = |cause| ShmError::System { act: "map a region of", path, cause };
    let region = Region::map(file, layout.bytes).map_err(failed)?;
    Ok(Mapped { region, layout })
}

/// The connection while the link is set up.
struct Line<'a> {
    peer: Rank,
    reader: FrameReader<&'a mut Reading>,
    writing: &'a mut Writing,
}

impl<'a> Line<'a> {
    fn new(connection: &'a mut Connection, peer: Rank) -> Self {
        let Connection { reading, writing, .. } = connection;
        Self { peer, reader: FrameReader::new(reading, Limits::GREETING), writing }
    }

    /// Tells the peer, too, if something failed here.
    async fn attempt<T>(&mut self, result: Result<T, ShmError>) -> Result<T, LinkError> {
        match result {
            Ok(done) => Ok(done),
            Err(error) => {
                let fault = Fault::new(FaultKind::PeerLost, error.to_string());
                timeout(FAREWELL, self.fail(fault.clone())).await.ok(); // or it does not listen
                Err(LinkError::Refused { peer: self.peer, fault })
            }
        }
    }

    /// Says why there will be no link. Closing the connection while something of the peer's is unread
    /// would reset it, and could cost the peer the reason: so all is read until it closes, too.
    async fn fail(&mut self, fault: Fault) {
        if self.send(&Setup::Failed(fault)).await.is_ok() && self.writing.shutdown().await.is_ok() {
            while let Ok(Some(_)) = self.reader.next_frame().await {}
        }
    }

    async fn send(&mut self, message: &Setup) -> Result<(), LinkError> {
        let frame = codec::encode(message, &[], &Limits::GREETING)
            .map_err(|error| self.closed(&error.into()))?;
        let sent = async {
            self.writing.write_all(&frame).await?;
            self.writing.flush().await
        };
        sent.await.map_err(|error| self.closed(&error.into()))
    }

    /// What the peer says next, if it is no failure.
    async fn receive(&mut self) -> Result<Setup, LinkError> {
        match self.reader.next().await {
            Ok(Some((Setup::Failed(fault), _))) => {
                Err(LinkError::Refused { peer: self.peer, fault })
            }
            Ok(Some((message, _))) => Ok(message),
            Ok(None) => {
                let cause = "it closed while memory was exchanged".to_owned();
                Err(LinkError::Closed { peer: self.peer, cause })
            }
            Err(StreamError::Frame(error)) => Err(self.broke(&error.to_string())),
            Err(error) => Err(self.closed(&error)),
        }
    }

    /// Nothing may follow.
    fn end(self) -> Result<(), LinkError> {
        let peer = self.peer;
        let (_, unread) = self.reader.into_parts();
        if unread.is_empty() {
            return Ok(());
        }
        let cause = format!("it sent {} bytes after the regions", unread.len());
        Err(LinkError::Protocol { peer, cause })
    }

    fn broke(&self, cause: &str) -> LinkError {
        LinkError::Protocol { peer: self.peer, cause: cause.to_owned() }
    }

    fn closed(&self, error: &StreamError) -> LinkError {
        LinkError::Closed { peer: self.peer, cause: error.to_string() }
    }
}
