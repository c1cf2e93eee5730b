//! Adapters: how mitigation rules reach speakers, clouds and appliances.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use super::mitigation::given;
use super::rules::PageQuery;
use crate::app::TestResult;
use crate::domain::{Adapter, AdapterConfig, AdapterStatus, AdapterType, Intent, NewAdapter};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, answers};

answers! {
    AdapterList { adapters: Vec<Adapter>, total: u64 }
    AdapterAnswer { adapter: Adapter }
    AdapterDeleted {
        id: i64,
        /// Rules that are withdrawn first; at 0 the adapter is gone, else it goes with the last of them.
        withdrawing: u64
    }
    AdapterTested { status: AdapterStatus, test: TestResult }
}

/// An adapter to be saved.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct AdapterBody {
    adapter_type: AdapterType,
    /// 1 to 128 characters; an adapter of this name is replaced.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// URL of http or https without credentials, to a public address unless the server's configuration allows others; of
    /// `exabgp`, `gobgp`, `bird2` and `frr` also an IP address with port.
    #[schema(min_length = 1, max_length = 2_048)]
    endpoint: String,
    /// 1 to 4,096 printable ASCII characters; never shown again. Absent: as it was. Null: none. A `webhook` signs with it.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 4_096, write_only)]
    auth_token: Option<Option<String>>,
    #[serde(default)]
    config: AdapterConfig,
    /// What may be asked of it; by default all that its type can do.
    #[schema(min_items = 1)]
    capabilities: Option<Vec<Intent>>,
}

/// Lists adapters. Role: readonly.
#[utoipa::path(get, path = "/mitigation/adapters", tag = "mitigation", params(PageQuery),
    responses((status = 200, description = "Adapters, newest first", body = AdapterList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.adapters(&operator.actor, query.page()?).await?;
    Ok(AdapterList::new(listed.entries, listed.total))
}

/// Creates an adapter, or replaces the one of the same name. Only `webhook` has a driver; the others are kept as
/// `not_connected`, and no rule can use them. Role: admin.
#[utoipa::path(post, path = "/mitigation/adapters", tag = "mitigation", request_body = AdapterBody,
    responses((status = 200, description = "The adapter", body = AdapterAnswer)))]
async fn save(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<AdapterBody>,
) -> Result<impl IntoResponse, ApiError> {
    let AdapterBody { adapter_type, name, endpoint, auth_token, config, capabilities } = body;
    let new = NewAdapter { adapter_type, name, endpoint, config, capabilities };
    Ok(AdapterAnswer::new(context.app.save_adapter(&operator.actor, new, auth_token).await?))
}

/// Deletes an adapter; its rules are withdrawn first, and it is listed as `deleting` meanwhile. Role: admin.
#[utoipa::path(delete, path = "/mitigation/adapters/{id}", tag = "mitigation",
    params(("id" = i64, Path, description = "The adapter")),
    responses((status = 200, description = "It is gone, or goes when its rules are withdrawn", body = AdapterDeleted)))]
async fn delete(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    let withdrawing = context.app.delete_adapter(&operator.actor, id).await?;
    Ok(AdapterDeleted::new(id, withdrawing))
}

/// Calls an adapter and tells what came of it; `success` is false for what cannot be called. Role: admin.
#[utoipa::path(post, path = "/mitigation/adapters/{id}/test", tag = "mitigation",
    params(("id" = i64, Path, description = "The adapter")),
    responses((status = 200, description = "What the test found", body = AdapterTested)))]
async fn test(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    let (status, test) = context.app.test_adapter(&operator.actor, id).await?;
    Ok(AdapterTested::new(status, test))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list, save)).routes(routes!(delete)).routes(routes!(test))
}
