//! What describes this interface, made from the code.

use super::automatic::{self, lists};
use super::error::{ErrorBody, Refusal};
use super::{Api, cluster, events, files, health, image, jobs, metrics, models, openai, preview};
use actix_web::{HttpResponse, web};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi};

/// What every request may be refused with.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "its variants are read by the macro alone")]
pub(super) enum Refusals {
    /// It cannot be understood, or not be done as asked.
    #[response(status = 400)]
    Invalid(ErrorBody),
    /// It shows no key, or a wrong one.
    #[response(status = 401)]
    Unauthorised(ErrorBody),
    /// It comes from a page of another site, or its key is not that of the job.
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// There is no such thing.
    #[response(status = 404)]
    Unknown(ErrorBody),
    /// The coordinator goes away, or its store takes nothing.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("key", scheme);
    }
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tessera",
        description = "Renders one diffusion image on many machines at once.",
        license(name = "MIT", identifier = "MIT"),
    ),
    paths(
        jobs::submit, jobs::list, jobs::show, jobs::cancel, image::show, preview::show, events::follow,
        files::send, files::list, files::show, files::picture, cluster::show, models::list, openai::generate,
        automatic::txt2img, automatic::img2img, automatic::progress, automatic::interrupt, lists::samplers, lists::schedulers,
        lists::models, lists::loras, lists::options, lists::set_options, lists::scripts, health::alive, health::ready, metrics::show, show,
    ),
    modifiers(&Keys),
    security((), ("key" = [])),
    tags(
        (name = "jobs", description = "Images that are rendered"),
        (name = "files", description = "What images are rendered with, beside the model"),
        (name = "cluster", description = "Who renders them"),
        (name = "openai", description = "As OpenAI's clients ask"),
        (name = "automatic1111", description = "As clients of AUTOMATIC1111's web UI ask"),
        (name = "service", description = "For what watches over it"),
    ),
)]
struct Document;

/// The description as JSON.
pub(super) fn document() -> String {
    serde_json::to_string(&Document::openapi()).unwrap_or_default()
}

/// What this is.
#[utoipa::path(
    get, operation_id = "fetch_openapi", path = "/openapi.json", tag = "service", security(()),
    responses((status = 200, description = "This document", content_type = "application/json", body = Object))
)]
pub(super) async fn show(api: web::Data<Api>) -> Result<HttpResponse, Refusal> {
    Ok(HttpResponse::Ok().content_type("application/json").body(api.document.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    #[test]
    fn the_document_is_openapi_3_1_and_has_every_path() {
        let document: Value = serde_json::from_str(&super::document()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        let paths = document["paths"].as_object().unwrap();
        assert_eq!(paths.len(), 25, "{:?}", paths.keys());
        let request = &document["components"]["schemas"]["Request"];
        assert_eq!(request["additionalProperties"], false);
        assert_eq!(request["required"], serde_json::json!(["prompt"]));
        let schedulers = request["properties"]["scheduler"]["enum"].as_array().unwrap();
        assert!(schedulers.contains(&"euler".into()) && schedulers.contains(&Value::Null));
    }

    #[test]
    fn every_operation_has_a_name_of_its_own() {
        let text = super::document();
        let named =
            text.split("\"operationId\":\"").skip(1).map(|rest| rest.split('"').next().unwrap());
        let mut names: Vec<&str> = named.collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!((names.len(), all), (29, 29), "{names:?}");
    }

    /// What is referred to is there.
    #[test]
    fn no_reference_leads_nowhere() {
        let text = super::document();
        let document: Value = serde_json::from_str(&text).unwrap();
        let references: Vec<&str> = text
            .split("\"$ref\":\"#")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
            .collect();
        assert!(!references.is_empty());
        for reference in references {
            assert!(document.pointer(reference).is_some(), "{reference}");
        }
    }
}
