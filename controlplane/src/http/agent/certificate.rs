//! A node asks for a client certificate, its first or its next one.

use axum::extract::State;
use axum::response::IntoResponse;
use ftagent_common::api::{CertificateRequest, IssuedCertificate};
use utoipa_axum::router::OpenApiRouter;

use crate::http::access::routes;
use crate::http::auth::Enrolling;
use crate::http::error::ApiError;
use crate::http::extract::JsonBody;
use crate::http::{Context, answers};

answers! { CertificateAnswer { #[serde(flatten)] certificate: IssuedCertificate } }

/// Signs the node's request for a client certificate; at most 20 a day. With a certificate that still holds it is
/// renewed; where certificates are required, the first one needs a node that was just deployed or that an operator lets
/// enrol. 404 where the control plane has no authority.
#[utoipa::path(post, path = "/agent/certificate", tag = "agent", request_body = CertificateRequest,
    responses((status = 200, description = "The certificate, and whom to trust", body = CertificateAnswer)))]
async fn certificate(
    agent: Enrolling,
    State(context): State<Context>,
    JsonBody(request): JsonBody<CertificateRequest>,
) -> Result<impl IntoResponse, ApiError> {
    Ok(CertificateAnswer::new(context.app.issue(&agent.actor, agent.node, &request).await?))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(certificate))
}
