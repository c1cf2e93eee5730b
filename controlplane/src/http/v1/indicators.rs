//! Threat intelligence.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;

use crate::domain::{
    GivenIndicator, Indicator, IndicatorFilter, IndicatorKind, IndicatorValue, Page, Problem, Timestamp,
    check_confidence,
};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, Done, answers};

answers! {
    IndicatorList { indicators: Vec<Indicator>, total: u64 }
    ImportAnswer {
        /// How many were new.
        created: u64,
        /// How many were there already and are now as this call says.
        updated: u64,
        /// In the order of the call.
        indicators: Vec<Indicator>
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    kind: Option<IndicatorKind>,
    /// Exactly this source.
    source: Option<String>,
    /// Exactly this address, prefix or domain name.
    value: Option<String>,
    /// At least so sure, 0 to 1.
    #[param(minimum = 0.0, maximum = 1.0)]
    min_confidence: Option<f64>,
    /// Indicators per page, 1 to 500; 100 by default.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<i64>,
    #[param(minimum = 0)]
    offset: Option<i64>,
}

/// Indicators to be imported.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ImportBody {
    /// 1 to 100.
    #[schema(min_items = 1, max_items = 100)]
    indicators: Vec<IndicatorBody>,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct IndicatorBody {
    /// An IPv4 or IPv6 address; a prefix of at least 8 (IPv4) or 19 (IPv6) bits; or a domain name. None that is private,
    /// local, multicast or allowlisted.
    value: String,
    /// Refuses a value of another kind.
    kind: Option<IndicatorKind>,
    /// 0 to 1; kept with two decimals.
    #[schema(minimum = 0.0, maximum = 1.0)]
    confidence: f64,
    /// Who says so, 1 to 64 characters.
    #[schema(min_length = 1, max_length = 64)]
    source: String,
    /// At most 256 characters.
    #[serde(default)]
    #[schema(max_length = 256)]
    description: String,
    /// RFC 3339; `last_seen` by default.
    first_seen: Option<Timestamp>,
    /// RFC 3339; now by default.
    last_seen: Option<Timestamp>,
    /// RFC 3339, within a year; 30 days from now by default.
    expires_at: Option<Timestamp>,
}

/// Imports indicators: all of them or none. What the same source said of the same value before is replaced, but for the
/// earliest and the latest time that it was seen. Role: admin.
#[utoipa::path(post, path = "/threat-intel/import", tag = "threat-intel", request_body = ImportBody,
    responses((status = 200, description = "The indicators as they are kept", body = ImportAnswer)))]
async fn import(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<ImportBody>,
) -> Result<impl IntoResponse, ApiError> {
    let given = body.indicators.into_iter().map(|i| {
        let IndicatorBody { value, kind, confidence, source, description, first_seen, last_seen, expires_at } = i;
        GivenIndicator { value, kind, confidence, source, description, first_seen, last_seen, expires_at }
    });
    let imported = context.app.import_indicators(&operator.actor, given.collect()).await?;
    Ok(ImportAnswer::new(imported.created, imported.updated, imported.indicators))
}

/// Lists imported indicators. Those that hold no more are deleted within a minute. Role: readonly.
#[utoipa::path(get, path = "/threat-intel", tag = "threat-intel", params(ListQuery),
    responses((status = 200, description = "Indicators, newest first", body = IndicatorList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let page = Page::new(query.limit, query.offset, 100, 500)?;
    let value = query.value.as_deref().map(|text| {
        let unreadable = || Problem::parameter("value", "must be an address, a CIDR prefix or a domain name");
        IndicatorValue::parse(text).ok_or_else(unreadable)
    });
    let filter = IndicatorFilter {
        kind: query.kind,
        source: query.source,
        value: value.transpose()?,
        min_confidence: query.min_confidence.map(check_confidence).transpose()?,
    };
    let listed = context.app.indicators(&operator.actor, &filter, page).await?;
    Ok(IndicatorList::new(listed.entries, listed.total))
}

/// Deletes an imported indicator; the feeds are without it at once. Role: admin.
#[utoipa::path(delete, path = "/threat-intel/{id}", tag = "threat-intel",
    params(("id" = i64, Path, description = "The indicator")),
    responses((status = 200, description = "Deleted", body = Done)))]
async fn delete(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.delete_indicator(&operator.actor, id).await?;
    Ok(Done::new(Some(id)))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(import)).routes(routes!(delete))
}
