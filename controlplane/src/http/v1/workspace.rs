//! The workspace.

use axum::extract::State;
use axum::response::IntoResponse;
use ftagent_common::api::DetectionOverrides;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use crate::domain::{Workspace, WorkspacePatch};
use crate::http::access::routes;
use crate::http::auth::{Operator, Own, Read};
use crate::http::error::ApiError;
use crate::http::extract::JsonBody;
use crate::http::{Context, answers};

answers! {
    WorkspaceAnswer { workspace: Workspace }
}

/// What to change of the workspace; absent fields stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WorkspaceChange {
    /// 1 to 128 characters.
    #[schema(min_length = 1, max_length = 128)]
    name: Option<String>,
    /// Replaces the detection overrides as a whole; nodes have them at once.
    detection: Option<DetectionOverrides>,
}

/// Shows the workspace. Role: readonly.
#[utoipa::path(get, path = "/workspace", tag = "workspace",
    responses((status = 200, description = "The workspace", body = WorkspaceAnswer)))]
async fn show(operator: Operator<Read>, State(context): State<Context>) -> Result<impl IntoResponse, ApiError> {
    Ok(WorkspaceAnswer::new(context.app.workspace(&operator.actor).await?))
}

/// Changes the workspace's name or detection overrides. Role: owner.
#[utoipa::path(patch, path = "/workspace", tag = "workspace", request_body = WorkspaceChange,
    responses((status = 200, description = "The workspace", body = WorkspaceAnswer)))]
async fn patch(
    operator: Operator<Own>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<WorkspaceChange>,
) -> Result<impl IntoResponse, ApiError> {
    let patch = WorkspacePatch { name: body.name, detection: body.detection };
    Ok(WorkspaceAnswer::new(context.app.patch_workspace(&operator.actor, patch).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(show, patch))
}
