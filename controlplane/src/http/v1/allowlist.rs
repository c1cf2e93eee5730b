//! The allowlist.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::domain::{AllowlistEntry, AllowlistScope, NewAllowlistEntry, Page};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, Done, answers};

answers! {
    EntryList { entries: Vec<AllowlistEntry>, total: u64 }
    EntryAnswer { entry: AllowlistEntry }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// A node: the workspace's entries and this node's.
    node: Option<Uuid>,
    /// Entries per page, 1 to 500; 100 by default.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<i64>,
    #[param(minimum = 0)]
    offset: Option<i64>,
}

/// An entry to be added.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewEntry {
    /// IPv4 or IPv6 address, or CIDR prefix.
    ip_address: String,
    /// At most 128 characters.
    #[serde(default)]
    #[schema(max_length = 128)]
    label: String,
    #[serde(default)]
    scope: AllowlistScope,
    /// Required when scope is `node`.
    node: Option<Uuid>,
}

/// Lists allowlist entries. Role: readonly.
#[utoipa::path(get, path = "/allowlist", tag = "allowlist", params(ListQuery),
    responses((status = 200, description = "Entries, newest first", body = EntryList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let page = Page::new(query.limit, query.offset, 100, 500)?;
    let listed = context.app.allowlist(&operator.actor, query.node, page).await?;
    Ok(EntryList::new(listed.entries, listed.total))
}

/// Adds an address or prefix that nothing automated may block; nodes have it at once. Role: admin.
#[utoipa::path(post, path = "/allowlist", tag = "allowlist", request_body = NewEntry,
    responses((status = 200, description = "The entry", body = EntryAnswer)))]
async fn add(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<NewEntry>,
) -> Result<impl IntoResponse, ApiError> {
    let new = NewAllowlistEntry::parse(&body.ip_address, &body.label, body.scope, body.node)?;
    Ok(EntryAnswer::new(context.app.allow(&operator.actor, new).await?))
}

/// Removes an allowlist entry; nodes may block it again at once. Role: admin.
#[utoipa::path(delete, path = "/allowlist/{id}", tag = "allowlist", params(("id" = i64, Path, description = "The entry")),
    responses((status = 200, description = "Removed", body = Done)))]
async fn remove(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.disallow(&operator.actor, id).await?;
    Ok(Done::new(Some(id)))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(remove))
}
