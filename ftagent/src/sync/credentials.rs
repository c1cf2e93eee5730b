//! Who the node is to the control plane: its UUID and key, got once with the deploy token.

use std::fmt;
use std::path::{Path, PathBuf};

use ftagent_common::api::{DeployRequest, DeployResponse};
use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::answer::{Fate, fate};
use super::http::{Call, Connection};
use super::{LinkError, ServerError};
use crate::persist::{self, Loaded};

/// Text that never appears in logs or in `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes the text without the white space around it.
    pub fn new(text: &str) -> Self {
        Self(text.trim().into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A deployed node's identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    pub node_uuid: Uuid,
    pub api_key: Secret,
}

/// The file in the state directory.
pub(super) fn file(state_dir: &Path) -> PathBuf {
    state_dir.join("node.json")
}

impl Credentials {
    /// The key file's content; nothing if the node was not deployed yet or the file is corrupt (it is moved aside).
    pub(super) fn load(state_dir: &Path, unix_secs: i64) -> Result<Option<Self>, LinkError> {
        match persist::load_json(&file(state_dir), unix_secs)? {
            Loaded::There(credentials) => Ok(Some(credentials)),
            Loaded::Missing => Ok(None),
            Loaded::Corrupt { moved_to, why } => {
                let moved_to = moved_to.display();
                tracing::error!(%moved_to, why, "the node key's file is corrupt: the node has to be deployed again");
                Ok(None)
            }
        }
    }

    /// The headers of every request of a node.
    pub(super) fn headers(&self) -> Result<HeaderMap, ServerError> {
        let mut headers = bearer(&self.api_key, "the node key")?;
        let uuid = HeaderValue::from_str(&self.node_uuid.to_string()).expect("a UUID is header text");
        headers.insert(HeaderName::from_static("x-node-uuid"), uuid);
        Ok(headers)
    }
}

fn bearer(secret: &Secret, what: &'static str) -> Result<HeaderMap, ServerError> {
    let value = HeaderValue::from_str(&format!("Bearer {}", secret.expose()));
    let mut value = value.map_err(|_| ServerError::Secret { what })?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

/// What became of one try to deploy.
pub(super) enum Deployed {
    Yes(Credentials),
    /// Try again, not before `after` if it is given.
    Not {
        after: Option<std::time::Duration>,
        why: String,
        operator: bool,
    },
}

/// Makes this machine a node, once.
pub(super) async fn deploy(
    connection: &mut Connection,
    token: &Secret,
    request: &DeployRequest,
) -> Result<Deployed, LinkError> {
    let headers = bearer(token, "the deploy token")?;
    let body = serde_json::to_vec(request).expect("plain text fields are JSON");
    let call = Call { method: Method::POST, path: "/api/deploy", headers: &headers, body: Some(body.into()) };
    let answer = match connection.call(&call, 64 << 10).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Deployed::Not { after: None, why: error.to_string(), operator: false }),
    };
    let not = |after, why, operator| Ok(Deployed::Not { after, why, operator });
    match fate(answer.status, answer.header(hyper::header::RETRY_AFTER), &answer.body) {
        Fate::Delivered => match serde_json::from_slice::<DeployResponse>(&answer.body) {
            Ok(DeployResponse { node_uuid, api_key, .. }) => {
                Ok(Deployed::Yes(Credentials { node_uuid, api_key: Secret::new(&api_key) }))
            }
            Err(error) => not(None, format!("the answer to the deployment makes no sense: {error}"), true),
        },
        Fate::Retry { after, why } => not(after, why, false),
        Fate::Refused { why } => not(None, format!("the control plane refuses the deployment: {why}"), true),
        Fate::Credentials { why } => {
            not(None, format!("the deploy token is not accepted: {why}; give a valid one"), true)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_itself_to_nobody() {
        let credentials = Credentials { node_uuid: Uuid::nil(), api_key: Secret::new(" f00d\n") };
        assert!(!format!("{credentials:?} {:?}", credentials.headers().unwrap()).contains("f00d"));
        assert_eq!(credentials.headers().unwrap()[AUTHORIZATION], "Bearer f00d");
    }

    #[test]
    fn a_key_that_is_no_header_text_is_named() {
        let error = bearer(&Secret::new("a\nb"), "the node key").unwrap_err().to_string();
        assert!(error.contains("the node key") && !error.contains("a\nb"), "{error}");
    }
}
