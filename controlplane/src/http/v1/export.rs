//! Incidents as a file, streamed: memory does not grow with the number of incidents.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use bytes::Bytes;
use ftagent_common::vocab::{AttackFamily, IncidentStatus, Severity};
use futures_util::stream;
use serde::Deserialize;
use tracing::warn;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::app::App;
use crate::domain::{IncidentFilter, IncidentSummary, Timestamp, WorkspaceId};
use crate::http::Context;
use crate::http::access::routes;
use crate::http::auth::{Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::Query;

/// A file's format.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    Csv,
    Jsonl,
}

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
) -> Result<impl IntoResponse, ApiError> {
    let ExportQuery { format, node, status, severity, family, from, to } = query;
    let filter = IncidentFilter { node, status, severity, family, from, to };
    let mut export =
        Export { app: context.app, workspace: operator.actor.workspace(), filter, format, before: i64::MAX };
    let mut first = match format {
        Format::Csv => format!("{}\r\n", COLUMNS.join(",")),
        Format::Jsonl => String::new(),
    };
    // The first part is read before the answer begins, so that a fault is still a 503.
    let more = match export.next().await? {
        Some(part) => {
            first.push_str(&part);
            true
        }
        None => false,
    };
    let rest = stream::unfold(more.then_some(export), |export| async {
        let mut export = export?;
        match export.next().await {
            Ok(None) => None,
            Ok(Some(part)) => Some((Ok(Bytes::from(part)), Some(export))),
            Err(fault) => {
                warn!(error = %fault, "an export was cut off");
                Some((Err(std::io::Error::other("the database cannot answer")), None))
            }
        }
    });
    use futures_util::StreamExt as _;
    let body = Body::from_stream(stream::once(async { Ok::<_, std::io::Error>(Bytes::from(first)) }).chain(rest));
    let (content_type, disposition) = match format {
        Format::Csv => ("text/csv; charset=utf-8", "attachment; filename=\"incidents.csv\""),
        Format::Jsonl => ("application/x-ndjson", "attachment; filename=\"incidents.jsonl\""),
    };
    Ok(([(header::CONTENT_TYPE, content_type), (header::CONTENT_DISPOSITION, disposition)], body))
}

struct Export {
    app: Arc<App>,
    workspace: WorkspaceId,
    filter: IncidentFilter,
    format: Format,
    before: i64,
}

impl Export {
    async fn next(&mut self) -> crate::store::Result<Option<String>> {
        let incidents = self.app.export(self.workspace, &self.filter, self.before).await?;
        let Some(last) = incidents.last() else { return Ok(None) };
        self.before = last.id;
        let mut part = String::new();
        for incident in &incidents {
            match self.format {
                Format::Csv => write_csv(&mut part, incident),
                Format::Jsonl => {
                    part.push_str(&serde_json::to_string(incident).expect("a summary has string keys"));
                    part.push('\n');
                }
            }
        }
        Ok(Some(part))
    }
}

const COLUMNS: [&str; 18] = [
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

fn write_csv(out: &mut String, incident: &IncidentSummary) {
    let i = incident;
    let fields: [String; 18] = [
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
    ];
    out.push_str(&fields.map(|f| csv_field(&f)).join(","));
    out.push_str("\r\n");
}

/// Quotes a field (RFC 4180); one that a spreadsheet would run as a formula is led by an apostrophe.
fn csv_field(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(export))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_never_a_formula_and_never_breaks_its_row() {
        for (text, expected) in [
            ("edge-1", "edge-1"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("=cmd|'/c calc'!A0", "'=cmd|'/c calc'!A0"),
            ("+1", "'+1"),
            ("@x\ny", "\"'@x\ny\""),
        ] {
            assert_eq!(csv_field(text), expected);
        }
    }
}
