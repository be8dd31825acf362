//! The web page's files.

use super::error::Refusal;
use crate::ui::{self, CONTENT_SECURITY_POLICY};
use actix_web::http::header::{self, CACHE_CONTROL, ETAG, EntityTag, Header as _, IfNoneMatch};
use actix_web::{HttpRequest, HttpResponse};

/// The page, or what it is made of. A browser asks each time whether what it has is still right, so that a page is never
/// older than its coordinator.
pub(super) async fn show(request: HttpRequest) -> Result<HttpResponse, Refusal> {
    let path = request.path();
    let asset = ui::asset(path)
        .ok_or_else(|| Refusal::not_found("not_found", format!("the page has no file {path}")))?;
    let tag = EntityTag::new_strong(asset.tag());
    let is_known = match IfNoneMatch::parse(&request) {
        Ok(IfNoneMatch::Items(known)) => known.iter().any(|known| known.weak_eq(&tag)),
        _ => false,
    };
    let mut answer = if is_known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    answer.insert_header((ETAG, tag)).insert_header((CACHE_CONTROL, "no-cache"));
    answer.insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY));
    Ok(match is_known {
        true => answer.finish(),
        false => answer.content_type(asset.media_type).body(asset.bytes),
    })
}
