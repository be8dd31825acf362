//! What simulated workers say they have loaded.

use crate::network::HostId;
use protocol::job::{Dtype, ModelCard, ModelWork, Scheduler};
use protocol::plan::{Ask, SiteSpec, Stage};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::LazyLock;

/// The model that all workers hold: an image of it has eight bands at most.
#[must_use]
pub fn card() -> ModelCard {
    ModelCard {
        name: "simulated".to_owned(),
        digest: "ab".repeat(32),
        family: "sdxl".to_owned(),
        dtype: Dtype::F32,
        latent_channels: 4,
        vae_factor: 2,
        row_unit: 2,
        native: (8, 32),
        scheduler: Scheduler::Euler,
        guidance: 2.0,
        weight_bytes: 1,
        shards_max: 1,
        decode_bytes: 1,
        work: ModelWork::default(),
        preview: None,
        encode_bytes: 8,
    }
}

/// The exchange points of the model, for the handshake to compare.
#[must_use]
pub fn sites() -> &'static [SiteSpec] {
    static SITES: LazyLock<Vec<SiteSpec>> = LazyLock::new(|| {
        let site = |path: &str, ask, stage| SiteSpec {
            path: path.to_owned(),
            ask,
            stage,
            channels: 4,
            halvings: 0,
        };
        vec![
            site("input", Ask::Halo { rows: 1 }, Stage::Input),
            site("halo", Ask::Halo { rows: 1 }, Stage::Denoise),
            site("moments", Ask::Moments { groups: 2 }, Stage::Denoise),
            site("prediction", Ask::Prediction, Stage::Latent),
            site("latent", Ask::Latent, Stage::Latent),
            site("decode", Ask::Halo { rows: 1 }, Stage::Decode),
        ]
    });
    &SITES
}

/// Where a worker's peers reach it: its host is the port.
#[must_use]
pub fn address(host: HostId) -> SocketAddr {
    let port = u16::try_from(host).unwrap_or(u16::MAX);
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
