//! Who calls, and whether they may: extractors that every handler names as its first argument.
//!
//! A handler cannot forget the check: without the extractor it has no [`Actor`], and no use case runs without one.

use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use uuid::Uuid;

use super::access::{Access, Asks};
use super::error::ApiError;
use super::limits::{Bucket, FEEDS, GENERAL, HEARTBEATS, METRICS, Rate, RateSlot};
use super::{Context, Peer};
use crate::domain::{
    Actor, Fingerprint, NotAdmitted, Problem, Role, Secret, Subscription, WorkspaceId, admit, may_enroll,
};
use crate::store::{Known, NodeAccess};

/// What a handler asks of its caller.
pub(crate) trait Need: Send + Sync {
    const ROLE: Role;
    /// Whether the workspace must have an active subscription.
    const WRITES: bool;
}

/// Any token; reads.
pub(crate) struct Read;
/// At least analyst; writes.
pub(crate) struct Analyse;
/// At least admin; writes.
pub(crate) struct Manage;
/// At least admin; reads.
pub(crate) struct Inspect;
/// Owner; writes.
pub(crate) struct Own;
/// Owner; reads.
pub(crate) struct OwnRead;

macro_rules! needs {
    ($($need:ident: $role:ident, $writes:literal;)+) => {
        $(impl Need for $need {
            const ROLE: Role = Role::$role;
            const WRITES: bool = $writes;
        })+
    };
}
needs! {
    Read: Readonly, false;
    Analyse: Analyst, true;
    Manage: Admin, true;
    Inspect: Admin, false;
    Own: Owner, true;
    OwnRead: Owner, false;
}

/// A caller with a deploy token that allows what the handler needs.
pub(crate) struct Operator<N: Need> {
    pub(crate) actor: Actor,
    need: PhantomData<N>,
}

impl<N: Need> Asks for Operator<N> {
    const ACCESS: Access = Access::Token(N::ROLE);
}

impl<N: Need> FromRequestParts<Context> for Operator<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, ApiError> {
        let (actor, subscription) = authenticate(parts, context).await?;
        let Actor::Token { role, .. } = &actor else {
            return Err(Problem::Forbidden("a node key may only use /agent and read its own node".to_owned()).into());
        };
        if *role < N::ROLE {
            let message = format!("this needs the role {}, the token has {}", N::ROLE.as_str(), role.as_str());
            return Err(Problem::Forbidden(message).into());
        }
        if N::WRITES && subscription == Subscription::Inactive {
            return Err(Problem::SubscriptionRequired.into());
        }
        Ok(Self { actor, need: PhantomData })
    }
}

/// A caller who reads a node: any deploy token, or the node itself.
pub(crate) struct NodeReader {
    pub(crate) actor: Actor,
}

impl NodeReader {
    /// # Errors
    /// Another node's key.
    pub(crate) fn may_read(&self, node: Uuid) -> Result<(), ApiError> {
        match &self.actor {
            Actor::Node { uuid, .. } if *uuid != node => {
                Err(Problem::Forbidden("a node key may read its own node only".to_owned()).into())
            }
            _ => Ok(()),
        }
    }
}

impl Asks for NodeReader {
    const ACCESS: Access = Access::TokenOrOwnNode(Role::Readonly);
}

impl FromRequestParts<Context> for NodeReader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, ApiError> {
        Ok(Self { actor: authenticate(parts, context).await?.0 })
    }
}

/// A caller with a feed token.
pub(crate) struct FeedReader {
    pub(crate) workspace: WorkspaceId,
}

impl Asks for FeedReader {
    const ACCESS: Access = Access::Feed;
}

impl FromRequestParts<Context> for FeedReader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, ApiError> {
        let secret = presented(parts, context).await?;
        if let Some(workspace) = feed_workspace(parts, context, &secret).await? {
            return Ok(Self { workspace });
        }
        // A credential of another kind is told from one that is none.
        authenticate(parts, context).await?;
        Err(Problem::Forbidden("the feeds need a feed token: create one at /workspace/feed-tokens".to_owned()).into())
    }
}

