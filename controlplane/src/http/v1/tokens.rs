//! Deploy tokens.

use axum::extract::State;
use axum::response::IntoResponse;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use super::rules::PageQuery;
use crate::domain::{NewToken, Role, Timestamp, Token};
use crate::http::access::routes;
use crate::http::auth::{Operator, Own, OwnRead};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, answers};

answers! {
    TokenList { tokens: Vec<Token>, total: u64 }
    TokenAnswer { token: Token }
    CreatedToken {
        token: Token,
        /// 64 hex characters, shown this once.
        value: String
    }
}

/// A token to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct TokenBody {
    /// 1 to 128 characters.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    role: Role,
    /// Requests a minute, 1 to 1,000,000; 1,000 by default.
    #[schema(minimum = 1, maximum = 1_000_000)]
    rate_limit: Option<u32>,
    /// When the token ends by itself; RFC 3339.
    expires_at: Option<Timestamp>,
}

/// Lists tokens, without their values. Role: owner.
#[utoipa::path(get, path = "/workspace/tokens", tag = "workspace", params(PageQuery),
    responses((status = 200, description = "Tokens, newest first", body = TokenList)))]
async fn list(
    operator: Operator<OwnRead>,
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.tokens(&operator.actor, query.page()?).await?;
    Ok(TokenList::new(listed.entries, listed.total))
}

/// Creates a token and shows its value, this once. Role: owner.
#[utoipa::path(post, path = "/workspace/tokens", tag = "workspace", request_body = TokenBody,
    responses((status = 200, description = "The token and its value", body = CreatedToken)))]
async fn create(
    operator: Operator<Own>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<TokenBody>,
) -> Result<impl IntoResponse, ApiError> {
    let TokenBody { name, role, rate_limit, expires_at } = body;
    let (token, value) =
        context.app.create_token(&operator.actor, NewToken { name, role, rate_limit, expires_at }).await?;
    Ok(CreatedToken::new(token, value.reveal().to_owned()))
}

/// Revokes a token at once; the last owner's is refused. Role: owner.
#[utoipa::path(delete, path = "/workspace/tokens/{id}", tag = "workspace", params(("id" = i64, Path, description = "The token")),
    responses((status = 200, description = "The token, revoked", body = TokenAnswer)))]
async fn revoke(
    operator: Operator<Own>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(TokenAnswer::new(context.app.revoke_token(&operator.actor, id).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(revoke))
}
