//! What web servers and the kernel tell of HTTP: access logs, followed and read, and connections, looked at.
//!
//! A thread of its own follows the files, since reading may wait for a disk; the daemon hands what it read to
//! `engine::web`, which decides. Nothing here judges.

pub mod config;
pub mod connections;
mod entry;
mod follow;
mod formats;
mod reader;

pub use config::{AccessLog, HttpConfig, RawAccessLog, RawHttp, check_access_logs, check_http};
pub use entry::Entry;
pub use follow::Counts;
pub use formats::Format;
pub use reader::{LogStatus, Reader, Told, Work};
