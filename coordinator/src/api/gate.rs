//! Who may call: keys, and pages of other sites that a browser would lend its user's reach.
//!
//! A server without keys trusts whoever reaches it, and so does not want to be reached by a page that the user merely looks
//! at. Such a page can send a form here (its `Origin` says so), or have its own name point here (then `Host` is that name).

use super::error::Refusal;
use std::net::{IpAddr, SocketAddr};

/// What of a request tells where it comes from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Asked<'a> {
    pub(super) host: Option<&'a str>,
    pub(super) origin: Option<&'a str>,
    /// `Sec-Fetch-Site`.
    pub(super) site: Option<&'a str>,
    /// `Sec-Fetch-Mode`.
    pub(super) mode: Option<&'a str>,
}

/// From where requests may come.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    /// Where the server listens.
    pub(super) address: SocketAddr,
    /// Whether the name that a caller has for this server does not matter: it shows a key, or everyone may call.
    pub(super) any_host: bool,
    /// The one site beside its own whose pages may call.
    pub(super) origin: Option<String>,
}

impl Gate {
    /// Whether a request may be answered.
    pub(super) fn check(&self, asked: Asked<'_>) -> Result<(), Refusal> {
        if !self.any_host && !asked.host.is_some_and(|host| self.is_own(host)) {
            let host = asked.host.unwrap_or_default();
            let message = format!(
                "this server is not called `{host}`: call it {}, or start it with --api-keys",
                self.address
            );
            return Err(Refusal::forbidden("foreign_host", message));
        }
        let Some(origin) = asked.origin else {
            // An image that a foreign page shows, say, comes without an origin.
            let foreign = asked.site == Some("cross-site") && asked.mode != Some("navigate");
            return if foreign { Err(self.foreign("another site")) } else { Ok(()) };
        };
        let own = asked.host.is_some_and(|host| authority(origin) == Some(host));
        if own || self.is_allowed(origin) { Ok(()) } else { Err(self.foreign(origin)) }
    }

    /// Whether this is the other site whose pages may call.
    pub(super) fn is_allowed(&self, origin: &str) -> bool {
        self.origin.as_deref() == Some(origin)
    }

    fn foreign(&self, origin: &str) -> Refusal {
        let message = format!(
            "pages of {origin} may not call this server: start it with --http-origin to let those of one site"
        );
        Refusal::forbidden("foreign_origin", message)
    }

    /// Whether `host` is a name that only this machine has, or the address that the server listens on.
    fn is_own(&self, host: &str) -> bool {
        if host.parse() == Ok(self.address) {
            return true;
        }
        let (name, port) = split(host);
        let port_fits = port.is_none_or(|port| port.parse() == Ok(self.address.port()));
        let loopback = |ip: IpAddr| ip.is_loopback() || ip == self.address.ip();
        let named = name.eq_ignore_ascii_case("localhost");
        port_fits && (named || name.parse().is_ok_and(loopback))
    }
}

/// The host and port of an origin.
fn authority(origin: &str) -> Option<&str> {
    origin.split_once("://").map(|(_, authority)| authority)
}

/// A host's name and its port; the brackets of an IPv6 address are left out.
fn split(host: &str) -> (&str, Option<&str>) {
    if let Some((name, rest)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return (name, rest.strip_prefix(':'));
    }
    host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(address: &str) -> Gate {
        Gate { address: address.parse().unwrap(), any_host: false, origin: None }
    }

    fn from(host: &str) -> Asked<'_> {
        Asked { host: Some(host), ..Asked::default() }
    }

    #[test]
    fn a_name_that_points_here_is_not_this_servers() {
        let gate = gate("127.0.0.1:7480");
        for own in [
            "127.0.0.1:7480",
            "localhost:7480",
            "LOCALHOST:7480",
            "[::1]:7480",
            "localhost",
            "127.0.0.1",
        ] {
            assert_eq!(gate.check(from(own)), Ok(()), "{own}");
        }
        for foreign in [
            "evil.example:7480",
            "localhost.evil.example",
            "127.0.0.1:80",
            "10.0.0.1:7480",
            "",
            "[::1",
        ] {
            let refusal = gate.check(from(foreign)).unwrap_err();
            assert_eq!(
                (refusal.status.as_u16(), &*refusal.code),
                (403, "foreign_host"),
                "{foreign}"
            );
        }
        assert!(gate.check(Asked::default()).is_err(), "no name at all");
        let open = Gate { any_host: true, ..gate };
        assert_eq!(open.check(from("evil.example")), Ok(()));
        let six = super::tests::gate("[::1]:7480");
        assert_eq!(six.check(from("[::1]:7480")), Ok(()));
    }

    #[test]
    fn pages_of_other_sites_may_not_call_but_one_that_is_named() {
        let gate = gate("127.0.0.1:7480");
        let page = |origin| Asked { origin: Some(origin), ..from("127.0.0.1:7480") };
        assert_eq!(gate.check(page("http://127.0.0.1:7480")), Ok(()));
        for foreign in
            ["https://evil.example", "null", "http://127.0.0.1:3000", "http://localhost:7480", ""]
        {
            assert_eq!(gate.check(page(foreign)).unwrap_err().code, "foreign_origin", "{foreign}");
        }
        let named = Gate { origin: Some("https://art.example".to_owned()), ..gate };
        assert_eq!(named.check(page("https://art.example")), Ok(()));
        assert!(named.check(page("http://art.example")).is_err());
        let keyed = Gate { any_host: true, ..named };
        assert!(keyed.check(page("https://evil.example")).is_err());
    }

    #[test]
    fn images_on_foreign_pages_are_not_sent_but_links_work() {
        let gate = gate("127.0.0.1:7480");
        let fetched =
            |site, mode| Asked { site: Some(site), mode: Some(mode), ..from("localhost:7480") };
        assert!(gate.check(fetched("cross-site", "no-cors")).is_err());
        assert_eq!(gate.check(fetched("cross-site", "navigate")), Ok(()));
        assert_eq!(gate.check(fetched("same-origin", "no-cors")), Ok(()));
        assert_eq!(gate.check(fetched("none", "navigate")), Ok(()));
    }
}
