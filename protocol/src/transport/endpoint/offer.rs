//! Which fabrics a worker has, and why not others.

use super::call::Way;
use super::not_carried;
use crate::id::Rank;
use crate::plan::{Fabric, Lack, Offer, Plan};
use crate::tls::Security;
use crate::transport::connection::Connection;
use crate::transport::quic::{Congestion, QuicEndpoint};
use crate::transport::{Hangup, Link, LinkError, LinkSpec, shm};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

/// What a worker is to open for its peers.
#[derive(Clone, Debug)]
pub struct Doors {
    /// Where they reach it; port 0 takes a free one.
    pub address: SocketAddr,
    /// How they prove themselves, and it does.
    pub security: Security,
    /// The fabrics to offer, each of which must be had; none named offers what there is.
    pub fabrics: Vec<Fabric>,
    /// What to use of the machine's RDMA devices.
    pub rdma: RdmaWish,
}

/// Which RDMA device to use, and how; what is left open is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaWish {
    /// Its name, as in `/sys/class/infiniband`.
    pub device: Option<String>,
    /// Its port's number, from 1.
    pub port: Option<u8>,
    /// The index in the port's GID table.
    pub gid_index: Option<u8>,
}

/// Why a worker cannot open what it is to open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {error}; give another address with --listen")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// A fabric that was asked for cannot be had.
    #[error("--fabric {fabric}: {cause}")]
    Fabric {
        /// Which.
        fabric: Fabric,
        /// Why, and what would change that.
        cause: String,
    },
}

/// The fabrics of one worker.
#[derive(Debug)]
pub(super) struct Fabrics {
    pub(super) offers: Vec<Offer>,
    pub(super) lacks: Vec<Lack>,
    pub(super) quic: Option<Arc<QuicEndpoint>>,
    #[cfg(feature = "rdma")]
    pub(super) rdma: Option<Arc<crate::transport::rdma::Device>>,
}

impl Fabrics {
    /// Those that a worker whose TCP door is at `address` has.
    pub(super) async fn open(address: SocketAddr, doors: &Doors) -> Result<Self, EndpointError> {
        let mut fabrics = Self {
            offers: Vec::new(),
            lacks: Vec::new(),
            quic: None,
            #[cfg(feature = "rdma")]
            rdma: None,
        };
        let asked = &doors.fabrics;
        for fabric in Fabric::ALL.iter().copied() {
            if !asked.is_empty() && !asked.contains(&fabric) {
                let cause = "it was not among those of --fabric".to_owned();
                fabrics.lacks.push(Lack { fabric, cause });
                continue;
            }
            match fabrics.offer(fabric, address, doors).await {
                Ok(offer) => fabrics.offers.push(offer),
                Err(cause) if asked.is_empty() => fabrics.lacks.push(Lack { fabric, cause }),
                Err(cause) => return Err(EndpointError::Fabric { fabric, cause }),
            }
        }
        Ok(fabrics)
    }

    async fn offer(
        &mut self,
        fabric: Fabric,
        address: SocketAddr,
        doors: &Doors,
    ) -> Result<Offer, String> {
        match fabric {
            Fabric::Nccl => Err("this worker computes on no GPU that NCCL reaches".to_owned()),
            Fabric::Shm => shm::memory().map(Offer::Shm).map_err(|error| error.to_string()),
            Fabric::Rdma => self.open_rdma(address, &doors.rdma),
            Fabric::Quic => self.open_quic(address, &doors.security).await,
            Fabric::Tcp => Ok(Offer::Tcp),
        }
    }

    #[cfg(feature = "rdma")]
    fn open_rdma(&mut self, address: SocketAddr, wish: &RdmaWish) -> Result<Offer, String> {
        use crate::transport::rdma::{Device, RdmaOptions};
        let RdmaWish { device, port, gid_index } = wish.clone();
        let address = Some(address.ip()).filter(|address| !address.is_unspecified());
        let opened = Device::open(&RdmaOptions { device, port, gid_index, address });
        let device = opened.map_err(|error| error.to_string())?;
        tracing::info!("RDMA over {device}");
        let roce = device.is_ethernet();
        self.rdma = Some(Arc::new(device));
        Ok(Offer::Rdma { roce })
    }

    #[cfg(not(feature = "rdma"))]
    #[expect(clippy::unused_self, reason = "as with RDMA")]
    fn open_rdma(&mut self, _: SocketAddr, _: &RdmaWish) -> Result<Offer, String> {
        Err("this worker was built without RDMA (--features rdma)".to_owned())
    }

    async fn open_quic(
        &mut self,
        address: SocketAddr,
        security: &Security,
    ) -> Result<Offer, String> {
        let (server, client) = (security.server_config(), security.client_config());
        let bind = |address| QuicEndpoint::bind(address, &server, &client, Congestion::default());
        // The port of the TCP door, if it is free, is one less to open in a firewall.
        let bound = match bind(address).await {
            Ok(bound) => Ok(bound),
            Err(_) => bind(SocketAddr::new(address.ip(), 0)).await,
        };
        let quic = bound.map_err(|error| error.to_string())?;
        let port = quic.address().port();
        self.quic = Some(Arc::new(quic));
        Ok(Offer::Quic { port })
    }

    /// The link that the RDMA device makes.
    #[cfg(feature = "rdma")]
    pub(super) async fn over_rdma(
        &self,
        connection: Connection,
        spec: &LinkSpec,
        hangup: &Hangup,
    ) -> Result<Box<dyn Link>, LinkError> {
        let device = self.rdma.as_ref().ok_or_else(|| not_carried(Some(Fabric::Rdma), spec))?;
        Ok(Box::new(crate::transport::rdma::establish(connection, device, spec, hangup).await?))
    }

    /// No link: nobody is offered RDMA by a worker that was built without it.
    #[cfg(not(feature = "rdma"))]
    #[expect(clippy::unused_async, reason = "as with RDMA")]
    pub(super) async fn over_rdma(
        &self,
        _: Connection,
        spec: &LinkSpec,
        _: &Hangup,
    ) -> Result<Box<dyn Link>, LinkError> {
        Err(not_carried(Some(Fabric::Rdma), spec))
    }

    /// How `own` calls `peer`.
    pub(super) fn way(
        &self,
        plan: &Plan,
        (own, peer): (Rank, Rank),
        security: &Security,
    ) -> Result<Way, LinkError> {
        let unplanned = |cause: &str| LinkError::Closed { peer, cause: cause.to_owned() };
        let member = plan.member(peer).ok_or_else(|| unplanned("the plan has no such rank"))?;
        let fabric = plan.link_fabric(own, peer);
        if fabric.is_none() {
            return Err(unplanned("this worker shares no fabric with it that the job may use"));
        }
        let port = member.offers.iter().find_map(|offer| match offer {
            Offer::Quic { port } => Some(*port),
            _ => None,
        });
        Ok(match (fabric, port, &self.quic) {
            (Some(Fabric::Quic), Some(port), Some(quic)) => {
                let address = SocketAddr::new(member.address.ip(), port);
                Way::Quic(address, Arc::clone(quic), security.clone())
            }
            _ => Way::Door(member.address, security.clone()),
        })
    }
}
