//! Incidents as a file.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use ftagent_common::vocab::{AttackFamily, IncidentStatus, Severity};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use super::lines::{self, Format};
use crate::app::App;
use crate::domain::{IncidentFilter, IncidentSummary, Timestamp, WorkspaceId};
use crate::http::Context;
use crate::http::access::routes;
use crate::http::auth::{Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::Query;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ExportQuery {
    #[param(inline)]
    format: Format,
    node: Option<Uuid>,
    status: Option<IncidentStatus>,
    severity: Option<Severity>,
    family: Option<AttackFamily>,
    /// Begun at or after; RFC 3339.
    from: Option<Timestamp>,
    /// Begun before; RFC 3339.
    to: Option<Timestamp>,
}

/// Exports incidents as CSV or JSON Lines, newest first. Role: readonly.
#[utoipa::path(get, path = "/incidents/export", tag = "incidents", params(ExportQuery),
    responses((status = 200, description = "One incident per line", content(
        (String = "text/csv"), (String = "application/x-ndjson")))))]
async fn export(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<ExportQuery>,
) -> Result<Response, ApiError> {
    let ExportQuery { format, node, status, severity, family, from, to } = query;
    let filter = IncidentFilter { node, status, severity, family, from, to };
    let workspace = operator.actor.workspace();
    lines::stream(Incidents { app: context.app.clone(), workspace, filter, before: i64::MAX }, format).await
}

struct Incidents {
    app: Arc<App>,
    workspace: WorkspaceId,
    filter: IncidentFilter,
    before: i64,
}

impl lines::Rows for Incidents {
    const NAME: &'static str = "incidents";
    const COLUMNS: &'static [&'static str] = &[
        "id",
        "uuid",
        "node",
        "node_name",
        "target",
        "status",
        "severity",
        "attack_family",
        "confidence",
        "spoofed",
        "carpet_bombing",
        "started_at",
        "resolved_at",
        "peak_pps",
        "peak_bps",
        "packets",
        "dropped_packets",
        "source_count",
    ];
    type Row = IncidentSummary;

    async fn next(&mut self) -> crate::store::Result<Vec<IncidentSummary>> {
        let incidents = self.app.export(self.workspace, &self.filter, self.before).await?;
        self.before = incidents.last().map_or(self.before, |last| last.id);
        Ok(incidents)
    }

    fn fields(i: &IncidentSummary) -> Vec<String> {
        vec![
            i.id.to_string(),
            i.uuid.to_string(),
            i.node.to_string(),
            i.node_name.clone(),
            i.target.to_string(),
            i.status.to_string(),
            i.severity.to_string(),
            i.attack_family.to_string(),
            format!("{:.2}", i.confidence),
            i.spoofed.to_string(),
            i.carpet_bombing.to_string(),
            i.started_at.to_string(),
            i.resolved_at.map(|at| at.to_string()).unwrap_or_default(),
            i.peak_pps.to_string(),
            i.peak_bps.to_string(),
            i.packets.to_string(),
            i.dropped_packets.to_string(),
            i.source_count.to_string(),
        ]
    }
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(export))
}
