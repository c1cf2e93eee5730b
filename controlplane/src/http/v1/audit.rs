//! Audit records.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use super::lines::{self, Format};
use crate::app::App;
use crate::domain::{AuditFilter, AuditRecord, Broken, Page, Timestamp, WorkspaceId};
use crate::http::access::routes;
use crate::http::auth::{Inspect, Operator};
use crate::http::error::ApiError;
use crate::http::extract::Query;
use crate::http::{Context, answers};

answers! {
    AuditList { records: Vec<AuditRow>, total: u64 }
    AuditVerdict {
        /// Whether every record follows from the one before it.
        intact: bool,
        /// How many records were walked.
        records: i64,
        /// The last intact record's hash; kept elsewhere, it proves later that nothing before it was changed.
        hash: String,
        broken: Option<Broken>
    }
}

/// Who did what to what, when, with what result.
#[derive(Serialize, ToSchema)]
pub(crate) struct AuditRow {
    seq: i64,
    at: Timestamp,
    actor: String,
    action: String,
    object: String,
    /// `ok`, `refused` or `failed`.
    result: String,
    detail: serde_json::Value,
    hash: String,
}

impl From<AuditRecord> for AuditRow {
    fn from(record: AuditRecord) -> Self {
        Self {
            hash: record.hash_hex(),
            // An edited record may be no JSON any more: it is shown as it is.
            detail: serde_json::from_str(&record.detail).unwrap_or_else(|_| record.detail.into()),
            seq: record.seq,
            at: record.at,
            actor: record.actor,
            action: record.action,
            object: record.object,
            result: record.result,
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct AuditQuery {
    /// Such as `rule.create`.
    action: Option<String>,
    /// How the actor begins, such as `token/1 ` or `node/`.
    actor: Option<String>,
    /// Such as `rule/7`.
    object: Option<String>,
    /// At or after; RFC 3339.
    from: Option<Timestamp>,
    /// Before; RFC 3339.
    to: Option<Timestamp>,
    /// Records per page, 1 to 500; 100 by default.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<i64>,
    #[param(minimum = 0)]
    offset: Option<i64>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ExportQuery {
    #[param(inline)]
    format: Format,
    /// Such as `rule.create`.
    action: Option<String>,
    /// How the actor begins, such as `token/1 ` or `node/`.
    actor: Option<String>,
    /// Such as `rule/7`.
    object: Option<String>,
    /// At or after; RFC 3339.
    from: Option<Timestamp>,
    /// Before; RFC 3339.
    to: Option<Timestamp>,
}

/// Lists audit records. Role: admin.
#[utoipa::path(get, path = "/audit", tag = "audit", params(AuditQuery),
    responses((status = 200, description = "Records, newest first", body = AuditList)))]
async fn list(
    operator: Operator<Inspect>,
    State(context): State<Context>,
    Query(query): Query<AuditQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let page = Page::new(query.limit, query.offset, 100, 500)?;
    let AuditQuery { action, actor, object, from, to, .. } = query;
    let listed = context.app.audit(&operator.actor, &AuditFilter { action, actor, object, from, to }, page).await?;
    let listed = listed.map(AuditRow::from);
    Ok(AuditList::new(listed.entries, listed.total))
}

/// Exports audit records with their hashes as CSV or JSON Lines, newest first. Role: admin.
#[utoipa::path(get, path = "/audit/export", tag = "audit", params(ExportQuery),
    responses((status = 200, description = "One record per line", content(
        (String = "text/csv"), (String = "application/x-ndjson")))))]
async fn export(
    operator: Operator<Inspect>,
    State(context): State<Context>,
    Query(query): Query<ExportQuery>,
) -> Result<Response, ApiError> {
    let ExportQuery { format, action, actor, object, from, to } = query;
    let filter = AuditFilter { action, actor, object, from, to };
    let workspace = operator.actor.workspace();
    lines::stream(Records { app: context.app.clone(), workspace, filter, before: i64::MAX }, format).await
}

struct Records {
    app: Arc<App>,
    workspace: WorkspaceId,
    filter: AuditFilter,
    before: i64,
}

impl lines::Rows for Records {
    const NAME: &'static str = "audit";
    const COLUMNS: &'static [&'static str] = &["seq", "at", "actor", "action", "object", "result", "detail", "hash"];
    type Row = AuditRow;

    async fn next(&mut self) -> crate::store::Result<Vec<AuditRow>> {
        let records = self.app.export_audit(self.workspace, &self.filter, self.before).await?;
        self.before = records.last().map_or(self.before, |last| last.seq);
        Ok(records.into_iter().map(AuditRow::from).collect())
    }

    fn fields(row: &AuditRow) -> Vec<String> {
        vec![
            row.seq.to_string(),
            row.at.to_string(),
            row.actor.clone(),
            row.action.clone(),
            row.object.clone(),
            row.result.clone(),
            row.detail.to_string(),
            row.hash.clone(),
        ]
    }
}

/// Walks the hash chain of all audit records and says where it breaks, if it does. Role: admin.
#[utoipa::path(get, path = "/audit/verify", tag = "audit",
    responses((status = 200, description = "The verdict", body = AuditVerdict)))]
async fn verify(operator: Operator<Inspect>, State(context): State<Context>) -> Result<impl IntoResponse, ApiError> {
    let (verifier, broken) = context.app.verify_audit(&operator.actor).await?;
    Ok(AuditVerdict::new(broken.is_none(), verifier.seq(), verifier.hash_hex(), broken))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(export)).routes(routes!(verify))
}
