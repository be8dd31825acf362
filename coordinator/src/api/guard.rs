//! What is done with every request before it is answered, and with every answer.

use super::error::Refusal;
use super::gate::{Asked, Gate};
use super::keys::{Key, KeyFile, KeyFileError, Keys, Rates};
use super::{Api, Caller};
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _, HttpResponse, ResponseError as _, web};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use protocol::identity::Strangers;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// How often the file of keys is looked at: a key that was revoked is worthless within a second.
const LOOK: Duration = Duration::from_millis(500);
/// How long a browser may remember that it was let in, in seconds.
const ALLOWED_SECONDS: &str = "600";

/// Knows who may call.
#[derive(Debug)]
pub(super) struct Watchman {
    gate: Gate,
    keys: Option<Arc<LiveKeys>>,
    rates: Mutex<Rates>,
    strangers: Mutex<Strangers>,
    began: Instant,
}

/// The keys that are in a file now.
#[derive(Debug)]
pub(super) struct LiveKeys {
    file: KeyFile,
    keys: RwLock<Keys>,
}

impl LiveKeys {
    pub(super) fn open(file: KeyFile) -> Result<Self, KeyFileError> {
        let keys = RwLock::new(file.read()?);
        Ok(Self { file, keys })
    }

    /// Reads the file anew whenever it was changed, for ever.
    pub(super) async fn follow(self: Arc<Self>) {
        let mut seen = self.file.stamp();
        loop {
            sleep(LOOK).await;
            let stamp = self.file.stamp();
            if stamp == seen {
                continue;
            }
            seen = stamp;
            match self.file.read() {
                Ok(keys) => *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys,
                Err(error) => tracing::warn!("{error}; the keys before still count"),
            }
        }
    }

    fn find(&self, shown: &str) -> Option<Arc<Key>> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.find(shown).cloned().map(Arc::new)
    }
}

impl Watchman {
    pub(super) fn new(gate: Gate, keys: Option<Arc<LiveKeys>>) -> Self {
        let (rates, strangers) = (Mutex::default(), Mutex::default());
        Self { gate, keys, rates, strangers, began: Instant::now() }
    }

    /// Who calls, by the key that is shown.
    fn caller(&self, request: &ServiceRequest) -> Result<Caller, Refusal> {
        let Some(keys) = &self.keys else { return Ok(Caller::default()) };
        let shown = shown_key(request.headers(), request.query_string());
        let refused = match &shown {
            None => "no API key was shown: send Authorization: Bearer KEY",
            Some(shown) => match keys.find(shown) {
                Some(key) => return Ok(Caller { key: Some(key) }),
                None => "the API key is none of this server's: it is wrong, or was revoked",
            },
        };
        if let Some(peer) = request.peer_addr() {
            let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(line) = strangers.refuse(peer.ip(), refused, self.began.elapsed()) {
                tracing::warn!("HTTP: {line}");
            }
        }
        Err(Refusal::unauthorised(refused))
    }

    /// Takes `jobs` of what a key may submit in this minute.
    pub(super) fn take(&self, key: Option<&Key>, jobs: u32) -> Result<(), Refusal> {
        let Some((key, most)) = key.and_then(|key| Some((key, key.per_minute?))) else {
            return Ok(());
        };
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        rates.take(&key.name, most, jobs, self.began.elapsed()).map_err(|seconds| {
            let message = format!(
                "the key `{}` may submit {most} jobs a minute; try again in {seconds} s",
                key.name
            );
            Refusal::limited(seconds, "rate_limit_exceeded", message)
        })
    }

    /// Whether pages of this request's site may read the answer.
    fn allowed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        self.gate.is_allowed(origin.to_str().ok()?).then(|| origin.clone())
    }
}

