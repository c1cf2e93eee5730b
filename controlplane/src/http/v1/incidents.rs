//! Incidents.

use axum::extract::State;
use axum::response::IntoResponse;
use ftagent_common::vocab::{AttackFamily, IncidentStatus, Severity};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::domain::{Incident, IncidentFilter, IncidentSummary, Note, OperatorChange, Page, Timestamp};
use crate::http::access::routes;
use crate::http::auth::{Analyse, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, answers};

answers! {
    IncidentList { incidents: Vec<IncidentSummary>, total: u64 }
    IncidentAnswer { incident: Incident }
    NoteAnswer { note: Note }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only incidents that this node saw.
    node: Option<Uuid>,
    status: Option<IncidentStatus>,
    severity: Option<Severity>,
    family: Option<AttackFamily>,
    /// Begun at or after; RFC 3339.
    from: Option<Timestamp>,
    /// Begun before; RFC 3339.
    to: Option<Timestamp>,
    /// Incidents per page, 1 to 500; 100 by default.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<i64>,
    #[param(minimum = 0)]
    offset: Option<i64>,
}

/// What to change of an incident; give at least one.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct IncidentChange {
    /// `resolved` and `false_positive` end an active incident on its node too and undo what was done there.
    status: Option<IncidentStatus>,
    severity: Option<Severity>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewNote {
    /// 1 to 4,096 characters.
    #[schema(min_length = 1, max_length = 4_096)]
    text: String,
}

/// Lists incidents. Role: readonly.
#[utoipa::path(get, path = "/incidents", tag = "incidents", params(ListQuery),
    responses((status = 200, description = "Incidents, newest first", body = IncidentList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let page = Page::new(query.limit, query.offset, 100, 500)?;
    let ListQuery { node, status, severity, family, from, to, .. } = query;
    let filter = IncidentFilter { node, status, severity, family, from, to };
    let listed = context.app.incidents(&operator.actor, &filter, page).await?;
    Ok(IncidentList::new(listed.entries, listed.total))
}

/// Shows an incident with time line, sources, ports, mitigations and notes. Role: readonly.
#[utoipa::path(get, path = "/incidents/{id}", tag = "incidents",
    params(("id" = String, Path, pattern = r"^([0-9]{1,18}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|inc_[0-9a-f]{8})$", description = "The integer id, the uuid, or `inc_` and 8 hex digits")),
    responses((status = 200, description = "The incident", body = IncidentAnswer)))]
async fn show(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<String>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(IncidentAnswer::new(context.app.incident(&operator.actor, &id).await?))
}

/// Changes an incident's status or severity. Role: analyst.
#[utoipa::path(patch, path = "/incidents/{id}", tag = "incidents",
    params(("id" = String, Path, pattern = r"^([0-9]{1,18}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|inc_[0-9a-f]{8})$", description = "The integer id, the uuid, or `inc_` and 8 hex digits")),
    request_body = IncidentChange, responses((status = 200, description = "The incident", body = IncidentAnswer)))]
async fn patch(
    operator: Operator<Analyse>,
    State(context): State<Context>,
    Path(id): Path<String>,
    JsonBody(change): JsonBody<IncidentChange>,
) -> Result<impl IntoResponse, ApiError> {
    let change = OperatorChange { status: change.status, severity: change.severity };
    Ok(IncidentAnswer::new(context.app.change_incident(&operator.actor, &id, change).await?))
}

/// Adds a note to an incident. Role: analyst.
#[utoipa::path(post, path = "/incidents/{id}/notes", tag = "incidents",
    params(("id" = String, Path, pattern = r"^([0-9]{1,18}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|inc_[0-9a-f]{8})$", description = "The integer id, the uuid, or `inc_` and 8 hex digits")),
    request_body = NewNote, responses((status = 200, description = "The note", body = NoteAnswer)))]
async fn note(
    operator: Operator<Analyse>,
    State(context): State<Context>,
    Path(id): Path<String>,
    JsonBody(new): JsonBody<NewNote>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(NoteAnswer::new(context.app.note(&operator.actor, &id, &new.text).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show, patch)).routes(routes!(note))
}
