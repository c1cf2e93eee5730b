//! HTTP: parse the request, call `app`, write the answer. No SQL, no decisions.

mod access;
pub(crate) mod agent;
mod auth;
mod error;
mod extract;
mod json;
mod layers;
mod limits;
mod openapi;
mod pace;
mod system;
mod telemetry;
mod v1;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use tokio::sync::watch;
use utoipa_axum::router::OpenApiRouter;

use crate::app::App;
use crate::domain::Fingerprint;
pub use limits::AUTHENTICATION;
use limits::Limiter;
use telemetry::Telemetry;
pub use telemetry::{Handshakes, Outcome};

/// What every handler can reach; copies are cheap, and every layer makes one.
#[derive(Clone)]
pub struct Context(Arc<Reach>);

#[derive(Clone)]
pub struct Reach {
    pub(crate) app: Arc<App>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) gates: Arc<layers::Gates>,
    pub(crate) turns: Arc<pace::Turns>,
    /// Wrong credentials a minute and address.
    pub(crate) auth_failures: u32,
    /// Whether nodes must show a client certificate.
    pub(crate) require_certificates: bool,
    /// Turns true when the server drains: long answers end.
    pub(crate) draining: watch::Receiver<bool>,
}

impl Deref for Context {
    type Target = Reach;

    fn deref(&self) -> &Reach {
        &self.0
    }
}

impl Context {
    pub fn new(app: Arc<App>, auth_failures: u32, draining: watch::Receiver<bool>) -> Self {
        Self(Arc::new(Reach {
            app,
            limiter: Arc::default(),
            telemetry: Arc::default(),
            gates: Arc::default(),
            turns: Arc::default(),
            auth_failures,
            require_certificates: false,
            draining,
        }))
    }

    /// With nodes that must show a client certificate, or need not.
    #[must_use]
    pub fn requiring_certificates(self, require_certificates: bool) -> Self {
        Self(Arc::new(Reach { require_certificates, ..Arc::unwrap_or_clone(self.0) }))
    }

    /// Counts what becomes of TLS handshakes.
    pub fn handshakes(&self) -> Handshakes {
        self.telemetry.handshakes()
    }
}

/// An answer's shape: `ok`, and what was asked for under its name.
macro_rules! answers {
    ($($(#[$meta:meta])* $name:ident { $($(#[$fmeta:meta])* $field:ident: $ty:ty),+ $(,)? })+) => {
        $($(#[$meta])*
        #[derive(serde::Serialize, utoipa::ToSchema)]
        pub(crate) struct $name {
            /// Always true.
            #[schema(example = true)]
            ok: bool,
            $($(#[$fmeta])* $field: $ty),+
        }

        impl $name {
            #[allow(clippy::too_many_arguments, reason = "one argument for each field")]
            pub(crate) fn new($($field: $ty),+) -> axum::Json<Self> {
                axum::Json(Self { ok: true, $($field),+ })
            }
        })+
    };
}
pub(crate) use answers;

/// What the connection of a request showed in its TLS handshake; absent where there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Of the client certificate, whose chain and times were verified.
    pub certificate: Option<Fingerprint>,
}

answers! {
    /// It was done; there is nothing to show.
    Done { #[serde(skip_serializing_if = "Option::is_none")] id: Option<i64> }
}

/// What one host can have of the addresses: callers are counted by it.
pub(crate) fn address_of(ip: std::net::IpAddr) -> std::net::IpAddr {
    limits::Bucket::of_address(ip)
}

fn api() -> OpenApiRouter<Context> {
    OpenApiRouter::with_openapi(openapi::base())
        .merge(system::routes())
        .merge(v1::deploy_routes())
        .nest("/api/v1", v1::routes().merge(agent::routes()))
}

/// The OpenAPI document.
pub fn document() -> utoipa::openapi::OpenApi {
    openapi::complete(api().split_for_parts().1)
}

/// All of it, ready to serve. With `metrics` false, `/metrics` is left to a listener of its own.
pub fn router(context: Context, metrics: bool) -> Router {
    let (routes, document) = api().split_for_parts();
    let document = Arc::new(openapi::complete(document));
    let mut router = routes.merge(openapi::routes(document));
    if metrics {
        router = router.merge(system::metrics_route());
    }
    router
        .fallback(|| async { error::ApiError::not_found() })
        .method_not_allowed_fallback(|| async { error::ApiError::method() })
        .layer(from_fn_with_state(context.clone(), layers::remember_answers))
        .layer(from_fn(layers::survive_panics))
        .layer(from_fn_with_state(context.clone(), layers::finish))
        .with_state(context)
}

/// `/metrics` alone, for a listener of its own.
pub fn metrics_router(context: Context) -> Router {
    system::metrics_route().fallback(|| async { error::ApiError::not_found() }).with_state(context)
}
