//! The coordinator's actors: the only place in this crate with actix and listening sockets.

pub mod files;
pub mod session;
pub mod supervisor;
pub mod visit;

use crate::director::{Director, Standing, Tallies};
use crate::files::Files;
use crate::identity::Access;
use actix::{Actor, Addr};
use protocol::message::ClusterView;
use session::Door;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use supervisor::Supervisor;
use tokio::net::TcpListener;
use visit::Visit;

/// Runs `future` on an actor system of this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    actix::System::new().block_on(future)
}

/// A coordinator running in this process.
#[derive(Clone, Debug)]
pub struct Coordinator {
    address: SocketAddr,
    supervisor: Addr<Supervisor>,
    files: Files,
    admitted: Arc<AtomicUsize>,
}

impl Coordinator {
    /// Starts a coordinator that decides as `director` does, listens on `address`, where port 0 takes a free one, and lets those
    /// in that `access` does. Must be called inside an actix system.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn start(address: &str, access: Access, director: Director) -> std::io::Result<Self> {
        Self::start_with(address, access, director, Files::temporary()?).await
    }

    /// The same, with the files of its jobs in `files`.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn start_with(
        address: &str,
        access: Access,
        mut director: Director,
        files: Files,
    ) -> std::io::Result<Self> {
        director.files_found(files.all());
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let admitted = Arc::new(AtomicUsize::new(0));
        let supervisor = Supervisor::new(director, files.clone(), Arc::clone(&admitted)).start();
        if let Access::Members(keeper) = &access {
            actix::spawn(Arc::clone(keeper).follow());
        }
        let door = Arc::new(Door::new(supervisor.clone(), access, files.clone()));
        actix::spawn(session::accept(listener, door));
        Ok(Self { address, supervisor, files, admitted })
    }

    /// The files that jobs are rendered with.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// How many workers it let in so far.
    #[must_use]
    pub fn admitted(&self) -> usize {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client inside this process.
    #[must_use]
    pub fn visit(&self, standing: Standing) -> Visit {
        Visit::new(self.supervisor.clone(), standing)
    }

    /// How the cluster is, and what happened since it started; None once it is gone.
    pub async fn gauge(&self) -> Option<(ClusterView, Tallies)> {
        self.supervisor.send(supervisor::Gauge).await.ok()
    }

    /// Ends every job with `ShuttingDown`, but those that are kept. Workers find the connection closed when the process ends.
    pub async fn shut_down(&self) {
        // A supervisor that is gone has nothing left to end.
        self.supervisor.send(supervisor::ShutDown).await.ok();
    }
}
