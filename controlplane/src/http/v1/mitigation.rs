//! Mitigation rules and the escalation policy.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::IntoResponse;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;

use super::rules::PageQuery;
use crate::domain::{BaselineMode, Escalation, EscalationChange, GeoLockdown, Intent, MitigationRule, NewMitigation};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::ApiError;
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, answers};

answers! {
    MitigationList { rules: Vec<MitigationRule>, total: u64 }
    MitigationAnswer { rule: MitigationRule }
    EscalationAnswer { escalation: Escalation }
}

/// A rule to be announced.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct MitigationBody {
    /// Address, or prefix in CIDR notation; at least /8 (IPv6 /19), and nothing that is allowlisted or contains what is.
    target_ip: String,
    intent_type: Intent,
    /// An adapter that is connected, has the intent among its capabilities and the target within its `config.prefixes`.
    adapter_id: i64,
    /// Seconds from now, 0 to 31,536,000; 0 by default: until it is withdrawn.
    #[serde(default)]
    #[schema(maximum = 31_536_000)]
    ttl: u32,
    /// At most 512 characters.
    #[serde(default)]
    #[schema(max_length = 512)]
    reason: String,
}

/// What to change of the policy; absent fields stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct EscalationBody {
    /// `tier1_bps` to `tier9_bps` (bits/s) and `tier1_pps` to `tier9_pps` (packets/s), 1 to 10^12; tiers must grow.
    /// Replaces all of them.
    thresholds: Option<BTreeMap<String, u64>>,
    /// Seconds that rules of `tier1` to `tier9` last, 0 to 31,536,000; 0: until they are withdrawn. Replaces all of them.
    ttl: Option<BTreeMap<String, u32>>,
    baseline_mode: Option<BaselineMode>,
    /// Null: no lockdown.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<GeoLockdown>)]
    geo_lockdown: Option<Option<GeoLockdown>>,
    /// Log actions without executing them; true until it is set.
    dry_run: Option<bool>,
}

/// Tells null from absent.
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(input: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(input).map(Some)
}

/// Lists the mitigation rules that have not ended: pending, active, withdrawing. Role: readonly.
#[utoipa::path(get, path = "/mitigation/rules", tag = "mitigation", params(PageQuery),
    responses((status = 200, description = "Rules, newest first", body = MitigationList)))]
async fn list(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.mitigations(&operator.actor, true, query.page()?).await?;
    Ok(MitigationList::new(listed.entries, listed.total))
}

/// Lists all mitigation rules, those that ended included. Role: readonly.
#[utoipa::path(get, path = "/mitigation/rules/history", tag = "mitigation", params(PageQuery),
    responses((status = 200, description = "Rules, newest first", body = MitigationList)))]
async fn history(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<PageQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let listed = context.app.mitigations(&operator.actor, false, query.page()?).await?;
    Ok(MitigationList::new(listed.entries, listed.total))
}

/// Makes a mitigation rule. It is `pending` in the answer, and `active` when the adapter confirmed it. 422 names
/// `adapter_id` where the adapter cannot be used, and `target_ip` where the guard refuses. 429: more than 100 rules
/// within a minute, or the target's last announcement ended less than 60 s ago. Role: admin.
#[utoipa::path(post, path = "/mitigation/rules", tag = "mitigation", request_body = MitigationBody,
    responses((status = 200, description = "The rule", body = MitigationAnswer)))]
async fn create(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<MitigationBody>,
) -> Result<impl IntoResponse, ApiError> {
    let MitigationBody { target_ip, intent_type, adapter_id, ttl, reason } = body;
    let new = NewMitigation::parse(&target_ip, intent_type, adapter_id, ttl, reason)?;
    Ok(MitigationAnswer::new(context.app.create_mitigation(&operator.actor, new).await?))
}

/// Withdraws a mitigation rule. It is `withdrawing` in the answer until the adapter confirmed it; a rule that was never
/// sent to its adapter is `withdrawn` at once, and one that has ended stays as it is. Role: admin.
#[utoipa::path(post, path = "/mitigation/rules/{id}/withdraw", tag = "mitigation",
    params(("id" = i64, Path, description = "The rule")),
    responses((status = 200, description = "The rule", body = MitigationAnswer)))]
async fn withdraw(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(MitigationAnswer::new(context.app.withdraw_mitigation(&operator.actor, id).await?))
}

/// Shows the escalation policy. It is kept and checked; nothing acts on it yet. Role: readonly.
#[utoipa::path(get, path = "/mitigation/escalation", tag = "mitigation",
    responses((status = 200, description = "The policy, or the defaults if none was saved", body = EscalationAnswer)))]
async fn escalation(operator: Operator<Read>, State(context): State<Context>) -> Result<impl IntoResponse, ApiError> {
    Ok(EscalationAnswer::new(context.app.escalation(&operator.actor).await?))
}

/// Saves the escalation policy. It is kept and checked; nothing acts on it yet. Role: admin.
#[utoipa::path(post, path = "/mitigation/escalation", tag = "mitigation", request_body = EscalationBody,
    responses((status = 200, description = "The policy as it is now", body = EscalationAnswer)))]
async fn save_escalation(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<EscalationBody>,
) -> Result<impl IntoResponse, ApiError> {
    let EscalationBody { thresholds, ttl, baseline_mode, geo_lockdown, dry_run } = body;
    let change = EscalationChange { thresholds, ttl, baseline_mode, geo_lockdown, dry_run };
    Ok(EscalationAnswer::new(context.app.save_escalation(&operator.actor, change).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(history))
        .routes(routes!(withdraw))
        .routes(routes!(escalation, save_escalation))
}
