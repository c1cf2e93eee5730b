//! Configuration and commands by polling, the acknowledgement of commands, and what nodes did without one.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use ftagent_common::api::{CommandAck, NodeCommand, NodeConfig, ProfileReport};
use futures_util::stream;
use utoipa_axum::router::OpenApiRouter;

use crate::http::access::routes;
use crate::http::auth::Agent;
use crate::http::error::ApiError;
use crate::http::extract::JsonBody;
use crate::http::{Context, Done, answers};

/// What `VersionedConfig::answer` writes.
#[derive(serde::Serialize, utoipa::ToSchema)]
struct ConfigAnswer {
    /// Always true.
    #[schema(example = true)]
    ok: bool,
    #[serde(flatten)]
    config: NodeConfig,
}

answers! {
    CommandList { commands: Vec<NodeCommand> }
}

/// Shows what the node should do; 304 when `If-None-Match` names the version that it is.
#[utoipa::path(get, path = "/agent/config", tag = "agent",
    params(("If-None-Match" = Option<String>, Header, description = "The `ETag` of the configuration that the node has")),
    responses((status = 200, description = "The whole configuration", body = ConfigAnswer,
               headers(("ETag" = String, description = "The version, quoted"))),
              (status = 304, description = "The node has it already")))]
async fn config(agent: Agent, State(context): State<Context>, headers: HeaderMap) -> Result<Response, ApiError> {
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok());
    let versions = known.into_iter().flat_map(|tags| tags.split(',')).map(str::trim);
    let versions: Vec<u64> =
        versions.filter_map(|tag| tag.strip_prefix('"')?.strip_suffix('"')?.parse().ok()).collect();
    // Agents name one version; of several the newest is the most likely one.
    let (version, config) = context.app.node_config(agent.node, versions.iter().max().copied()).await?;
    match config.filter(|_| !versions.contains(&version)) {
        Some(config) => {
            let parts = config.answer();
            let length = parts.iter().map(Bytes::len).sum::<usize>();
            let json = HeaderValue::from_static("application/json");
            let headers = [
                (header::ETAG, etag(version)),
                (header::CONTENT_TYPE, json),
                (header::CONTENT_LENGTH, HeaderValue::from(length)),
            ];
            Ok((headers, Body::from_stream(stream::iter(parts.map(Ok::<_, Infallible>)))).into_response())
        }
        None => Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, etag(version))]).into_response()),
    }
}

fn etag(version: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\"")).expect("digits and quotes are a header value")
}

/// Lists the commands that the node did not acknowledge yet, oldest first: for nodes that poll.
#[utoipa::path(get, path = "/agent/commands", tag = "agent",
    responses((status = 200, description = "Commands", body = CommandList)))]
async fn commands(agent: Agent, State(context): State<Context>) -> Result<impl IntoResponse, ApiError> {
    Ok(CommandList::new(context.app.pending_commands(agent.node).await?))
}

/// Acknowledges a command; repeats are harmless.
#[utoipa::path(post, path = "/agent/commands/ack", tag = "agent", request_body = CommandAck,
    responses((status = 200, description = "Noted", body = Done)))]
async fn acknowledge(
    agent: Agent,
    State(context): State<Context>,
    JsonBody(ack): JsonBody<CommandAck>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.acknowledge(&agent.actor, agent.node, &ack).await?;
    Ok(Done::new(None))
}

/// Notes what became of a profile without an order; repeats are harmless.
#[utoipa::path(post, path = "/agent/profiles", tag = "agent", request_body = ProfileReport,
    responses((status = 200, description = "Noted", body = Done)))]
async fn profiles(
    agent: Agent,
    State(context): State<Context>,
    JsonBody(report): JsonBody<ProfileReport>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.note_profile(&agent.actor, agent.node, &report).await?;
    Ok(Done::new(None))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    let polled = OpenApiRouter::new().routes(routes!(config)).routes(routes!(commands));
    polled.routes(routes!(acknowledge)).routes(routes!(profiles))
}
