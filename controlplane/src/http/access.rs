//! Who may call an operation: read from the type of its handler's first argument, which is also what checks it.
//!
//! So the document, `docs/authorization.md` and the check cannot differ. A handler whose first argument says nothing of
//! its caller is no route: it does not compile.

use std::future::Future;

use axum::extract::State;
use serde_json::{Value, json};
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::SecurityRequirement;
use utoipa_axum::router::UtoipaMethodRouter;

use super::Context;
use crate::domain::Role;

/// The extension of an operation that lists its callers: roles of tokens, `node`, `feed`, or `anyone`.
const CALLERS: &str = "x-callers";

/// Who may call an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nobody is asked who they are.
    Anyone,
    /// A token with at least this role.
    Token(Role),
    /// A token with at least this role, or the key of the node that is asked for.
    TokenOrOwnNode(Role),
    /// A node's key.
    Node,
    /// A feed token.
    Feed,
}

impl Access {
    fn callers(self) -> Vec<&'static str> {
        let at_least = |role| Role::ALL.into_iter().filter(move |r| *r >= role).map(Role::as_str);
        match self {
            Self::Anyone => vec!["anyone"],
            Self::Token(role) => at_least(role).collect(),
            Self::TokenOrOwnNode(role) => at_least(role).chain(["node"]).collect(),
            Self::Node => vec!["node"],
            Self::Feed => vec!["feed"],
        }
    }

    fn security(self) -> Vec<SecurityRequirement> {
        let none = || [] as [&str; 0];
        let token = || SecurityRequirement::new("token", none());
        let node = || SecurityRequirement::new("node_key", none()).add("node_uuid", none());
        match self {
            Self::Anyone => vec![SecurityRequirement::default()],
            Self::Token(_) => vec![token()],
            Self::TokenOrOwnNode(_) => vec![token(), node()],
            Self::Node => vec![node()],
            Self::Feed => vec![SecurityRequirement::new("feed_token", none())],
        }
    }
}

/// The callers that an operation was declared with; none if it was not.
pub(super) fn callers(operation: &Operation) -> Vec<&str> {
    let listed = operation.extensions.as_ref().and_then(|extensions| extensions.get(CALLERS)).and_then(Value::as_array);
    listed.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A first argument of handlers.
pub(crate) trait Asks {
    const ACCESS: Access;
}

/// Nothing is asked before the handler runs.
impl Asks for State<Context> {
    const ACCESS: Access = Access::Anyone;
}

/// A handler that says who may call it; `Arguments` is the tuple of its arguments' types.
pub(crate) trait Declares<Arguments> {
    const ACCESS: Access;
}

impl<F: Fn() -> Answer, Answer: Future> Declares<()> for F {
    const ACCESS: Access = Access::Anyone;
}

macro_rules! handlers {
    ($(($($more:ident),*))+) => {
        $(impl<F, Answer, First, $($more),*> Declares<(First, $($more,)*)> for F
        where
            F: Fn(First, $($more),*) -> Answer,
            Answer: Future,
            First: Asks,
        {
            const ACCESS: Access = First::ACCESS;
        })+
    };
}
handlers! { () (B) (B, C) (B, C, D) (B, C, D, E) (B, C, D, E, G) (B, C, D, E, G, H) }

/// Who may call `handler`.
pub(crate) fn of<Arguments, F: Declares<Arguments>>(_handler: &F) -> Access {
    F::ACCESS
}

/// Writes into a handler's description who may call it.
pub(crate) fn declared(routes: UtoipaMethodRouter<Context>, access: Access) -> UtoipaMethodRouter<Context> {
    let (schemas, mut paths, router) = routes;
    for item in paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            operation.security = Some(access.security());
            operation.extensions.get_or_insert_default().insert(CALLERS.to_owned(), json!(access.callers()));
        }
    }
    (schemas, paths, router)
}

/// Routes of one path together.
pub(crate) fn joined(
    first: UtoipaMethodRouter<Context>,
    second: UtoipaMethodRouter<Context>,
) -> UtoipaMethodRouter<Context> {
    let ((mut schemas, mut paths, router), (more_schemas, more_paths, more)) = (first, second);
    schemas.extend(more_schemas);
    paths.merge(more_paths);
    (schemas, paths, router.merge(more))
}

/// The routes of handlers of one path, each with who may call it: as `utoipa_axum::routes!`, which says nothing of that.
macro_rules! routes {
    ($first:ident $(, $more:ident)* $(,)?) => {{
        use $crate::http::access::{declared, of};
        let routes = declared(utoipa_axum::routes!($first), of(&$first));
        $(let routes = $crate::http::access::joined(routes, declared(utoipa_axum::routes!($more), of(&$more)));)*
        routes
    }};
}
pub(crate) use routes;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::auth::{Agent, FeedReader, Inspect, Manage, NodeReader, Operator, Read};

    #[test]
    fn a_handlers_first_argument_says_who_may_call_it() {
        async fn open() {}
        async fn state(_: State<Context>) {}
        async fn read(_: Operator<Read>) {}
        async fn inspect(_: Operator<Inspect>, _: State<Context>) {}
        async fn manage(_: Operator<Manage>, _: State<Context>, _: u8) {}
        async fn node(_: Agent, _: u8) {}
        async fn own(_: NodeReader) {}
        async fn feed(_: FeedReader) {}
        let table = [
            (of(&open), vec!["anyone"]),
            (of(&state), vec!["anyone"]),
            (of(&read), vec!["readonly", "analyst", "admin", "owner"]),
            (of(&inspect), vec!["admin", "owner"]),
            (of(&manage), vec!["admin", "owner"]),
            (of(&node), vec!["node"]),
            (of(&own), vec!["readonly", "analyst", "admin", "owner", "node"]),
            (of(&feed), vec!["feed"]),
        ];
        for (access, expected) in table {
            assert_eq!(access.callers(), expected, "{access:?}");
        }
    }
}
