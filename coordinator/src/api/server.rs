//! The server: its socket, its threads, its end.

use super::error::Refusal;
use super::gate::Gate;
use super::guard::{self, LiveKeys, Watchman};
use super::keys::{KeyFile, KeyFileError};
use super::limits::{CONNECTIONS_MAX, FOLLOWERS_MAX};
use super::{Api, openapi, routes};
use crate::actor::Coordinator;
use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpServer, rt, web};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;

/// Threads that answer: an image is encoded on others, and all else is waiting for the coordinator, which has one.
const THREADS: usize = 2;
/// How long a caller may take to send a request's head: more than the slowest needs, and what one that sends nothing costs.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// How long a connection is kept that nobody asks anything on.
const IDLE_PATIENCE: Duration = Duration::from_secs(60);

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The keys that callers must show one of; None: they need none.
    pub keys: Option<KeyFile>,
    /// Whether everyone who reaches it may call, whatever they call it.
    pub open: bool,
    /// The site beside its own whose pages may call.
    pub origin: Option<String>,
    /// The command by which a worker joins the cluster.
    pub join: String,
}

/// A server that answers until it is dropped or told to stop.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    handle: ServerHandle,
    ends: watch::Sender<bool>,
}

impl Server {
    /// Starts to answer on `listener` for `coordinator`. Must be called inside an actix system.
    ///
    /// # Errors
    /// If the keys cannot be read, or the system gives no threads.
    pub fn start(
        listener: TcpListener,
        coordinator: Coordinator,
        settings: Settings,
    ) -> Result<Self, KeyFileError> {
        let address = listener.local_addr()?;
        let Settings { keys, open, origin, join } = settings;
        let any_host = open || keys.is_some();
        let keys = keys.map(LiveKeys::open).transpose()?.map(Arc::new);
        if let Some(keys) = &keys {
            rt::spawn(Arc::clone(keys).follow());
        }
        let (ends, ending) = watch::channel(false);
        let api = web::Data::new(Api {
            coordinator,
            watchman: Watchman::new(Gate { address, any_host, origin }, keys),
            judging: Semaphore::new(1),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            ends: ending,
            in_flight: super::automatic::InFlight::default(),
            join,
            document: openapi::document().into(),
        });
        let app = move || {
            App::new()
                .app_data(api.clone())
                .wrap(from_fn(guard::guard))
                .configure(routes)
                .default_service(web::to(nowhere))
        };
        let server = HttpServer::new(app)
            .workers(THREADS)
            .max_connections(CONNECTIONS_MAX / THREADS)
            .client_request_timeout(HEAD_PATIENCE)
            .keep_alive(IDLE_PATIENCE)
            .disable_signals()
            .listen(listener.into_std()?)?
            .run();
        let handle = server.handle();
        rt::spawn(async move {
            if let Err(error) = server.await {
                tracing::error!("the HTTP server ended: {error}");
            }
        });
        Ok(Self { address, handle, ends })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets those who follow events go and takes nobody in any more; answers that are under way have so long to end.
    pub async fn stop(self, patience: Duration) {
        self.ends.send_replace(true);
        if timeout(patience, self.handle.stop(true)).await.is_err() {
            drop(self.handle.stop(false)); // said when it is called, not when it is waited for
        }
    }
}

async fn nowhere(request: actix_web::HttpRequest) -> Result<(), Refusal> {
    let message = format!("nothing is at {}; GET /openapi.json says what there is", request.path());
    Err(Refusal::not_found("not_found", message))
}
