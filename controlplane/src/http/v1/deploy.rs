//! A machine becomes a node.

use axum::Json;
use axum::extract::State;
use ftagent_common::api::{DeployRequest, DeployResponse};
use utoipa_axum::router::OpenApiRouter;

use crate::domain::Deployment;
use crate::http::Context;
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator};
use crate::http::error::ApiError;
use crate::http::extract::JsonBody;

/// Makes a machine a node and shows its key, this once. Role: admin.
#[utoipa::path(post, path = "/api/deploy", tag = "deploy", request_body = DeployRequest,
    responses((status = 200, description = "The new node", body = DeployResponse)))]
async fn deploy(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(request): JsonBody<DeployRequest>,
) -> Result<Json<DeployResponse>, ApiError> {
    let deployment = Deployment::check(request)?;
    let (node_uuid, key) = context.app.deploy(&operator.actor, &deployment).await?;
    Ok(Json(DeployResponse { ok: true, node_uuid, api_key: key.reveal().to_owned() }))
}

/// Makes a machine a node; the same as `/api/deploy`. Role: admin.
#[utoipa::path(post, path = "/deploy", tag = "deploy", request_body = DeployRequest,
    responses((status = 200, description = "The new node", body = DeployResponse)))]
async fn deploy_v1(
    operator: Operator<Manage>,
    state: State<Context>,
    body: JsonBody<DeployRequest>,
) -> Result<Json<DeployResponse>, ApiError> {
    deploy(operator, state, body).await
}

pub(in crate::http) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(deploy))
}

pub(super) fn versioned_routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(deploy_v1))
}
