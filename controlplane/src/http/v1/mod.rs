//! The operators' API, one file per resource.

#![expect(unused_qualifications, reason = "utoipa's macros qualify the query types they are given")]

mod adapters;
mod allowlist;
mod audit;
mod deploy;
mod events;
mod export;
mod incidents;
mod mitigation;
mod nodes;
mod pcaps;
mod rules;
mod scrubbing;
mod thresholds;
mod tokens;
mod workspace;

use utoipa_axum::router::OpenApiRouter;

use super::Context;
pub(super) use deploy::routes as deploy_routes;

/// Everything below `/api/v1`, but for what agents call.
pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .merge(deploy::versioned_routes())
        .merge(nodes::routes())
        .merge(incidents::routes())
        .merge(export::routes())
        .merge(pcaps::routes())
        .merge(rules::routes())
        .merge(allowlist::routes())
        .merge(thresholds::routes())
        .merge(mitigation::routes())
        .merge(adapters::routes())
        .merge(scrubbing::routes())
        .merge(workspace::routes())
        .merge(tokens::routes())
        .merge(audit::routes())
        .merge(events::routes())
}
