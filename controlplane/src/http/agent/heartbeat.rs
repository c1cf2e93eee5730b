//! A node is alive, and what it measured.

use axum::extract::State;
use axum::response::IntoResponse;
use ftagent_common::api::{Heartbeat, MetricsBatch};
use utoipa_axum::router::OpenApiRouter;

use crate::domain::Timestamp;
use crate::http::access::routes;
use crate::http::auth::{Agent, HeartbeatPace, MetricsPace};
use crate::http::error::ApiError;
use crate::http::extract::JsonBody;
use crate::http::{Context, answers};

answers! {
    HeartbeatAnswer {
        /// The configuration version that the node should have.
        config_version: u64,
        /// The server's clock.
        now: Timestamp
    }
    MetricsAnswer {
        /// Samples kept; those of a clock that is off by more than a day are not.
        accepted: usize
    }
}

/// Says that the node is alive and how it is, every 30 s; at most 5 a minute.
#[utoipa::path(post, path = "/agent/heartbeat", tag = "agent", request_body = Heartbeat,
    responses((status = 200, description = "Heard", body = HeartbeatAnswer)))]
async fn heartbeat(
    agent: Agent<HeartbeatPace>,
    State(context): State<Context>,
    JsonBody(heartbeat): JsonBody<Heartbeat>,
) -> Result<impl IntoResponse, ApiError> {
    let version = context.app.heartbeat(agent.node, &heartbeat).await?;
    Ok(HeartbeatAnswer::new(version, context.app.now()))
}

/// Reports samples of one second each, every 5 s; at most 120 a minute.
#[utoipa::path(post, path = "/agent/metrics", tag = "agent", request_body = MetricsBatch,
    responses((status = 200, description = "Kept", body = MetricsAnswer)))]
async fn metrics(
    agent: Agent<MetricsPace>,
    State(context): State<Context>,
    JsonBody(batch): JsonBody<MetricsBatch>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(MetricsAnswer::new(context.app.record_metrics(&agent.actor, agent.node, batch).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(heartbeat)).routes(routes!(metrics))
}