/// The workspace that a feed token is for, or none if it is no feed token; counted against the token's limit.
async fn feed_workspace(parts: &Parts, context: &Context, secret: &Secret) -> Result<Option<WorkspaceId>, ApiError> {
    let Some(known) = context.app.feed_token_of(secret).await? else { return Ok(None) };
    if known.expires_at.is_some_and(|at| at <= context.app.now()) {
        return Err(ApiError::expired());
    }
    pace(parts, context, Bucket::Feed(known.id), FEEDS).await?;
    Ok(Some(known.workspace))
}

/// Which of a node's limits a call counts against.
pub(crate) trait Pace: Send + Sync {
    fn bucket(node: Uuid) -> (Bucket, u32);
}

pub(crate) struct GeneralPace;
pub(crate) struct HeartbeatPace;
pub(crate) struct MetricsPace;

impl Pace for GeneralPace {
    fn bucket(node: Uuid) -> (Bucket, u32) {
        (Bucket::Node(node), GENERAL)
    }
}

impl Pace for HeartbeatPace {
    fn bucket(node: Uuid) -> (Bucket, u32) {
        (Bucket::Heartbeats(node), HEARTBEATS)
    }
}

impl Pace for MetricsPace {
    fn bucket(node: Uuid) -> (Bucket, u32) {
        (Bucket::Metrics(node), METRICS)
    }
}

/// A caller with a node key.
pub(crate) struct Agent<P: Pace = GeneralPace> {
    pub(crate) node: Uuid,
    pub(crate) actor: Actor,
    /// The client certificate of the connection, which is one of this node.
    pub(crate) shown: Option<Fingerprint>,
    pace: PhantomData<P>,
}

impl<P: Pace> Asks for Agent<P> {
    const ACCESS: Access = Access::Node;
}

impl<P: Pace> FromRequestParts<Context> for Agent<P> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, ApiError> {
        let secret = presented(parts, context).await?;
        let Some(node) = claimed_node(&parts.headers) else {
            return Err(refuse(parts, context, "this needs a node key and the node's uuid in X-Node-UUID").await);
        };
        let actor = known_node(parts, context, node, &secret).await?.actor;
        let (bucket, limit) = P::bucket(node);
        pace(parts, context, bucket, limit).await?;
        Ok(Self { node, actor, shown: shown(parts), pace: PhantomData })
    }
}

/// A node that may get a certificate: it need not have one yet.
pub(crate) struct Enrolling {
    pub(crate) node: Uuid,
    pub(crate) actor: Actor,
}

impl Asks for Enrolling {
    const ACCESS: Access = Access::Node;
}

impl FromRequestParts<Context> for Enrolling {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, context: &Context) -> Result<Self, ApiError> {
        let secret = presented(parts, context).await?;
        let Some(node) = claimed_node(&parts.headers) else {
            return Err(refuse(parts, context, "this needs a node key and the node's uuid in X-Node-UUID").await);
        };
        let Some(access) = context.app.node_as_it_is(node, &secret, shown(parts)).await? else {
            return Err(refuse(parts, context, UNKNOWN_NODE).await);
        };
        let (required, shown, now) = (context.require_certificates, shown(parts).is_some(), context.app.now());
        if let Err(refused) = may_enroll(required, shown, access.standing, access.enroll_until, now) {
            return Err(not_admitted(parts, context, node, refused).await);
        }
        pace(parts, context, Bucket::Node(node), GENERAL).await?;
        Ok(Self { node, actor: access.known.actor })
    }
}

/// The address that the request came from.
pub(crate) fn address(parts: &Parts) -> IpAddr {
    let peer = parts.extensions.get::<ConnectInfo<SocketAddr>>();
    Bucket::of_address(peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |info| info.0.ip()))
}

