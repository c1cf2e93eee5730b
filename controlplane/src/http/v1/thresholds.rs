//! Thresholds of single hosts.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa::openapi::schema::AdditionalProperties;
use utoipa::openapi::{Object, ObjectBuilder, Type};
use utoipa_axum::router::OpenApiRouter;

use super::rules::PageQuery;
use crate::domain::{NewThreshold, Threshold};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, Done, answers};

answers! {
    ThresholdList { thresholds: Vec<Threshold>, total: u64 }
    ThresholdAnswer { threshold: Threshold }
}

/// A threshold to be saved.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ThresholdBody {
    /// Address, or prefix in CIDR notation.
    target_ip: String,
    /// At most 128 characters.
    #[serde(default)]
    #[schema(max_length = 128)]
    label: String,
    /// `pps`, `bps`, `tier1_bps` to `tier9_bps`, `tier1_pps` to `tier9_pps`; at least one. Tiers must grow. Detection
    /// begins at `pps` and `bps`, or else at the lowest tier of the unit.
    #[schema(schema_with = rates)]
    thresholds: BTreeMap<String, u64>,
}

/// The keys and bounds of thresholds.
fn rates() -> Object {
    let rate = || ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).maximum(Some(1_000_000_000_000_i64));
    let keys = ["bps", "pps"]
        .into_iter()
        .flat_map(|unit| (1..=9).map(move |tier| format!("tier{tier}_{unit}")).chain([unit.to_owned()]));
    let object = keys.fold(ObjectBuilder::new(), |object, key| object.property(key, rate()));
    let mut object = object.min_properties(Some(1)).build();
    object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(false)));
    object
}

/// Lists per-host thresholds. Role: readonly.
#[utoipa::path(get, path = "/mitigation/thresholds", tag = "mitigation", params(PageQuery),
    responses((status = 200, description = "Thresholds, newest first", body = ThresholdList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.thresholds(&operator.actor, query.page()?).await?;
    Ok(ThresholdList::new(listed.entries, listed.total))
}

/// Creates a per-host threshold, or replaces the one of the same target; nodes have it at once. Role: admin.
#[utoipa::path(post, path = "/mitigation/thresholds", tag = "mitigation", request_body = ThresholdBody,
    responses((status = 200, description = "The threshold", body = ThresholdAnswer)))]
async fn save(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<ThresholdBody>,
) -> Result<impl IntoResponse, ApiError> {
    let new = NewThreshold::parse(&body.target_ip, &body.label, body.thresholds)?;
    Ok(ThresholdAnswer::new(context.app.save_threshold(&operator.actor, new).await?))
}

/// Removes a per-host threshold; the host goes back to the node's own. Role: admin.
#[utoipa::path(delete, path = "/mitigation/thresholds/{id}", tag = "mitigation",
    params(("id" = i64, Path, description = "The threshold")),
    responses((status = 200, description = "Removed", body = Done)))]
async fn delete(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.delete_threshold(&operator.actor, id).await?;
    Ok(Done::new(Some(id)))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list, save)).routes(routes!(delete))
}
