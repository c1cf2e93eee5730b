//! The push stream: what a commit changes is on its way at once.
//!
//! ```text
//! commit --> wake-up (no data) --> each stream of the node reads the newest state --> one line of JSON
//! ```
//! A stream reads only when its connection takes more, so a slow one holds nobody up and nothing queues for it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use bytes::Bytes;
use ftagent_common::api::StreamMessage;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::warn;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;

use crate::app::{App, News, STREAM_PING_SECS, StreamLine, StreamState, Subscription};
use crate::http::Context;
use crate::http::access::routes;
use crate::http::auth::Agent;
use crate::http::error::ApiError;
use crate::http::extract::Query;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct StreamQuery {
    /// The configuration version that the node has; without it the first line is the whole configuration.
    #[param(minimum = 0)]
    from: Option<u64>,
}

/// Pushes configuration and commands as newline-delimited JSON, the moment they are committed, until one side ends.
#[utoipa::path(get, path = "/agent/stream", tag = "agent", params(StreamQuery),
    responses((status = 200, description = "One message a line", body = StreamMessage, content_type = "application/x-ndjson")))]
async fn stream(
    agent: Agent,
    State(context): State<Context>,
    Query(query): Query<StreamQuery>,
) -> Result<impl IntoResponse, ApiError> {
    let subscription = context.app.pushes().subscribe(agent.node, agent.actor.workspace());
    let mut state = StreamState::new(agent.node, query.from, agent.shown);
    // The first lines are read before the answer begins, so that a fault is still a 503.
    let first = context.app.poll_stream(&mut state, News::Own).await?;
    let (app, draining) = (context.app.clone(), context.draining.clone());
    let lines = Lines { app, draining, subscription, state, ready: first, parts: VecDeque::new() };
    let body = Body::from_stream(stream::unfold(lines, |mut lines| async {
        let line = lines.next().await?;
        Some((Ok::<_, Infallible>(line), lines))
    }));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body))
}

struct Lines {
    app: Arc<App>,
    draining: watch::Receiver<bool>,
    subscription: Subscription,
    state: StreamState,
    ready: VecDeque<StreamLine>,
    /// Of those that were ready, what is not sent yet.
    parts: VecDeque<Bytes>,
}

impl Lines {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(part) = self.parts.pop_front() {
            return Some(part);
        }
        if self.ready.is_empty() {
            let news = tokio::select! {
                news = self.subscription.woken() => news?,
                // Whatever was not heard of is seen now.
                () = sleep(Duration::from_secs(STREAM_PING_SECS)) => News::Own,
                _ = self.draining.wait_for(|d| *d) => return None,
            };
            self.ready = match self.app.poll_stream(&mut self.state, news).await {
                Ok(messages) => messages,
                Err(fault) => {
                    warn!(error = %fault, "an agent's stream ends: it will come again");
                    return None;
                }
            };
        }
        // Parts that are ready go out together: the connection asks for the next before it sends.
        while let Some(line) = self.ready.pop_front() {
            match line {
                StreamLine::Config(config) => self.parts.extend(config.line()),
                StreamLine::Message(message) => {
                    let mut line =
                        serde_json::to_vec(&message).expect("wire types have string keys and always serialise");
                    line.push(b'\n');
                    self.parts.push_back(line.into());
                }
            }
        }
        self.parts.pop_front()
    }
}

pub(super) fn routes() -> OpenApiRouter<Context> {
    OpenApiRouter::new().routes(routes!(stream))
}
