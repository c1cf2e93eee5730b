//! The client certificate kept good: asked for, renewed well before its end, and again when the authority changes.
//!
//! ```text
//! none, or it has to be renewed --> a new key, a request --> POST /agent/certificate --> client.json --> shown
//! ```
//! It is asked for with the certificate that there is, and if that is not accepted any more, with the node key alone:
//! the control plane decides whether that is enough.

use std::sync::Arc;
use std::time::Duration;

use ftagent_common::api::{CertificateRequest, IssuedCertificate};
use hyper::Method;
use hyper::header::{HeaderMap, RETRY_AFTER};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use time::OffsetDateTime;
use tokio::time::sleep;

use super::Shared;
use super::answer::{Fate, fate};
use super::http::{Call, Connection};
use super::identity::{Identity, Own, Request};

/// Of an answer.
const ANSWER_BYTES: usize = 256 << 10;

/// What became of one try.
enum Asked {
    Got(Box<Own>),
    /// The control plane has no authority.
    NoAuthority,
    /// Not before `after`, if it is given.
    Not {
        after: Option<Duration>,
        why: String,
        operator: bool,
    },
}

/// Asks for the first certificate before anything else is said, so that nothing is refused for the lack of it. What does
/// not come of one try is left to [`keep`].
pub(super) async fn first(shared: &Arc<Shared>, headers: &HeaderMap, identity: Identity) -> Identity {
    if !matches!(identity, Identity::None) || !shared.servers.is_secure() {
        return identity;
    }
    let Asked::Got(own) = ask(shared, headers, false).await else { return identity };
    if let Err(error) = own.save(&shared.config.state_dir) {
        // Without the file the next start would ask again: `keep` does so at once.
        shared.trouble(&format!("the client certificate cannot be kept: {error}"), false);
        return identity;
    }
    let identity = Identity::Own(own);
    set(shared, shared.servers.set_shown(identity.shown((shared.config.wall)())));
    identity
}

/// Keeps the certificate good until it is dropped.
pub(super) async fn keep(shared: &Arc<Shared>, headers: &HeaderMap, identity: Identity) {
    if !shared.servers.is_secure() {
        return;
    }
    match identity {
        Identity::Files(files) => follow(shared, &files).await,
        Identity::Own(own) => ask_in_time(shared, headers, Some(*own)).await,
        Identity::None => ask_in_time(shared, headers, None).await,
    }
}

/// Shows what is in the files as soon as they change.
async fn follow(shared: &Arc<Shared>, files: &super::ClientFiles) {
    loop {
        sleep(shared.config.timing.certificate).await;
        match files.read() {
            Ok(shown) => set(shared, shared.servers.set_shown(Some(shown))),
            Err(error) => shared.trouble(&format!("{error}; the certificate that was read before goes on"), false),
        }
    }
}

fn set(shared: &Shared, done: Result<(), super::ServerError>) {
    if let Err(error) = done {
        shared.trouble(&error.to_string(), false);
    }
}

async fn ask_in_time(shared: &Arc<Shared>, headers: &HeaderMap, mut own: Option<Own>) {
    let mut backoff = shared.backoff();
    let mut random = StdRng::from_os_rng();
    let mut told = shared.trust.subscribe();
    loop {
        let now = (shared.config.wall)();
        let every = shared.config.timing.certificate;
        let renew_before = told.borrow_and_update().as_ref().and_then(|trust| trust.renew_before);
        if !due(own.as_ref().map(|own| &own.issued), renew_before, now) {
            if own.as_ref().is_some_and(|own| own.issued.not_after <= now) {
                set(shared, shared.servers.set_shown(None));
            }
            tokio::select! {
                () = sleep(every) => {}
                changed = told.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // A thousand nodes were told in the same second.
                    sleep(every.mul_f64(random.random_range(0.0..1.0))).await;
                }
            }
            continue;
        }
        let wait = match ask(shared, headers, own.is_some()).await {
            Asked::Got(got) => {
                while let Err(error) = got.save(&shared.config.state_dir) {
                    shared.trouble(&format!("the client certificate cannot be kept: {error}"), false);
                    sleep(backoff.next()).await;
                }
                backoff.reset();
                tracing::info!(serial = got.issued.serial, until = %got.issued.not_after, "a client certificate is shown");
                set(shared, shared.servers.set_shown(Identity::Own(got.clone()).shown(now)));
                own = Some(*got);
                continue;
            }
            Asked::NoAuthority => {
                // Its configuration says when it has one.
                tokio::select! {
                    () = sleep(shared.config.timing.operator) => {}
                    changed = told.changed() => if changed.is_err() { return },
                }
                continue;
            }
            Asked::Not { after, why, operator } => {
                shared.trouble(&format!("no client certificate: {why}"), false);
                let wait = backoff.next();
                let wait = if operator { shared.config.timing.operator.max(wait) } else { wait };
                after.map_or(wait, |after| after.max(wait))
            }
        };
        sleep(wait).await;
    }
}

