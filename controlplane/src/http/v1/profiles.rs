//! Attack profiles.

use axum::extract::State;
use axum::response::IntoResponse;
use ftagent_common::api::{Compiled, CustomRule, Kept, Suite};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::domain::{Application, NewApplication, Page, Problem, Profile, ProfileId, Verdict};
use crate::http::access::routes;
use crate::http::auth::{Manage, Operator, Read};
use crate::http::error::{ApiError, ErrorAnswer};
use crate::http::extract::{JsonBody, Path, Query};
use crate::http::{Context, answers};

answers! {
    ProfileList { profiles: Vec<Profile>, total: u64 }
    ProfileAnswer { profile: Profile }
    CompiledAnswer { profile: ProfileId, compiled: Compiled }
    Applied {
        /// Nodes that have the order now; each answers for itself: see `applications`.
        applied_to: usize,
        profile: ProfileId,
        suite: Suite,
        applications: Vec<Application>
    }
    ApplicationList { applications: Vec<Application>, total: u64 }
    ApplicationAnswer { application: Application }
}

/// What to compile.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CompileBody {
    profile_id: ProfileId,
    suite: Suite,
    /// The operator's own rules, behind those of the profile; at most 64.
    #[serde(default)]
    #[schema(max_items = 64)]
    rules: Vec<CustomRule>,
    /// What comes before the profile; SSH's port 22 by default. A node adds what it keeps by itself.
    #[serde(default)]
    keep: KeepBody,
}

/// What is never cut off.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct KeepBody {
    /// TCP ports, at most 15; 22 by default.
    #[schema(max_items = 15)]
    ports: Option<Vec<u16>>,
    /// Addresses or prefixes, at most 15.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 15)]
    sources: Vec<ipnet::IpNet>,
}

impl KeepBody {
    fn kept(self) -> Kept {
        Kept { ports: self.ports.unwrap_or_else(|| Kept::default().ports), sources: self.sources }
    }
}

/// What to put in force.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ApplyBody {
    profile_id: ProfileId,
    suite: Suite,
    /// Uuids of nodes, or `["all"]`.
    #[schema(min_items = 1, max_items = 10_000)]
    node_ids: Vec<String>,
    /// The operator's own rules, behind those of the profile; at most 64.
    #[serde(default)]
    #[schema(max_items = 64)]
    rules: Vec<CustomRule>,
    /// What comes before the profile; SSH's port 22 by default. Each node adds its control planes, its management
    /// sources, its allowlist and the ports of its SSH server.
    #[serde(default)]
    keep: KeepBody,
    /// Seconds until a node takes the profile back unless it is confirmed, 30 to 3,600; 120 by default.
    #[serde(default = "two_minutes")]
    #[schema(minimum = 30, maximum = 3_600)]
    confirm_secs: u32,
}

const fn two_minutes() -> u32 {
    120
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ApplicationQuery {
    /// Those of this node alone.
    node: Option<Uuid>,
    /// Applications per page, 1 to 500; 100 by default.
    #[param(minimum = 1, maximum = 500)]
    limit: Option<i64>,
    #[param(minimum = 0)]
    offset: Option<i64>,
}

/// Lists the attack profiles, in neutral words. Role: readonly.
#[utoipa::path(get, path = "/attack-profiles", tag = "attack-profiles",
    responses((status = 200, description = "All profiles", body = ProfileList)))]
async fn list(_: Operator<Read>) -> Result<impl IntoResponse, ApiError> {
    let profiles: Vec<_> = ProfileId::ALL.iter().map(|id| id.profile().clone()).collect();
    let total = profiles.len() as u64;
    Ok(ProfileList::new(profiles, total))
}

/// Shows an attack profile. Role: readonly.
#[utoipa::path(get, path = "/attack-profiles/{id}", tag = "attack-profiles",
    params(("id" = String, Path, description = "The profile, such as `saas`")),
    responses((status = 200, description = "The profile", body = ProfileAnswer)))]
async fn show(_: Operator<Read>, Path(id): Path<String>) -> Result<impl IntoResponse, ApiError> {
    let id = ProfileId::from_word(&id).ok_or(Problem::NotFound("profile"))?;
    Ok(ProfileAnswer::new(id.profile().clone()))
}

