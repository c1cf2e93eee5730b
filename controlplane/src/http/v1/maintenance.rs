//! Maintenance windows.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::domain::{MaintenanceWindow, NewWindow, Page, Schedule, Timestamp, WindowPatch};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, Done, answers};

answers! {
    WindowList { windows: Vec<WindowView>, total: u64 }
    WindowAnswer { window: WindowView }
}

/// A window, and whether it is open.
#[derive(Serialize, ToSchema)]
pub(crate) struct WindowView {
    #[serde(flatten)]
    window: MaintenanceWindow,
    /// When it closes, if it is enabled and open now.
    open_until: Option<Timestamp>,
}

impl WindowView {
    fn new(window: MaintenanceWindow, now: Timestamp) -> Self {
        Self { open_until: window.open_until(now), window }
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// A node: the workspace's windows and this node's.
    node: Option<Uuid>,
    /// Windows per page, 1 to 500; 100 by default.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<i64>,
    #[param(minimum = 0)]
    offset: Option<i64>,
}

const fn yes() -> bool {
    true
}

/// A window to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WindowBody {
    /// 1 to 128 characters.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// The node that it holds for; the whole workspace by default.
    node: Option<Uuid>,
    schedule: Schedule,
    #[serde(default = "yes")]
    enabled: bool,
}

/// What to change of a window; absent fields stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct WindowChange {
    /// 1 to 128 characters.
    #[schema(min_length = 1, max_length = 128)]
    name: Option<String>,
    /// Replaces the schedule as a whole.
    schedule: Option<Schedule>,
    enabled: Option<bool>,
}

/// Lists maintenance windows. Role: readonly.
#[utoipa::path(get, path = "/maintenance", tag = "maintenance", params(ListQuery),
    responses((status = 200, description = "Windows, newest first", body = WindowList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let page = Page::new(query.limit, query.offset, 100, 500)?;
    let now = context.app.now();
    let listed = context.app.windows(&operator.actor, query.node, page).await?;
    let listed = listed.map(|window| WindowView::new(window, now));
    Ok(WindowList::new(listed.entries, listed.total))
}

/// Shows a maintenance window. Role: readonly.
#[utoipa::path(get, path = "/maintenance/{id}", tag = "maintenance", params(("id" = i64, Path, description = "The window")),
    responses((status = 200, description = "The window", body = WindowAnswer)))]
async fn show(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    let window = context.app.window(&operator.actor, id).await?;
    Ok(WindowAnswer::new(WindowView::new(window, context.app.now())))
}

/// Creates a maintenance window of a node or the workspace, once or every week, 15 minutes to 24 hours. Role: admin.
#[utoipa::path(post, path = "/maintenance", tag = "maintenance", request_body = WindowBody,
    responses((status = 200, description = "The window", body = WindowAnswer)))]
async fn create(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<WindowBody>,
) -> Result<impl IntoResponse, ApiError> {
    let WindowBody { name, node, schedule, enabled } = body;
    let window = context.app.create_window(&operator.actor, NewWindow { name, node, schedule, enabled }).await?;
    Ok(WindowAnswer::new(WindowView::new(window, context.app.now())))
}

/// Changes a maintenance window; for whom it holds stays. Role: admin.
#[utoipa::path(patch, path = "/maintenance/{id}", tag = "maintenance", params(("id" = i64, Path, description = "The window")),
    request_body = WindowChange, responses((status = 200, description = "The window", body = WindowAnswer)))]
async fn patch(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    JsonBody(change): JsonBody<WindowChange>,
) -> Result<impl IntoResponse, ApiError> {
    let WindowChange { name, schedule, enabled } = change;
    let window = context.app.patch_window(&operator.actor, id, WindowPatch { name, schedule, enabled }).await?;
    Ok(WindowAnswer::new(WindowView::new(window, context.app.now())))
}

/// Deletes a maintenance window; what it held goes on. Role: admin.
#[utoipa::path(delete, path = "/maintenance/{id}", tag = "maintenance", params(("id" = i64, Path, description = "The window")),
    responses((status = 200, description = "Deleted", body = Done)))]
async fn delete(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.delete_window(&operator.actor, id).await?;
    Ok(Done::new(Some(id)))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(show, patch, delete))
}
