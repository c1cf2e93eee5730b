//! Scrubbing integrations.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use ipnet::IpNet;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use super::rules::PageQuery;
use crate::app::TestResult;
use crate::domain::{NewScrubbing, Provider, Scrubbing, ScrubbingPatch, ScrubbingStatus};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, Done, answers};

answers! {
    ScrubbingList { integrations: Vec<Scrubbing>, total: u64 }
    ScrubbingAnswer { integration: Scrubbing }
    ScrubbingState {
        status: ScrubbingStatus,
        provider: Provider,
        /// Whether traffic goes through the provider because of this program.
        diverting: bool,
        message: String
    }
    ScrubbingTested { status: ScrubbingStatus, provider: Provider, test: TestResult }
}

/// An integration to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ScrubbingBody {
    /// 1 to 128 characters; unique in the workspace.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    provider: Provider,
    /// By name, never shown again: `account_id`, `api_token` (cloudflare_magic_transit), `application_key`,
    /// `application_secret`, `consumer_key` (ovh_mitigation), `user`, `password` (hetzner_mitigation), `zone_id`,
    /// `api_token` (cloudflare_waf), `api_token` (digitalocean, linode), `api_key` (vultr), `access_key_id`,
    /// `secret_access_key`, `region` (aws_shield). All of the provider's are required.
    #[schema(write_only)]
    credentials: BTreeMap<String, String>,
    /// What is diverted, in CIDR notation; at most 256.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 256)]
    prefixes: Vec<IpNet>,
}

/// What to change of an integration; absent fields stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ScrubbingChange {
    #[schema(min_length = 1, max_length = 128)]
    name: Option<String>,
    /// Replaces all of them.
    #[schema(write_only)]
    credentials: Option<BTreeMap<String, String>>,
    #[schema(value_type = Option<Vec<String>>, max_items = 256)]
    prefixes: Option<Vec<IpNet>>,
}

/// Lists scrubbing integrations. No provider has a driver yet: all of them are `not_connected`. Role: readonly.
#[utoipa::path(get, path = "/scrubbing", tag = "scrubbing", params(PageQuery),
    responses((status = 200, description = "Integrations, newest first", body = ScrubbingList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.scrubbings(&operator.actor, query.page()?).await?;
    Ok(ScrubbingList::new(listed.entries, listed.total))
}

/// Creates a scrubbing integration; it is kept and checked, not connected. Role: admin.
#[utoipa::path(post, path = "/scrubbing", tag = "scrubbing", request_body = ScrubbingBody,
    responses((status = 200, description = "The integration", body = ScrubbingAnswer)))]
async fn create(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<ScrubbingBody>,
) -> Result<impl IntoResponse, ApiError> {
    let ScrubbingBody { name, provider, credentials, prefixes } = body;
    let new = NewScrubbing { name, provider, prefixes };
    Ok(ScrubbingAnswer::new(context.app.create_scrubbing(&operator.actor, new, credentials).await?))
}

/// Changes a scrubbing integration. Role: admin.
#[utoipa::path(patch, path = "/scrubbing/{id}", tag = "scrubbing",
    params(("id" = i64, Path, description = "The integration")), request_body = ScrubbingChange,
    responses((status = 200, description = "The integration", body = ScrubbingAnswer)))]
async fn patch(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    JsonBody(body): JsonBody<ScrubbingChange>,
) -> Result<impl IntoResponse, ApiError> {
    let ScrubbingChange { name, credentials, prefixes } = body;
    let patch = ScrubbingPatch { name, prefixes };
    Ok(ScrubbingAnswer::new(context.app.patch_scrubbing(&operator.actor, id, patch, credentials).await?))
}

/// Deletes a scrubbing integration. Role: admin.
#[utoipa::path(delete, path = "/scrubbing/{id}", tag = "scrubbing",
    params(("id" = i64, Path, description = "The integration")),
    responses((status = 200, description = "Deleted", body = Done)))]
async fn delete(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.delete_scrubbing(&operator.actor, id).await?;
    Ok(Done::new(Some(id)))
}

/// Shows whether an integration is connected and diverts traffic. Role: readonly.
#[utoipa::path(get, path = "/scrubbing/{id}/status", tag = "scrubbing",
    params(("id" = i64, Path, description = "The integration")),
    responses((status = 200, description = "What is known", body = ScrubbingState)))]
async fn status(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    let kept = context.app.scrubbing(&operator.actor, id).await?;
    Ok(ScrubbingState::new(kept.status, kept.provider, false, kept.provider.not_connected()))
}

/// Tests an integration; `success` is false, because no provider has a driver yet. Role: admin.
#[utoipa::path(post, path = "/scrubbing/{id}/test", tag = "scrubbing",
    params(("id" = i64, Path, description = "The integration")),
    responses((status = 200, description = "What the test found", body = ScrubbingTested)))]
async fn test(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    let kept = context.app.scrubbing(&operator.actor, id).await?;
    let message = kept.provider.not_connected();
    let test = TestResult { success: false, latency_ms: None, http_status: None, message };
    Ok(ScrubbingTested::new(kept.status, kept.provider, test))
}

/// Diverts traffic through the provider. Answers 422: no provider has a driver yet. Role: admin.
#[utoipa::path(post, path = "/scrubbing/{id}/announce", tag = "scrubbing",
    params(("id" = i64, Path, description = "The integration")),
    responses((status = 200, description = "Not answered while no provider has a driver", body = ScrubbingState)))]
async fn announce(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<Json<ScrubbingState>, ApiError> {
    Err(context.app.divert(&operator.actor, id, "scrubbing.announce").await?.into())
}

/// Ends a diversion. Answers 422: no provider has a driver yet, so this program cannot have begun one. Role: admin.
#[utoipa::path(post, path = "/scrubbing/{id}/withdraw", tag = "scrubbing",
    params(("id" = i64, Path, description = "The integration")),
    responses((status = 200, description = "Not answered while no provider has a driver", body = ScrubbingState)))]
async fn withdraw(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<Json<ScrubbingState>, ApiError> {
    Err(context.app.divert(&operator.actor, id, "scrubbing.withdraw").await?.into())
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(patch, delete))
        .routes(routes!(status))
        .routes(routes!(test))
        .routes(routes!(announce))
        .routes(routes!(withdraw))
}
