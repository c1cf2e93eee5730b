//! Notification channels.

use axum::extract::State;
use axum::response::IntoResponse;
use utoipa_axum::router::OpenApiRouter;

use super::destinations::{DeliveryAnswer, DeliveryList, DestinationBody, DestinationChange};
use super::rules::PageQuery;
use crate::domain::{Destination, Duty};
use crate::http::access::routes;
use crate::http::auth::{Inspect, Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, Done, answers};

answers! {
    ChannelList { channels: Vec<Destination>, total: u64 }
    ChannelAnswer { channel: Destination }
    ChannelMade {
        channel: Destination,
        /// Of a webhook that was given none: the secret that signs, shown this once.
        signing_secret: Option<String>
    }
}

/// Lists notification channels. Role: readonly.
#[utoipa::path(get, path = "/channels", tag = "channels", params(PageQuery),
    responses((status = 200, description = "Channels, newest first", body = ChannelList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.destinations(&operator.actor, Duty::Channel, query.page()?).await?;
    Ok(ChannelList::new(listed.entries, listed.total))
}

/// Makes a notification channel. Only webhooks are sent to yet; other kinds are kept as `not_connected`. Role: admin.
#[utoipa::path(post, path = "/channels", tag = "channels", request_body = DestinationBody,
    responses((status = 200, description = "The channel", body = ChannelMade)))]
async fn create(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<DestinationBody>,
) -> Result<impl IntoResponse, ApiError> {
    let made = context.app.create_destination(&operator.actor, Duty::Channel, body.into_new()).await?;
    Ok(ChannelMade::new(made.destination, made.signing_secret))
}

/// Shows a notification channel, with its state and without its secrets. Role: readonly.
#[utoipa::path(get, path = "/channels/{id}", tag = "channels", params(("id" = i64, Path, description = "The channel")),
    responses((status = 200, description = "The channel", body = ChannelAnswer)))]
async fn show(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(ChannelAnswer::new(context.app.destination(&operator.actor, Duty::Channel, id).await?))
}

/// Changes a notification channel; its circuit closes. Its kind stays. Role: admin.
#[utoipa::path(patch, path = "/channels/{id}", tag = "channels", params(("id" = i64, Path, description = "The channel")),
    request_body = DestinationChange, responses((status = 200, description = "The channel", body = ChannelAnswer)))]
async fn patch(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    JsonBody(body): JsonBody<DestinationChange>,
) -> Result<impl IntoResponse, ApiError> {
    let changed = context.app.patch_destination(&operator.actor, Duty::Channel, id, body.into_patch()).await?;
    Ok(ChannelAnswer::new(changed))
}

/// Deletes a notification channel with its history and what waits for it. Role: admin.
#[utoipa::path(delete, path = "/channels/{id}", tag = "channels", params(("id" = i64, Path, description = "The channel")),
    responses((status = 200, description = "Deleted", body = Done)))]
async fn delete(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    context.app.delete_destination(&operator.actor, Duty::Channel, id).await?;
    Ok(Done::new(Some(id)))
}

/// Sends a sample now, once, and says what became of it: `delivered`, or `failed` and why. Role: admin.
#[utoipa::path(post, path = "/channels/{id}/test", tag = "channels", params(("id" = i64, Path, description = "The channel")),
    responses(
        (status = 200, description = "What became of the sample", body = DeliveryAnswer),
        (status = 422, description = "`validation_error`: this version cannot send to the kind: `not_connected`",
            body = crate::http::error::ErrorAnswer)))]
async fn test(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(DeliveryAnswer::new(context.app.test_destination(&operator.actor, Duty::Channel, id).await?))
}

/// Lists what was sent and what waits, with the last answer. Role: admin.
#[utoipa::path(get, path = "/channels/{id}/deliveries", tag = "channels",
    params(("id" = i64, Path, description = "The channel"), PageQuery),
    responses((status = 200, description = "Deliveries, newest first", body = DeliveryList)))]
async fn deliveries(
    operator: Operator<Inspect>,
    State(context): State<Context>,
    Path(id): Path<i64>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.deliveries(&operator.actor, Duty::Channel, id, query.page()?).await?;
    Ok(DeliveryList::new(listed.entries, listed.total))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, patch, delete))
        .routes(routes!(test))
        .routes(routes!(deliveries))
}