/// Shows a profile in a suite's words, and the steps of doing and undoing; stores nothing. Role: readonly.
#[utoipa::path(post, path = "/attack-profiles/preview", tag = "attack-profiles", request_body = CompileBody,
    responses((status = 200, description = "What nodes would do", body = CompiledAnswer)))]
async fn preview(
    _: Operator<Read>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<CompileBody>,
) -> Result<impl IntoResponse, ApiError> {
    let CompileBody { profile_id, suite, rules, keep } = body;
    let kept = keep.kept();
    Ok(CompiledAnswer::new(profile_id, context.app.preview_profile(profile_id, suite, &rules, &kept)?))
}

/// Orders nodes to put a profile in force on trial: confirmed in time, or taken back by the node. Role: admin.
#[utoipa::path(post, path = "/attack-profiles/apply", tag = "attack-profiles", request_body = ApplyBody,
    responses(
        (status = 200, description = "The nodes that have the order", body = Applied),
        (status = 409, description = "`already_exists`: a node has a profile", body = ErrorAnswer)))]
async fn apply(
    operator: Operator<Manage>,
    State(context): State<Context>,
    JsonBody(body): JsonBody<ApplyBody>,
) -> Result<impl IntoResponse, ApiError> {
    let ApplyBody { profile_id, suite, node_ids, rules, keep, confirm_secs } = body;
    let new = NewApplication::parse(profile_id, suite, &node_ids, rules, confirm_secs)?.keeping(keep.kept())?;
    let made = context.app.apply_profile(&operator.actor, &new).await?;
    Ok(Applied::new(made.len(), profile_id, suite, made))
}

/// Lists profiles on nodes and where they stand. Role: readonly.
#[utoipa::path(get, path = "/attack-profiles/applications", tag = "attack-profiles", params(ApplicationQuery),
    responses((status = 200, description = "Applications, newest first", body = ApplicationList)))]
async fn applications(
    operator: Operator<Read>,
    State(context): State<Context>,
    Query(query): Query<ApplicationQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let page = Page::new(query.limit, query.offset, 100, 500)?;
    let listed = context.app.applications(&operator.actor, query.node, page).await?;
    Ok(ApplicationList::new(listed.entries, listed.total))
}

/// Shows a profile on a node. Role: readonly.
#[utoipa::path(get, path = "/attack-profiles/applications/{id}", tag = "attack-profiles",
    params(("id" = i64, Path, description = "The application")),
    responses((status = 200, description = "The application", body = ApplicationAnswer)))]
async fn application(
    operator: Operator<Read>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(ApplicationAnswer::new(context.app.application(&operator.actor, id).await?))
}

/// Keeps a profile that is on trial. Role: admin.
#[utoipa::path(post, path = "/attack-profiles/applications/{id}/confirm", tag = "attack-profiles",
    params(("id" = i64, Path, description = "The application")),
    responses(
        (status = 200, description = "The application", body = ApplicationAnswer),
        (status = 409, description = "`already_exists`: it is not on trial", body = ErrorAnswer)))]
async fn confirm(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(ApplicationAnswer::new(context.app.decide_application(&operator.actor, id, Verdict::Confirm).await?))
}

/// Takes a profile back from its node, on trial or kept. Role: admin.
#[utoipa::path(post, path = "/attack-profiles/applications/{id}/rollback", tag = "attack-profiles",
    params(("id" = i64, Path, description = "The application")),
    responses(
        (status = 200, description = "The application", body = ApplicationAnswer),
        (status = 409, description = "`already_exists`: it was taken back, or never in force", body = ErrorAnswer)))]
async fn roll_back(
    operator: Operator<Manage>,
    State(context): State<Context>,
    Path(id): Path<i64>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(ApplicationAnswer::new(context.app.decide_application(&operator.actor, id, Verdict::RollBack).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(preview))
        .routes(routes!(apply))
        .routes(routes!(applications))
        .routes(routes!(application))
        .routes(routes!(confirm))
        .routes(routes!(roll_back))
        .routes(routes!(show))
}
