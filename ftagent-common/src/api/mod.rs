//! What agent and control plane say to each other, as JSON (feature `api`).
//!
//! These types are converted at the edges: the engine and the control plane's domain have types of their own where
//! they need more than the wire carries. Times are RFC 3339 UTC, rates packets or bits per second, addresses and
//! prefixes text. Unknown fields are refused in what people write (rules, allowlist) and ignored in what programs
//! send, so that an older side understands a newer one.

mod action;
mod incident;
mod node;
mod preview;
mod profile;
mod rule;
mod spans;
mod sync;
mod tools;

pub use action::*;
pub use incident::*;
pub use node::*;
pub use preview::*;
pub use profile::*;
pub use rule::*;
pub use spans::Spans;
pub use sync::*;
pub use tools::*;

/// The protocol's version, sent in every heartbeat; raised when a change is not understood by the other side.
///
/// 2: rules and orders with actions of other tools than the agent's own.
pub const PROTOCOL_VERSION: u32 = 2;
