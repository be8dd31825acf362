//! For what watches over a service.

use super::Api;
use actix_web::{HttpResponse, web};

/// Whether the process answers.
#[utoipa::path(
    get, operation_id = "check_health", path = "/healthz", tag = "service", security(()),
    responses((status = 200, description = "It does", content_type = "text/plain", body = String))
)]
pub(super) async fn alive() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("ok\n")
}

/// Whether a job that is submitted now would be rendered.
#[utoipa::path(
    get, operation_id = "check_readiness", path = "/readyz", tag = "service", security(()),
    responses(
        (status = 200, description = "It would", content_type = "text/plain", body = String),
        (status = 503, description = "No worker is there, or the coordinator goes away", content_type = "text/plain", body = String),
    )
)]
pub(super) async fn ready(api: web::Data<Api>) -> HttpResponse {
    let unready = |why: &'static str| {
        HttpResponse::ServiceUnavailable().content_type("text/plain; charset=utf-8").body(why)
    };
    if *api.ends.borrow() {
        return unready("the coordinator is going away\n");
    }
    match api.gauge().await {
        Ok((cluster, _)) if cluster.workers.iter().any(|worker| !worker.draining) => alive().await,
        Ok(_) => unready("no worker is there\n"),
        Err(_) => unready("the coordinator is going away\n"),
    }
}
