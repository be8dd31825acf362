//! Reads the bodies of requests.

use super::error::{ErrorType, Refusal};
use actix_web::http::StatusCode;
use actix_web::http::header::CONTENT_LENGTH;
use actix_web::{HttpMessage as _, HttpRequest, web};
use serde::de::DeserializeOwned;

/// How long a body is, as its head says.
pub(crate) fn said_length(request: &HttpRequest) -> Option<u64> {
    request.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Reads a body that must be JSON, in at most `most` bytes. Browsers send JSON to another site only after asking it, so this
/// is also what keeps forms of foreign pages out.
pub(crate) async fn read_json<T: DeserializeOwned>(
    request: &HttpRequest,
    payload: web::Payload,
    most: usize,
) -> Result<T, Refusal> {
    if request.content_type() != "application/json" {
        let kind = match request.content_type() {
            "" => "nothing".to_owned(),
            kind => format!("`{kind}`"),
        };
        let message = format!("the body is {kind}: send Content-Type: application/json");
        let (status, code) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type");
        return Err(Refusal::new(status, ErrorType::InvalidRequestError, code, message));
    }
    let too_large = said_length(request)
        .filter(|bytes| usize::try_from(*bytes).map_or(true, |bytes| bytes > most));
    if too_large.is_some() {
        return Err(Refusal::too_large(too_large, most));
    }
    let bytes = payload.to_bytes_limited(most).await.map_err(|_| Refusal::too_large(None, most))?;
    let bytes = bytes.map_err(|error| Refusal::invalid(format!("the body breaks off: {error}")))?;
    parse(&bytes)
}

/// Reads JSON; what is wrong is named with its place.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    // Lists would be read as the fields' values in their order.
    if bytes.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(Refusal::invalid("the body is no JSON object"));
    }
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let path = error.path().to_string();
        let refusal = Refusal::invalid(error.inner().to_string());
        if path == "." { refusal } else { refusal.about(&path) }
    })?;
    reader.end().map_err(|error| Refusal::invalid(error.to_string()))?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::super::request::RequestBody;
    use super::*;

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let wrong = [
            (r#"{"prompt": "", "steps": "x"}"#, Some("steps"), "invalid type"),
            (
                r#"{"prompt": "", "fabrics": ["tcp", "x"]}"#,
                Some("fabrics[1]"),
                "unknown variant `x`",
            ),
            (r#"{"prompt": "", "promt": 1}"#, Some("promt"), "unknown field `promt`"),
            (r#"{"prompt": "", "steps": -1}"#, Some("steps"), "-1"),
            (r#"{"prompt": "", "width": 4294967296}"#, Some("width"), "4294967296"),
            (r#"{"prompt": "", "prompt": ""}"#, None, "duplicate field"),
            (r#" ["a cat"]"#, None, "no JSON object"),
            (r"{}", None, "missing field `prompt`"),
            (r#"{"prompt": ""} x"#, None, "trailing characters"),
            ("", None, "EOF"),
        ];
        for (json, param, words) in wrong {
            let refusal = parse::<RequestBody>(json.as_bytes()).unwrap_err();
            assert_eq!(refusal.status, 400);
            assert_eq!(refusal.param.as_deref(), param, "{json}");
            assert!(refusal.message.contains(words), "{json}: {refusal}");
        }
        assert!(parse::<RequestBody>(b"{\"prompt\": \"\xff\"}").is_err());
        assert!(parse::<RequestBody>(br#"{"prompt": ""}"#).is_ok());
    }
}
