//! Incidents as nodes report them.

use axum::Json;
use axum::extract::State;
use ftagent_common::api::IncidentReport;
use ftagent_common::vocab::IncidentStatus;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::http::access::routes;
use crate::http::auth::Agent;
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path};
use crate::http::{Context, answers};
use crate::store::Recorded;

answers! {
    /// What became of a report.
    ReportAnswer {
        id: i64,
        /// The uuid that the incident is known by: that of the first report for the same node, beginning and target.
        uuid: Uuid,
        /// The highest revision known.
        revision: u32,
        /// Whether the report was newer than what was known.
        applied: bool,
        /// The status that counts, an operator's before the node's.
        status: IncidentStatus
    }
}

fn answer(recorded: &Recorded) -> Json<ReportAnswer> {
    let incident = &recorded.incident;
    let report = &incident.report;
    ReportAnswer::new(incident.id, report.uuid, report.revision, recorded.applied, incident.status())
}

/// Opens an incident; the same node, beginning and target give the same incident.
#[utoipa::path(post, path = "/agent/incidents", tag = "agent", request_body = IncidentReport,
    responses((status = 200, description = "Kept", body = ReportAnswer)))]
async fn open(
    agent: Agent,
    State(context): State<Context>,
    JsonBody(report): JsonBody<IncidentReport>,
) -> Result<Json<ReportAnswer>, ApiError> {
    Ok(answer(&context.app.record_incident(&agent.actor, agent.node, report).await?))
}

/// Updates an incident, or creates it if it is unknown; older revisions change nothing.
#[utoipa::path(post, path = "/agent/incidents/{uuid}", tag = "agent", request_body = IncidentReport,
    params(("uuid" = Uuid, Path, description = "The incident")),
    responses((status = 200, description = "Kept", body = ReportAnswer)))]
async fn update(
    agent: Agent,
    State(context): State<Context>,
    Path(uuid): Path<Uuid>,
    JsonBody(report): JsonBody<IncidentReport>,
) -> Result<Json<ReportAnswer>, ApiError> {
    Ok(answer(&context.app.record_incident(&agent.actor, agent.node, IncidentReport { uuid, ..report }).await?))
}

/// Resolves an incident, or creates it resolved if it is unknown.
#[utoipa::path(post, path = "/agent/incidents/{uuid}/resolve", tag = "agent", request_body = IncidentReport,
    params(("uuid" = Uuid, Path, description = "The incident")),
    responses((status = 200, description = "Kept", body = ReportAnswer)))]
async fn resolve(
    agent: Agent,
    State(context): State<Context>,
    Path(uuid): Path<Uuid>,
    JsonBody(mut report): JsonBody<IncidentReport>,
) -> Result<Json<ReportAnswer>, ApiError> {
    report.uuid = uuid;
    if report.status == IncidentStatus::Active {
        report.status = IncidentStatus::Resolved;
    }
    report.resolved_at.get_or_insert(report.updated_at);
    Ok(answer(&context.app.record_incident(&agent.actor, agent.node, report).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(open)).routes(routes!(update)).routes(routes!(resolve))
}
