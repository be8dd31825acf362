//! The options of `coordinator serve` that are about HTTP.

use crate::actor::Coordinator;
use crate::api::keys::KeyFile;
use crate::api::{Server, Settings};
use anyhow::{Context, bail};
use std::path::PathBuf;
use tokio::net::{TcpListener, lookup_host};

/// Where the HTTP interface is unless told otherwise.
const HTTP_DEFAULT: &str = "127.0.0.1:7480";
/// What `--http` takes for nowhere.
const OFF: &str = "off";

#[derive(Debug, clap::Args)]
pub(super) struct HttpArgs {
    /// Where the HTTP interface and the page are; port 0 takes a free one; off: there are none.
    #[arg(long, value_name = "ADDR:PORT", default_value = HTTP_DEFAULT)]
    http: String,
    /// Answer over HTTP only to those who show one of the keys in this file, which `coordinator key new` makes [default:
    /// whoever is on this machine].
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Answer over HTTP to everyone who can reach it, without keys.
    #[arg(long, conflicts_with = "api_keys")]
    http_open: bool,
    /// Let pages of this site call, such as `https://art.example`; or this server, where a proxy calls it that.
    #[arg(long, value_name = "ORIGIN", value_parser = origin)]
    http_origin: Option<String>,
}

impl HttpArgs {
    /// Takes the address; None if there is to be no HTTP.
    pub(super) async fn listen(&self) -> anyhow::Result<Option<TcpListener>> {
        let address = &self.http;
        if address == OFF {
            return Ok(None);
        }
        match &self.api_keys {
            // Read again when it is used, and found wrong before anything is started.
            Some(file) => drop(KeyFile::at(file).read()?),
            None if self.http_open => {}
            None => self.check_loopback().await?,
        }
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!(
                "cannot listen on {address} for HTTP (another coordinator may be there: give another address with \
                 --http ADDR:PORT, or --http {OFF})"
            )
        })?;
        Ok(Some(listener))
    }

    async fn check_loopback(&self) -> anyhow::Result<()> {
        let address = &self.http;
        let found = lookup_host(address).await;
        for found in found.with_context(|| format!("--http {address}"))? {
            if !found.ip().is_loopback() {
                bail!(
                    "--http {address}: without keys whoever can reach it could submit jobs and see everyone's, which \
                     only this machine's own addresses (127.0.0.1) may be; make keys with `coordinator key new` and \
                     give --api-keys FILE, or if the network is to be trusted, --http-open"
                );
            }
        }
        Ok(())
    }

    /// Starts to answer. `join` is the command by which a worker joins.
    pub(super) fn start(
        &self,
        listener: TcpListener,
        coordinator: &Coordinator,
        join: &str,
    ) -> anyhow::Result<Server> {
        let keys = self.api_keys.as_deref().map(KeyFile::at);
        let settings = Settings {
            keys,
            open: self.http_open,
            origin: self.http_origin.clone(),
            join: join.to_owned(),
        };
        let started = Server::start(listener, coordinator.clone(), settings);
        let server = started.context("cannot start the HTTP server")?;
        let who = match &self.api_keys {
            Some(file) => format!("for those with a key in {}", file.display()),
            None if self.http_open => {
                "open: for everyone who can reach it, without keys".to_owned()
            }
            None => "for everyone on this machine".to_owned(),
        };
        tracing::info!(
            "HTTP is at http://{}/, {who}; /openapi.json describes it",
            server.address()
        );
        Ok(server)
    }
}

/// Reads the origin of a page.
fn origin(text: &str) -> Result<String, String> {
    let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-.:[]".contains(letter);
    let fits = authority.is_some_and(|name| !name.is_empty() && name.chars().all(plain));
    let wrong = || "give scheme and host, as a browser says them: https://art.example".to_owned();
    if fits { Ok(text.to_ascii_lowercase()) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_says() {
        assert_eq!(origin("https://Art.Example:8080"), Ok("https://art.example:8080".to_owned()));
        for wrong in ["*", "art.example", "https://", "https://art.example/", "null", "ftp://a"] {
            assert!(origin(wrong).is_err(), "{wrong}");
        }
    }
}