/// The key that a request shows: in its head; or in its query, for what pages ask for without a head of their own.
fn shown_key(headers: &HeaderMap, query: &str) -> Option<String> {
    if let Some(shown) = headers.get(header::AUTHORIZATION) {
        let (scheme, key) = shown.to_str().ok()?.split_once(' ')?;
        return match scheme.to_ascii_lowercase().as_str() {
            "bearer" => Some(key.trim().to_owned()),
            // Clients that know users and passwords only: the key is the password.
            "basic" => {
                let pair = String::from_utf8(BASE64_STANDARD.decode(key.trim()).ok()?).ok()?;
                pair.split_once(':').map(|(_, key)| key.to_owned())
            }
            _ => None,
        };
    }
    #[derive(serde::Deserialize)]
    struct Shown {
        key: String,
    }
    web::Query::<Shown>::from_query(query).ok().map(|shown| shown.into_inner().key)
}

/// What is for everyone: whether the server is well, what it understands, and the page, which asks for the key itself.
fn needs_no_key(path: &str) -> bool {
    let interface = ["/v1/", "/sdapi/"].iter().any(|prefix| path.starts_with(prefix));
    !interface && path != "/metrics"
}

/// Lets a request through, or answers it.
pub(super) async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(api) = request.app_data::<web::Data<Api>>().cloned() else {
        return Err(Refusal::internal("the server has no state").into());
    };
    let allowed = api.watchman.allowed_origin(request.headers());
    let mut response = match admit(&request, &api.watchman) {
        Err(refusal) => request.into_response(refusal.error_response()),
        Ok(_) if allowed.is_some() && request.method() == Method::OPTIONS => {
            request.into_response(preflight())
        }
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.call(request).await?.map_into_boxed_body()
        }
    };
    let headers = response.headers_mut();
    let mut say = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    say(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    say(header::REFERRER_POLICY, "no-referrer"); // a key may be in an address
    match allowed {
        Some(origin) => {
            say(header::VARY, "Origin");
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        }
        None => say(HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    }
    Ok(response)
}

fn admit(request: &ServiceRequest, watchman: &Watchman) -> Result<Caller, Refusal> {
    let path = request.path();
    if path == "/healthz" || path == "/readyz" {
        return Ok(Caller::default()); // asked by who watches over a service, by any name
    }
    let said = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or("?"));
    let asked = Asked {
        host: said("host")
            .or_else(|| request.uri().authority().map(|authority| authority.as_str())),
        origin: said("origin"),
        site: said("sec-fetch-site"),
        mode: said("sec-fetch-mode"),
    };
    watchman.gate.check(asked)?;
    // A browser asks with OPTIONS before it shows anything.
    if needs_no_key(path) || request.method() == Method::OPTIONS {
        return Ok(Caller::default());
    }
    watchman.caller(request)
}

/// What pages of the site that is allowed may ask.
fn preflight() -> HttpResponse {
    HttpResponse::NoContent()
        .insert_header((header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"))
        .insert_header((
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "Authorization, Content-Type, Idempotency-Key, Last-Event-ID",
        ))
        .insert_header((header::ACCESS_CONTROL_MAX_AGE, ALLOWED_SECONDS))
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_the_head_or_in_the_query() {
        let head = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            headers
        };
        let none = HeaderMap::new();
        assert_eq!(shown_key(&head("Bearer abc"), ""), Some("abc".to_owned()));
        assert_eq!(shown_key(&head("bearer  abc"), "key=x"), Some("abc".to_owned()));
        assert_eq!(shown_key(&head("Basic abc"), "key=x"), None);
        assert_eq!(shown_key(&head("Basic YW5uOmFiYw=="), ""), Some("abc".to_owned()));
        assert_eq!(shown_key(&none, "format=png&key=a%62c"), Some("abc".to_owned()));
        assert_eq!(shown_key(&none, "format=png"), None);
    }

    #[test]
    fn what_a_key_is_needed_for() {
        for open in ["/", "/ui/app.js", "/openapi.json"] {
            assert!(needs_no_key(open), "{open}");
        }
        for closed in ["/v1/jobs", "/v1/jobs/1/image", "/metrics", "/sdapi/v1/txt2img"] {
            assert!(!needs_no_key(closed), "{closed}");
        }
    }
}
