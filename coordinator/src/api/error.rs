//! Refusals, in the shape that `OpenAI`'s clients read.

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER, WWW_AUTHENTICATE};
use actix_web::{HttpResponse, ResponseError};
use protocol::job::Field;
use protocol::{Fault, FaultKind};
use serde::Serialize;
use std::fmt;
use utoipa::ToSchema;

/// When a caller that met a full queue may try again, in seconds: about an image's time on a small cluster.
pub(crate) const RETRY_SECONDS: u64 = 5;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) kind: ErrorType,
    /// For programs: a fault's kind, or what is wrong with the request.
    pub(crate) code: String,
    /// The field or parameter that is wrong.
    pub(crate) param: Option<String>,
    /// The same, if it is of a job's request.
    field: Option<Field>,
    pub(crate) message: String,
    /// Seconds after which it may be tried again.
    retry_after: Option<u64>,
    /// The methods that there are, if this one is not.
    allow: Option<&'static str>,
}

/// What kind of thing went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[expect(clippy::enum_variant_names, reason = "the names that clients match on")]
pub(crate) enum ErrorType {
    #[serde(rename = "invalid_request_error")]
    InvalidRequestError,
    #[serde(rename = "authentication_error")]
    AuthenticationError,
    #[serde(rename = "permission_error")]
    PermissionError,
    #[serde(rename = "not_found_error")]
    NotFoundError,
    #[serde(rename = "conflict_error")]
    ConflictError,
    #[serde(rename = "rate_limit_error")]
    RateLimitError,
    #[serde(rename = "unavailable_error")]
    UnavailableError,
    #[serde(rename = "server_error")]
    ServerError,
}

/// The body of every answer that is an error.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorDetail,
}

#[derive(Debug, Serialize, ToSchema)]
struct ErrorDetail {
    /// What a person needs to know: the thing, the value, and what to do.
    message: String,
    r#type: ErrorType,
    /// The field or parameter that is wrong.
    param: Option<String>,
    /// What programs tell errors apart by.
    code: String,
}

impl Refusal {
    pub(crate) fn new(
        status: StatusCode,
        kind: ErrorType,
        code: &str,
        message: impl Into<String>,
    ) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        let (param, field, retry_after, allow) = (None, None, None, None);
        Self { status, kind, code, param, field, message, retry_after, allow }
    }

    /// A request that no change of circumstances makes right.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            ErrorType::InvalidRequestError,
            "invalid_request",
            message,
        )
    }

    /// A value that is beyond a limit.
    pub(crate) fn limit(param: &str, message: impl Into<String>) -> Self {
        Self { code: "limit_exceeded".to_owned(), ..Self::invalid(message) }.about(param)
    }

    /// The same, of a job's request.
    pub(crate) fn beyond(field: Field, message: impl Into<String>) -> Self {
        Self::limit(field.path(), message).field(field)
    }

    pub(crate) fn too_large(bytes: Option<u64>, most: impl fmt::Display) -> Self {
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let has = bytes.map_or_else(|| "more".to_owned(), |bytes| format!("{bytes} bytes"));
        let message = format!("the body has {has}; the most that are read are {most} bytes");
        Self::new(status, ErrorType::InvalidRequestError, "body_too_large", message)
    }

    pub(crate) fn not_found(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorType::NotFoundError, code, message)
    }

    pub(crate) fn conflict(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, ErrorType::ConflictError, code, message)
    }

    pub(crate) fn forbidden(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorType::PermissionError, code, message)
    }

    pub(crate) fn unauthorised(message: &str) -> Self {
        let kind = ErrorType::AuthenticationError;
        Self::new(StatusCode::UNAUTHORIZED, kind, "invalid_api_key", message)
    }

    pub(crate) fn limited(seconds: u64, code: &str, message: impl Into<String>) -> Self {
        let status = StatusCode::TOO_MANY_REQUESTS;
        let refusal = Self::new(status, ErrorType::RateLimitError, code, message);
        Self { retry_after: Some(seconds), ..refusal }
    }

    pub(crate) fn unavailable(code: &str, message: impl Into<String>) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let refusal = Self::new(status, ErrorType::UnavailableError, code, message);
        Self { retry_after: Some(RETRY_SECONDS), ..refusal }
    }

    /// Something that is this server's fault.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, ErrorType::ServerError, "internal", message)
    }

    /// The coordinator has hung up, which it does when it goes away, or when too much waits to be read.
    pub(crate) fn hung_up() -> Self {
        Self::unavailable("shutting_down", "the coordinator is going away")
    }

    pub(crate) fn method(allow: &'static str) -> Self {
        let message = format!("this is not answered here; what is: {allow}");
        let status = StatusCode::METHOD_NOT_ALLOWED;
        let refusal =
            Self::new(status, ErrorType::InvalidRequestError, "method_not_allowed", message);
        Self { allow: Some(allow), ..refusal }
    }

    /// The same, about this field or parameter.
    pub(crate) fn about(self, param: &str) -> Self {
        Self { param: Some(param.to_owned()), ..self }
    }

    /// The same, about this of a job's request.
    pub(crate) fn field(self, field: Field) -> Self {
        self.at(field, field.path())
    }

    /// The same, about this part of it.
    pub(crate) fn at(self, field: Field, path: &str) -> Self {
        Self { field: Some(field), ..self.about(path) }
    }

    /// The same, for callers who have other names for what is in a job's request.
    pub(crate) fn in_words(self, word: impl Fn(Field) -> &'static str) -> Self {
        let param = self.field.map(|field| word(field).to_owned()).or(self.param);
        Self { param, ..self }
    }

    /// The body of the answer.
    pub(crate) fn body(&self) -> ErrorBody {
        let (message, param) = (self.message.clone(), self.param.clone());
        ErrorBody {
            error: ErrorDetail { message, r#type: self.kind, param, code: self.code.clone() },
        }
    }
}

