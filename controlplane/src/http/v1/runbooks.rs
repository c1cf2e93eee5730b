//! Runbooks.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use super::rules::PageQuery;
use crate::domain::{NewRunbook, Runbook, RunbookExecution, RunbookPatch, Step, TriggerConditions};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, Done, answers};

answers! {
    RunbookList { runbooks: Vec<Runbook>, total: u64 }
    RunbookAnswer { runbook: Runbook }
    RunbookExecutionList { executions: Vec<RunbookExecution>, total: u64 }
    RunbookExecutionAnswer { execution: RunbookExecution }
}

const fn yes() -> bool {
    true
}

/// A runbook to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RunbookBody {
    /// 1 to 128 characters; unique in the workspace.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// At most 1,024 characters.
    #[serde(default)]
    #[schema(max_length = 1_024)]
    description: String,
    trigger_conditions: TriggerConditions,
    /// 1 to 50, whose waits take at most a day together.
    #[schema(min_items = 1, max_items = 50)]
    steps: Vec<Step>,
    #[serde(default = "yes")]
    active: bool,
}

/// What to change of a runbook; absent fields stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RunbookChange {
    #[schema(min_length = 1, max_length = 128)]
    name: Option<String>,
    #[schema(max_length = 1_024)]
    description: Option<String>,
    trigger_conditions: Option<TriggerConditions>,
    /// Replaces all of them.
    #[schema(min_items = 1, max_items = 50)]
    steps: Option<Vec<Step>>,
    active: Option<bool>,
}

/// What to run a runbook for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RunBody {
    /// The node whose newest active incident it is carried out for; without one, the attack is made up.
    node: Option<Uuid>,
}

/// Lists runbooks, with how often each was started. Role: readonly.
#[utoipa::path(get, path = "/runbooks", tag = "runbooks", params(PageQuery),
    responses((status = 200, description = "Runbooks, newest first", body = RunbookList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.runbooks(&operator.actor, query.page()?).await?;
    Ok(RunbookList::new(listed.entries, listed.total))
}

/// Creates a runbook. From then on it starts once for every attack that meets its conditions. Role: admin.
#[utoipa::path(post, path = "/runbooks", tag = "runbooks", request_body = RunbookBody,
    responses((status = 200, description = "The runbook", body = RunbookAnswer)))]
async fn create(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<RunbookBody>,
) -> Result<impl IntoResponse, ApiError> {
    let RunbookBody { name, description, trigger_conditions, steps, active } = body;
    let new = NewRunbook { name, description, trigger_conditions, steps, active };
    Ok(RunbookAnswer::new(context.app.create_runbook(&operator.actor, new).await?))
}

/// Shows a runbook. Role: readonly.
#[utoipa::path(get, path = "/runbooks/{id}", tag = "runbooks",
    params(("id" = i64, Path, description = "The runbook")),
    responses((status = 200, description = "The runbook", body = RunbookAnswer)))]
async fn get(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(RunbookAnswer::new(context.app.runbook(&operator.actor, id).await?))
}

/// Changes a runbook; executions that were made before keep their steps. Role: admin.
#[utoipa::path(patch, path = "/runbooks/{id}", tag = "runbooks",
    params(("id" = i64, Path, description = "The runbook")), request_body = RunbookChange,
    responses((status = 200, description = "The runbook", body = RunbookAnswer)))]
async fn patch(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    JsonBody(body): JsonBody<RunbookChange>,
) -> Result<impl IntoResponse, ApiError> {
    let RunbookChange { name, description, trigger_conditions, steps, active } = body;
    let patch = RunbookPatch { name, description, trigger_conditions, steps, active };
    Ok(RunbookAnswer::new(context.app.patch_runbook(&operator.actor, id, patch).await?))
}

/// Deletes a runbook and hides its history; executions under way are completed. Role: admin.
#[utoipa::path(delete, path = "/runbooks/{id}", tag = "runbooks",
    params(("id" = i64, Path, description = "The runbook")),
    responses((status = 200, description = "Deleted", body = Done)))]
async fn delete(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.delete_runbook(&operator.actor, id).await?;
    Ok(Done::new(Some(id)))
}

/// Makes an active runbook inactive, or the reverse. Inactive ones do not start for incidents. Role: admin.
#[utoipa::path(post, path = "/runbooks/{id}/toggle", tag = "runbooks",
    params(("id" = i64, Path, description = "The runbook")),
    responses((status = 200, description = "The runbook", body = RunbookAnswer)))]
async fn toggle(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(RunbookAnswer::new(context.app.toggle_runbook(&operator.actor, id).await?))
}

/// Runs a runbook now, active or not. With a node that has an active incident, everything is carried out for the newest
/// of them. Else the attack is made up: messages and calls are sent, marked `test`; what would change nodes, incidents or
/// upstream is `simulated`. The answer comes before the first step. Role: admin.
#[utoipa::path(post, path = "/runbooks/{id}/run", tag = "runbooks",
    params(("id" = i64, Path, description = "The runbook")), request_body = RunBody,
    responses((status = 200, description = "The execution, not begun yet", body = RunbookExecutionAnswer)))]
async fn run(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    JsonBody(body): JsonBody<RunBody>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(RunbookExecutionAnswer::new(context.app.run_runbook(&operator.actor, id, body.node).await?))
}

/// Lists executions of a runbook, with what came of each step. They are kept for 30 days. Role: readonly.
#[utoipa::path(get, path = "/runbooks/{id}/executions", tag = "runbooks",
    params(("id" = i64, Path, description = "The runbook"), PageQuery),
    responses((status = 200, description = "Executions, newest first", body = RunbookExecutionList)))]
async fn executions(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.runbook_executions(&operator.actor, id, query.page()?).await?;
    Ok(RunbookExecutionList::new(listed.entries, listed.total))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(get, patch, delete))
        .routes(routes!(toggle))
        .routes(routes!(run))
        .routes(routes!(executions))
}
