//! Firewall rules.

use axum::extract::State;
use axum::response::IntoResponse;
use ftagent_common::api::{Action, Preview, PreviewContext, Trigger, default_cooldown};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::domain::{Execution, NewRule, Page, Rule, RulePatch, RuleScope};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, Done, answers};

answers! {
    RuleList { rules: Vec<Rule>, total: u64 }
    RuleAnswer { rule: Rule }
    ExecutionList { executions: Vec<Execution>, total: u64 }
    PreviewAnswer {
        preview: Preview,
        /// The incident that the preview was made for, or the example.
        context: PreviewContext,
        /// Whether the trigger would fire for the incident; only with a trigger and an incident.
        fires: Option<bool>
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// Entries per page, 1 to 500; 100 by default.
    #[param(minimum = 1, maximum = 500)]
    pub(super) limit: Option<i64>,
    #[param(minimum = 0)]
    pub(super) offset: Option<i64>,
}

impl PageQuery {
    pub(super) fn page(&self) -> Result<Page, ApiError> {
        Ok(Page::new(self.limit, self.offset, 100, 500)?)
    }
}

const fn yes() -> bool {
    true
}

/// A rule to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RuleBody {
    /// 1 to 128 characters; unique in the workspace.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    trigger: Trigger,
    action: Action,
    /// All nodes by default.
    #[serde(default)]
    scope: RuleScope,
    /// Minutes between two firings for the same node and target, 1 to 1,440; 5 by default.
    #[serde(default = "default_cooldown")]
    #[schema(minimum = 1, maximum = 1_440)]
    cooldown_minutes: u32,
    #[serde(default = "yes")]
    enabled: bool,
}

/// What to change of a rule; absent fields stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct RuleChange {
    #[schema(min_length = 1, max_length = 128)]
    name: Option<String>,
    trigger: Option<Trigger>,
    action: Option<Action>,
    scope: Option<RuleScope>,
    #[schema(minimum = 1, maximum = 1_440)]
    cooldown_minutes: Option<u32>,
    enabled: Option<bool>,
}

/// What to show; for a real incident, for an example given, or for a built-in one.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PreviewBody {
    action: Action,
    trigger: Option<Trigger>,
    /// An incident's id, uuid or short id.
    incident: Option<String>,
    example: Option<PreviewContext>,
    /// The node whose tools it is shown for, where they differ; with `incident` that of the incident, if absent.
    node: Option<Uuid>,
}

/// Lists firewall rules. Role: readonly.
#[utoipa::path(get, path = "/firewall-rules", tag = "firewall-rules", params(PageQuery),
    responses((status = 200, description = "Rules, newest first", body = RuleList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.rules(&operator.actor, query.page()?).await?;
    Ok(RuleList::new(listed.entries, listed.total))
}

/// Creates a firewall rule; nodes have it at once. Role: admin.
#[utoipa::path(post, path = "/firewall-rules", tag = "firewall-rules", request_body = RuleBody,
    responses((status = 200, description = "The rule with its warnings", body = RuleAnswer)))]
async fn create(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<RuleBody>,
) -> Result<impl IntoResponse, ApiError> {
    let RuleBody { name, trigger, action, scope, cooldown_minutes, enabled } = body;
    let new = NewRule { name, trigger, action, scope, cooldown_minutes, enabled };
    Ok(RuleAnswer::new(context.app.create_rule(&operator.actor, new).await?))
}

/// Shows a firewall rule. Role: readonly.
#[utoipa::path(get, path = "/firewall-rules/{id}", tag = "firewall-rules", params(("id" = i64, Path, description = "The rule")),
    responses((status = 200, description = "The rule", body = RuleAnswer)))]
async fn show(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(RuleAnswer::new(context.app.rule(&operator.actor, id).await?))
}

/// Changes a firewall rule; nodes have the change at once. Role: admin.
#[utoipa::path(patch, path = "/firewall-rules/{id}", tag = "firewall-rules", params(("id" = i64, Path, description = "The rule")),
    request_body = RuleChange, responses((status = 200, description = "The rule", body = RuleAnswer)))]
async fn patch(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    JsonBody(body): JsonBody<RuleChange>,
) -> Result<impl IntoResponse, ApiError> {
    let RuleChange { name, trigger, action, scope, cooldown_minutes, enabled } = body;
    let patch = RulePatch { name, trigger, action, scope, cooldown_minutes, enabled };
    Ok(RuleAnswer::new(context.app.patch_rule(&operator.actor, id, patch).await?))
}

/// Deletes a firewall rule; nodes undo what it did. Role: admin.
#[utoipa::path(delete, path = "/firewall-rules/{id}", tag = "firewall-rules", params(("id" = i64, Path, description = "The rule")),
    responses((status = 200, description = "Deleted", body = Done)))]
async fn delete(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.delete_rule(&operator.actor, id).await?;
    Ok(Done::new(Some(id)))
}

/// Enables a disabled firewall rule, or disables an enabled one. Role: admin.
#[utoipa::path(post, path = "/firewall-rules/{id}/toggle", tag = "firewall-rules", params(("id" = i64, Path, description = "The rule")),
    responses((status = 200, description = "The rule", body = RuleAnswer)))]
async fn toggle(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(RuleAnswer::new(context.app.toggle_rule(&operator.actor, id).await?))
}

/// Shows the exact commands of doing and undoing, and the risks; stores nothing. Role: readonly.
#[utoipa::path(post, path = "/firewall-rules/preview", tag = "firewall-rules", request_body = PreviewBody,
    responses((status = 200, description = "What the action would do", body = PreviewAnswer)))]
async fn preview(
    operator: Operator<Read>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<PreviewBody>,
) -> Result<impl IntoResponse, ApiError> {
    let PreviewBody { action, trigger, incident, example, node } = body;
    let shown = context.app.preview_rule(&operator.actor, &action, trigger, incident.as_deref(), example, node).await?;
    Ok(PreviewAnswer::new(shown.preview, shown.context, shown.fires))
}

/// Lists what a firewall rule did, on which node and with what result. Role: readonly.
#[utoipa::path(get, path = "/firewall-rules/{id}/executions", tag = "firewall-rules",
    params(("id" = i64, Path, description = "The rule"), PageQuery),
    responses((status = 200, description = "Executions, newest first", body = ExecutionList)))]
async fn executions(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.executions(&operator.actor, id, query.page()?).await?;
    Ok(ExecutionList::new(listed.entries, listed.total))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(preview))
        .routes(routes!(show, patch, delete))
        .routes(routes!(toggle))
        .routes(routes!(executions))
}