/// The name that programs know a fault's kind by.
pub(crate) fn code(kind: FaultKind) -> String {
    let named = serde_json::to_value(kind).ok();
    named.and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        let (code, message) = (code(fault.kind), fault.to_string());
        let refusal = match fault.kind {
            FaultKind::UnknownJob => Self::not_found(&code, message),
            FaultKind::Conflict => Self::conflict(&code, message),
            FaultKind::QueueFull => Self::limited(RETRY_SECONDS, &code, message),
            FaultKind::InvalidRequest => Self { code, ..Self::invalid(message) },
            FaultKind::Unauthorised => Self::forbidden(&code, message),
            FaultKind::ShuttingDown | FaultKind::NoWorkers | FaultKind::Storage => {
                Self::unavailable(&code, message)
            }
            FaultKind::VersionMismatch
            | FaultKind::ModelMismatch
            | FaultKind::WorkerLost
            | FaultKind::PeerLost
            | FaultKind::PlanMismatch
            | FaultKind::Replanned
            | FaultKind::Compute
            | FaultKind::Cancelled
            | FaultKind::Protocol => Self { code, ..Self::internal(message) },
        };
        match fault.field {
            Some(field) => refusal.field(field),
            None => refusal,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl ResponseError for Refusal {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut answer = HttpResponse::build(self.status);
        if let Some(seconds) = self.retry_after {
            answer.insert_header((RETRY_AFTER, seconds));
        }
        if let Some(methods) = self.allow {
            answer.insert_header((ALLOW, methods));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            answer.insert_header((WWW_AUTHENTICATE, "Bearer"));
        }
        answer.json(self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_shape_that_clients_read() {
        let refusal = Refusal::limit("steps", "too many");
        let body = serde_json::to_value(refusal.body()).unwrap();
        let shape = serde_json::json!({"error": {
            "message": "too many", "type": "invalid_request_error", "param": "steps", "code": "limit_exceeded",
        }});
        assert_eq!(body, shape);
    }

    #[test]
    fn a_fault_about_a_field_names_it_in_the_callers_words() {
        let fault = Fault::new(FaultKind::InvalidRequest, "so").about(Field::Strength);
        let refusal = Refusal::from(fault);
        assert_eq!(refusal.param.as_deref(), Some("init.strength"));
        let refusal = refusal.in_words(|_| "denoising_strength");
        assert_eq!(refusal.param.as_deref(), Some("denoising_strength"));
        let other = Refusal::invalid("so").about("n").in_words(|_| "x");
        assert_eq!(other.param.as_deref(), Some("n"));
    }

    #[test]
    fn faults_have_the_status_that_says_what_to_do() {
        let status = |kind| Refusal::from(Fault::new(kind, "so")).error_response();
        assert_eq!(status(FaultKind::UnknownJob).status(), 404);
        assert_eq!(status(FaultKind::Conflict).status(), 409);
        assert_eq!(status(FaultKind::InvalidRequest).status(), 400);
        assert_eq!(status(FaultKind::Compute).status(), 500);
        for (kind, number) in [(FaultKind::QueueFull, 429), (FaultKind::Storage, 503)] {
            let answer = status(kind);
            assert_eq!(answer.status(), number);
            assert!(answer.headers().contains_key(RETRY_AFTER));
        }
        assert_eq!(Refusal::from(Fault::new(FaultKind::QueueFull, "so")).code, "queue_full");
    }
}
