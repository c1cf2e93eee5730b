//! What happens, as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use tokio::sync::broadcast::error::RecvError;
use utoipa_axum::router::OpenApiRouter;

use crate::http::Context;
use crate::http::access::routes;
use crate::http::auth::{Operator, Read};

/// Tells of incidents, rule changes and node status as they happen (server-sent events). A watcher that fell behind
/// gets the event `missed` and should read the lists again. Role: readonly.
#[utoipa::path(get, path = "/events", tag = "events",
    responses((status = 200, description = "Events without end", body = String, content_type = "text/event-stream")))]
async fn events(operator: Operator<Read>, State(context): State<Context>) -> impl IntoResponse {
    let workspace = operator.actor.workspace();
    let listener = context.app.events().listen();
    let stream = stream::unfold((listener, context.draining.clone()), move |(mut listener, mut draining)| async move {
        loop {
            let received = tokio::select! {
                received = listener.recv() => received,
                _ = draining.wait_for(|d| *d) => return None,
            };
            let event = match received {
                Ok(event) if event.workspace.is_none_or(|of| of == workspace) => {
                    Event::default().event(event.kind).data(event.data.to_string())
                }
                Ok(_) => continue,
                Err(RecvError::Lagged(missed)) => {
                    Event::default().event("missed").data(format!("{{\"events\":{missed}}}"))
                }
                Err(RecvError::Closed) => return None,
            };
            return Some((Ok::<_, Infallible>(event), (listener, draining)));
        }
    });
    Sse::new(stream).keep_alive(KeepAlive::new().interval(Duration::from_secs(15)))
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(events))
}
