//! Clean traffic: a small HTTP/1.1 server and clients that keep account of every request.

mod client;
mod message;
mod server;

pub use client::{Client, Load, Tally};
pub use message::{HttpError, Response, get};
pub use server::Server;
