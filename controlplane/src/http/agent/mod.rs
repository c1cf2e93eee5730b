//! What agents call: `Authorization: Bearer <node key>` and `X-Node-UUID`.

#![expect(unused_qualifications, reason = "utoipa's macros qualify the query types they are given")]

mod certificate;
mod config;
mod heartbeat;
mod incidents;
mod multipart;
mod pcap;
mod stream;

use utoipa_axum::router::OpenApiRouter;

use super::Context;

/// Everything below `/api/v1/agent`.
pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new()
        .merge(heartbeat::routes())
        .merge(config::routes())
        .merge(stream::routes())
        .merge(certificate::routes())
        .merge(incidents::routes())
        .merge(pcap::routes())
}
