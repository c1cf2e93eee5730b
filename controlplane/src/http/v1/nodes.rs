//! Nodes.

use axum::extract::State;
use axum::response::IntoResponse;
use ftagent_common::api::{DeployRequest, NodeCommand, Order};
use ftagent_common::vocab::NodeStatus;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::domain::{Deployment, MetricsPoint, MetricsWindow, Node, NodeFilter, NodePatch, Page, Timestamp};
use crate::http::access::routes;
use crate::http::auth::{Manage, NodeReader, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, Done, answers};

answers! {
    NodeList { nodes: Vec<Node>, total: u64 }
    NodeAnswer { node: Node, protocol_split: Option<ProtocolSplit> }
    NewNode {
        node: Node,
        /// What the node signs in with; shown this once.
        api_key: String
    }
    NodeMetrics {
        metrics: Vec<MetricsPoint>,
        /// Seconds per point.
        step: i64,
        /// Whether this server keeps time series: if not there are no new points, and they are in Prometheus.
        kept: bool
    }
    CommandAnswer { command: NodeCommand }
}

/// Shares of a node's packets of the last five minutes, each 0 to 1.
#[derive(serde::Serialize, ToSchema)]
pub(crate) struct ProtocolSplit {
    tcp: f64,
    udp: f64,
    icmp: f64,
    other: f64,
}

impl ProtocolSplit {
    fn of(points: &[MetricsPoint]) -> Option<Self> {
        let sum = |f: fn(&MetricsPoint) -> u64| points.iter().map(|p| f(p) as f64).sum::<f64>();
        let parts = [sum(|p| p.tcp_pps), sum(|p| p.udp_pps), sum(|p| p.icmp_pps), sum(|p| p.other_pps)];
        let all: f64 = parts.iter().sum();
        let [tcp, udp, icmp, other] = parts.map(|p| (p / all * 1_000.0).round() / 1_000.0);
        (all > 0.0).then_some(Self { tcp, udp, icmp, other })
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Only nodes with this status.
    status: Option<NodeStatus>,
    /// Nodes per page, 1 to 500; 100 by default.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<i64>,
    #[param(minimum = 0)]
    offset: Option<i64>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct MetricsQuery {
    /// RFC 3339; an hour before `to` by default.
    from: Option<Timestamp>,
    /// RFC 3339; now by default.
    to: Option<Timestamp>,
    /// Seconds per point, 1 to 86,400; at most 2,000 points in all.
    #[param(minimum = 1, maximum = 86_400)]
    step: Option<i64>,
}

/// What to change of a node; absent fields stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NodeChange {
    /// 1 to 128 characters; unique in the workspace.
    #[schema(min_length = 1, max_length = 128)]
    name: Option<String>,
    /// IPv4 or IPv6 address, or empty.
    ip: Option<String>,
    #[schema(max_length = 128)]
    location: Option<String>,
    #[schema(max_length = 128)]
    os: Option<String>,
    #[schema(max_length = 64)]
    interface: Option<String>,
}

/// An order to a node.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewCommand {
    order: Order,
}

/// Lists nodes. Role: readonly.
#[utoipa::path(get, path = "/nodes", tag = "nodes", params(ListQuery),
    responses((status = 200, description = "Nodes, newest first", body = NodeList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<ListQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let page = Page::new(query.limit, query.offset, 100, 500)?;
    let listed = context.app.nodes(&operator.actor, &NodeFilter { status: query.status }, page).await?;
    Ok(NodeList::new(listed.entries, listed.total))
}

/// Makes a machine a node and shows its key, this once: what `/api/deploy` does, answered with the node. Role: admin.
#[utoipa::path(post, path = "/nodes", tag = "nodes", request_body = DeployRequest,
    responses((status = 200, description = "The new node", body = NewNode)))]
async fn create(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(request): JsonBody<DeployRequest>,
) -> Result<impl IntoResponse, ApiError> {
    let (uuid, key) = context.app.deploy(&operator.actor, &Deployment::check(request)?).await?;
    let node = context.app.node(&operator.actor, uuid).await?;
    Ok(NewNode::new(node, key.reveal().to_owned()))
}

/// Shows a node with its baseline and protocol split. Role: readonly, or the node's own key.
#[utoipa::path(get, path = "/nodes/{uuid}", tag = "nodes", params(("uuid" = Uuid, Path, description = "The node")),
    responses((status = 200, description = "The node", body = NodeAnswer)))]
async fn show(
    reader: NodeReader,
    State(context): State<Context>,
    Path(uuid): Path<Uuid>,
) -> Result<impl IntoResponse, ApiError> {
    reader.may_read(uuid)?;
    let node = context.app.node(&reader.actor, uuid).await?;
    let now = context.app.now();
    let window = MetricsWindow::new(Some(now.plus_secs(-300)), Some(now.plus_secs(1)), Some(60), now)?;
    let points = context.app.metrics(&reader.actor, uuid, window).await?;
    Ok(NodeAnswer::new(node, ProtocolSplit::of(&points)))
}

/// Changes what is said of a node. Role: admin.
#[utoipa::path(patch, path = "/nodes/{uuid}", tag = "nodes", params(("uuid" = Uuid, Path, description = "The node")),
    request_body = NodeChange, responses((status = 200, description = "The node", body = NodeAnswer)))]
async fn patch(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(uuid): Path<Uuid>,
    JsonBody(change): JsonBody<NodeChange>,
) -> Result<impl IntoResponse, ApiError> {
    let NodeChange { name, ip, location, os, interface } = change;
    let node = context.app.patch_node(&operator.actor, uuid, NodePatch { name, ip, location, os, interface }).await?;
    Ok(NodeAnswer::new(node, None))
}

/// Deletes a node with its incidents and metrics; its key ends. Audit records stay. Role: admin.
#[utoipa::path(delete, path = "/nodes/{uuid}", tag = "nodes", params(("uuid" = Uuid, Path, description = "The node")),
    responses((status = 200, description = "Deleted", body = Done)))]
async fn delete(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(uuid): Path<Uuid>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.delete_node(&operator.actor, uuid).await?;
    Ok(Done::new(None))
}

/// Shows a node's traffic over time. Role: readonly, or the node's own key.
#[utoipa::path(get, path = "/nodes/{uuid}/metrics", tag = "nodes",
    params(("uuid" = Uuid, Path, description = "The node"), MetricsQuery),
    responses((status = 200, description = "Points, oldest first", body = NodeMetrics)))]
async fn metrics(
    reader: NodeReader,
    State(context): State<Context>,
    Path(uuid): Path<Uuid>,
    Query(query): Query<MetricsQuery>,
) -> Result<impl IntoResponse, ApiError> {
    reader.may_read(uuid)?;
    let window = MetricsWindow::new(query.from, query.to, query.step, context.app.now())?;
    let points = context.app.metrics(&reader.actor, uuid, window).await?;
    Ok(NodeMetrics::new(points, window.step, context.app.keeps_series()))
}

/// Orders a node to do something, repeated until it acknowledges or a day has passed. Role: admin.
#[utoipa::path(post, path = "/nodes/{uuid}/commands", tag = "nodes",
    params(("uuid" = Uuid, Path, description = "The node")), request_body = NewCommand,
    responses((status = 200, description = "The command as it was sent", body = CommandAnswer)))]
async fn command(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(uuid): Path<Uuid>,
    JsonBody(new): JsonBody<NewCommand>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(CommandAnswer::new(context.app.order(&operator.actor, uuid, &new.order).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, patch, delete))
        .routes(routes!(metrics))
        .routes(routes!(command))
}