/// Whether a certificate has to be asked for.
fn due(issued: Option<&IssuedCertificate>, renew_before: Option<OffsetDateTime>, now: OffsetDateTime) -> bool {
    let Some(issued) = issued else { return true };
    now >= issued.renew_at || renew_before.is_some_and(|before| issued.issued_at < before)
}

async fn ask(shared: &Arc<Shared>, headers: &HeaderMap, has_one: bool) -> Asked {
    let first = ask_once(&mut shared.connection(), headers).await;
    match first {
        // With the key alone, where the certificate is not accepted any more.
        Asked::Not { .. } if has_one => {
            let mut connection = Connection::new(Arc::clone(&shared.servers), shared.config.timing.request).anonymous();
            match ask_once(&mut connection, headers).await {
                Asked::Not { .. } => first,
                second => second,
            }
        }
        first => first,
    }
}

async fn ask_once(connection: &mut Connection, headers: &HeaderMap) -> Asked {
    let not = |after, why: String, operator| Asked::Not { after, why, operator };
    let request = match Request::make() {
        Ok(request) => request,
        Err(error) => return not(None, format!("no key can be made: {error}"), true),
    };
    let body = CertificateRequest { csr: request.csr.clone() };
    let body = serde_json::to_vec(&body).expect("plain text is JSON");
    let call = Call { method: Method::POST, path: "/api/v1/agent/certificate", headers, body: Some(body.into()) };
    let answer = match connection.call(&call, ANSWER_BYTES).await {
        Ok(answer) => answer,
        Err(error) => return not(None, error.to_string(), false),
    };
    match fate(answer.status, answer.header(RETRY_AFTER), &answer.body) {
        Fate::Delivered => match serde_json::from_slice::<IssuedCertificate>(&answer.body) {
            Ok(issued) => match request.with(issued) {
                Ok(own) => Asked::Got(Box::new(own)),
                Err(why) => not(None, format!("the certificate is not for the key that was made: {why}"), true),
            },
            Err(error) => not(None, format!("the answer makes no sense: {error}"), true),
        },
        // No authority, or a control plane that is older than this.
        Fate::Refused { .. } if answer.status == 404 => Asked::NoAuthority,
        Fate::Retry { after, why } => not(after, why, false),
        Fate::Refused { why } | Fate::Credentials { why } => not(None, why, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_asked_for_when_there_is_none_and_when_it_is_old() {
        let at = |secs| OffsetDateTime::from_unix_timestamp(secs).unwrap();
        let issued = IssuedCertificate {
            certificate: String::new(),
            serial: String::new(),
            issued_at: at(100),
            renew_at: at(200),
            not_after: at(300),
            roots: String::new(),
        };
        let table = [
            ("none", None, None, 0, true),
            ("young", Some(&issued), None, 199, false),
            ("two thirds of its life are over", Some(&issued), None, 200, true),
            ("of the old authority", Some(&issued), Some(101), 150, true),
            ("of the new one", Some(&issued), Some(100), 150, false),
        ];
        for (name, issued, renew_before, now, expected) in table {
            assert_eq!(due(issued, renew_before.map(at), at(now)), expected, "{name}");
        }
    }
}
