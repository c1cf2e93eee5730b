//! Is it alive, is it ready, what does it count.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;

use super::access::routes;
use super::error::ApiError;
use super::{Context, answers};

answers! {
    /// The server is there.
    Health {
        /// The program's version.
        version: &'static str
    }
}

/// Says that the server is alive.
#[utoipa::path(get, path = "/api/health", tag = "system", responses((status = 200, description = "Alive", body = Health)))]
async fn health() -> impl IntoResponse {
    Health::new(env!("CARGO_PKG_VERSION"))
}

/// Says whether the database can be read and written, and its schema is up to date.
#[utoipa::path(get, path = "/api/ready", tag = "system", responses((status = 200, description = "Ready", body = Health)))]
async fn ready(State(context): State<Context>) -> Result<impl IntoResponse, ApiError> {
    if *context.draining.borrow() {
        return Err(ApiError::unavailable("the server is stopping"));
    }
    context.app.check().await?;
    Ok(Health::new(env!("CARGO_PKG_VERSION")))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(ready))
}

pub(super) fn metrics_route() -> Router<Context> {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(context): State<Context>) -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (
        [(header::CONTENT_TYPE, content_type)],
        context.telemetry.render(context.app.pushes().open(), context.app.series_counts()),
    )
}