/// The caller of any kind, once per request.
pub(crate) async fn authenticate(parts: &mut Parts, context: &Context) -> Result<(Actor, Subscription), ApiError> {
    if let Some(known) = parts.extensions.get::<Authenticated>() {
        return Ok((known.0.clone(), known.1));
    }
    let secret = presented(parts, context).await?;
    let (known, bucket, limit) = if let Some(node) = claimed_node(&parts.headers) {
        (known_node(parts, context, node, &secret).await?, Bucket::Node(node), GENERAL)
    } else {
        let Some(known) = context.app.token_of(&secret).await? else {
            if feed_workspace(parts, context, &secret).await?.is_some() {
                return Err(Problem::Forbidden("a feed token may only read the feeds".to_owned()).into());
            }
            return Err(refuse(parts, context, "the token is unknown or revoked").await);
        };
        if known.expires_at.is_some_and(|at| at <= context.app.now()) {
            return Err(ApiError::expired());
        }
        let Actor::Token { id, rate_limit, .. } = &known.actor else { return Err(ApiError::internal()) };
        let (id, limit) = (*id, rate_limit.unwrap_or(GENERAL));
        (known, Bucket::Token(id), limit)
    };
    pace(parts, context, bucket, limit).await?;
    parts.extensions.insert(Authenticated(known.actor.clone(), known.subscription));
    Ok((known.actor, known.subscription))
}

#[derive(Clone)]
struct Authenticated(Actor, Subscription);

const UNKNOWN_NODE: &str = "the node is unknown or the key is not its own";

fn claimed_node(headers: &HeaderMap) -> Option<Uuid> {
    headers.get("x-node-uuid")?.to_str().ok()?.parse().ok()
}

async fn known_node(parts: &Parts, context: &Context, node: Uuid, secret: &Secret) -> Result<Known, ApiError> {
    let access = access(parts, context, node, secret).await?;
    let admitted = admit(context.require_certificates, shown(parts).is_some(), access.standing, context.app.now());
    match admitted {
        Ok(()) => Ok(access.known),
        Err(refused) => Err(not_admitted(parts, context, node, refused).await),
    }
}

async fn access(parts: &Parts, context: &Context, node: Uuid, secret: &Secret) -> Result<NodeAccess, ApiError> {
    match context.app.node_of(node, secret, shown(parts)).await? {
        Some(access) => Ok(access),
        None => Err(refuse(parts, context, UNKNOWN_NODE).await),
    }
}

/// The client certificate of the connection.
fn shown(parts: &Parts) -> Option<Fingerprint> {
    parts.extensions.get::<Peer>()?.certificate
}

/// 403: the key is right, and the certificate is not. It counts against the node, for nothing is guessed here.
async fn not_admitted(parts: &Parts, context: &Context, node: Uuid, why: NotAdmitted) -> ApiError {
    match pace(parts, context, Bucket::Node(node), GENERAL).await {
        Ok(()) => Problem::Forbidden(why.to_string()).into(),
        Err(too_many) => too_many,
    }
}

/// The credential that was presented.
async fn presented(parts: &Parts, context: &Context) -> Result<Secret, ApiError> {
    let Some(value) = parts.headers.get(header::AUTHORIZATION) else {
        return Err(refuse(parts, context, "send Authorization: Bearer and a token").await);
    };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    match token.and_then(Secret::parse) {
        Some(secret) => Ok(secret),
        None => Err(refuse(parts, context, "the token must be 64 hex characters").await),
    }
}

/// Counts a wrong credential: 401, or 429 once there were too many of them from this address.
async fn refuse(parts: &Parts, context: &Context, why: &str) -> ApiError {
    let now = context.app.now();
    let rate = context.count(Bucket::Failures(address(parts)), context.auth_failures).await;
    note(parts, rate);
    if rate.exceeded { ApiError::rate_limited(rate.retry_after(now)) } else { ApiError::credentials(why) }
}

async fn pace(parts: &Parts, context: &Context, bucket: Bucket, limit: u32) -> Result<(), ApiError> {
    let now = context.app.now();
    let rate = context.count(bucket, limit).await;
    note(parts, rate);
    if rate.exceeded { Err(ApiError::rate_limited(rate.retry_after(now))) } else { Ok(()) }
}

fn note(parts: &Parts, rate: Rate) {
    if let Some(slot) = parts.extensions.get::<RateSlot>() {
        slot.note(rate);
    }
}
