//! The operators' API, one file per resource.

#![expect(unused_qualifications, reason = "utoipa's macros qualify the query types they are given")]

mod adapters;
mod allowlist;
mod audit;
mod channels;
mod deploy;
mod destinations;
mod events;
mod export;
mod feed_tokens;
mod feeds;
mod incidents;
mod indicators;
mod integrations;
mod lines;
mod maintenance;
mod mitigation;
mod nodes;
mod pcaps;
mod profiles;
mod rules;
mod runbooks;
mod scrubbing;
mod staged;
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
        .merge(staged::routes())
        .merge(profiles::routes())
        .merge(allowlist::routes())
        .merge(thresholds::routes())
        .merge(mitigation::routes())
        .merge(adapters::routes())
        .merge(scrubbing::routes())
        .merge(runbooks::routes())
        .merge(workspace::routes())
        .merge(tokens::routes())
        .merge(feed_tokens::routes())
        .merge(feeds::routes())
        .merge(indicators::routes())
        .merge(maintenance::routes())
        .merge(channels::routes())
        .merge(integrations::routes())
        .merge(audit::routes())
        .merge(events::routes())
}
