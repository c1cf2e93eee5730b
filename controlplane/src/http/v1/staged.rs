//! Staged rules.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::domain::{Decision, Page, StagedRule, StagedStatus};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{Path, Query};
use crate::http::{Context, answers};

answers! {
    StagedList { staged: Vec<StagedRule>, total: u64 }
    StagedAnswer { staged: StagedRule }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct StagedQuery {
    /// Rules of this status alone.
    status: Option<StagedStatus>,
    /// Rules about this incident alone.
    incident: Option<Uuid>,
    /// Rules per page, 1 to 500; 100 by default.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<i64>,
    #[param(minimum = 0)]
    offset: Option<i64>,
}

/// Lists what iptables integrations proposed about incidents, with the commands. Role: readonly.
#[utoipa::path(get, path = "/firewall-rules/staged", tag = "firewall-rules", params(StagedQuery),
    responses((status = 200, description = "Staged rules, newest first", body = StagedList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<StagedQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let page = Page::new(query.limit, query.offset, 100, 500)?;
    let listed = context.app.staged_rules(&operator.actor, query.status, query.incident, page).await?;
    Ok(StagedList::new(listed.entries, listed.total))
}

/// Shows a staged rule, its commands and what became of it. Role: readonly.
#[utoipa::path(get, path = "/firewall-rules/staged/{id}", tag = "firewall-rules",
    params(("id" = i64, Path, description = "The staged rule")),
    responses((status = 200, description = "The staged rule", body = StagedAnswer)))]
async fn show(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(StagedAnswer::new(context.app.staged_rule(&operator.actor, id).await?))
}

/// Approves a staged rule: its node gets the order at once. Role: admin.
#[utoipa::path(post, path = "/firewall-rules/staged/{id}/approve", tag = "firewall-rules",
    params(("id" = i64, Path, description = "The staged rule")),
    responses(
        (status = 200, description = "The staged rule, approved", body = StagedAnswer),
        (status = 409, description = "`already_exists`: it was decided on, or expired",
            body = crate::http::error::ErrorAnswer),
    ))]
async fn approve(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(StagedAnswer::new(context.app.decide_staged(&operator.actor, id, Decision::Approve).await?))
}

/// Rejects a staged rule; its sources are not proposed again for this incident. Role: admin.
#[utoipa::path(post, path = "/firewall-rules/staged/{id}/reject", tag = "firewall-rules",
    params(("id" = i64, Path, description = "The staged rule")),
    responses(
        (status = 200, description = "The staged rule, rejected", body = StagedAnswer),
        (status = 409, description = "`already_exists`: it was decided on, or expired",
            body = crate::http::error::ErrorAnswer),
    ))]
async fn reject(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(StagedAnswer::new(context.app.decide_staged(&operator.actor, id, Decision::Reject).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(approve)).routes(routes!(reject))
}
