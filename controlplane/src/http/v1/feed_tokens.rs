//! Tokens that read the feeds and nothing else.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use super::rules::PageQuery;
use crate::domain::{FeedToken, NewFeedToken, Timestamp};
use crate::http::access::routes;
use crate::http::auth::{Operator, Own, OwnRead};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, answers};

answers! {
    FeedTokenList { tokens: Vec<FeedToken>, total: u64 }
    FeedTokenAnswer { token: FeedToken }
    CreatedFeedToken {
        token: FeedToken,
        /// 64 hex characters, shown this once.
        value: String
    }
}

/// A feed token to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct FeedTokenBody {
    /// 1 to 128 characters.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    /// When the token ends by itself; RFC 3339.
    expires_at: Option<Timestamp>,
}

/// Lists feed tokens, without their values. Role: owner.
#[utoipa::path(get, path = "/workspace/feed-tokens", tag = "workspace", params(PageQuery),
    responses((status = 200, description = "Feed tokens, newest first", body = FeedTokenList)))]
async fn list(
    operator: Operator<OwnRead>,
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.feed_tokens(&operator.actor, query.page()?).await?;
    Ok(FeedTokenList::new(listed.entries, listed.total))
}

/// Creates a feed token, at most 100 that are not revoked, and shows its value, this once. Role: owner.
#[utoipa::path(post, path = "/workspace/feed-tokens", tag = "workspace", request_body = FeedTokenBody,
    responses((status = 200, description = "The feed token and its value", body = CreatedFeedToken)))]
async fn create(
    operator: Operator<Own>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<FeedTokenBody>,
) -> Result<impl IntoResponse, ApiError> {
    let new = NewFeedToken { name: body.name, expires_at: body.expires_at };
    let (token, value) = context.app.create_feed_token(&operator.actor, new).await?;
    Ok(CreatedFeedToken::new(token, value.reveal().to_owned()))
}

/// Revokes a feed token at once. Role: owner.
#[utoipa::path(delete, path = "/workspace/feed-tokens/{id}", tag = "workspace",
    params(("id" = i64, Path, description = "The feed token")),
    responses((status = 200, description = "The feed token, revoked", body = FeedTokenAnswer)))]
async fn revoke(
    operator: Operator<Own>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(FeedTokenAnswer::new(context.app.revoke_feed_token(&operator.actor, id).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(revoke))
}
