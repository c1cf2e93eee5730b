//! Captures on their way to the control plane: one at a time, slowly, behind everything else.
//!
//! A task of its own with a connection of its own: reports, metrics and configuration never wait for it.

use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};
use uuid::Uuid;

use super::Shared;
use super::answer::{Fate, fate_within};
use super::http::{Call, Connection};
use super::uplink::{key_refused, wait_or_reachable};
use crate::pcap::shelf::{Capture, upload_state};
use crate::pcap::upload::{CHUNK_BYTES, Progress, Upload, Uploads};
use crate::pcap::{CaptureId, CapturesStatus};
use crate::persist;

/// An answer lists chunks: a thousand of them at most.
const ANSWER_BYTES: usize = 64 << 10;
/// The control plane allows 10 captures an hour: its order to wait is obeyed for so long.
const RETRY_AFTER_AT_MOST: u64 = 3_600;
/// For one chunk, beyond what its pace takes. The control plane waits 120 s for one.
const CHUNK_TIME: Duration = Duration::from_secs(130);
/// Tries before an incident that the control plane does not know is believed to be none.
const UNKNOWN_TRIES: u32 = 5;
/// Until captures are looked at again whose incident the control plane does not know yet.
const LOOK: Duration = Duration::from_secs(1);

/// The captures, and how fast they may go.
#[derive(Clone, Debug)]
pub struct CaptureUploads {
    pub captures: watch::Receiver<CapturesStatus>,
    pub bytes_per_sec: NonZeroU64,
}

/// What the control plane says of an upload.
#[derive(Deserialize)]
struct Answer {
    complete: bool,
    #[serde(default)]
    missing: Vec<u32>,
}

/// Sends what waits, until it is dropped.
pub(super) async fn send_captures(shared: &Arc<Shared>, headers: &HeaderMap) {
    let Some(CaptureUploads { mut captures, bytes_per_sec }) = shared.config.captures.clone() else { return };
    let pace = Duration::from_secs(CHUNK_BYTES / bytes_per_sec);
    let mut sender = Sender {
        shared,
        headers,
        connection: Connection::new(Arc::clone(&shared.servers), CHUNK_TIME + pace).paced(bytes_per_sec),
        dir: PathBuf::new(),
        uploads: Uploads::default(),
    };
    let mut backoff = shared.backoff();
    loop {
        let status = captures.borrow_and_update().clone();
        sender.look(status).await;
        let Some(id) = sender.next().await else {
            if !sender.uploads.waiting().is_empty() {
                sleep(LOOK).await;
            } else if captures.changed().await.is_err() {
                // The writer ended, and everything that it wrote is there.
                return;
            }
            continue;
        };
        match sender.send(id).await {
            Ok(()) => backoff.reset(),
            Err(Failed { why, after, unreachable }) => {
                if unreachable {
                    shared.trouble(&format!("capture not delivered: {why}"), true);
                }
                if sender.uploads.failed(id, &why) {
                    warn!(capture = %id, why, "an upload waits");
                }
                sender.publish();
                let rest = backoff.next();
                let rest = async {
                    match after {
                        Some(after) => sleep(after).await,
                        None => wait_or_reachable(shared, rest).await,
                    }
                };
                sender.look_during(rest, &mut captures).await;
            }
        }
    }
}

/// Why an upload did not go on.
struct Failed {
    why: String,
    /// Not before that; absent: with back-off.
    after: Option<Duration>,
    unreachable: bool,
}

impl Failed {
    fn new(why: impl ToString) -> Self {
        Self { why: why.to_string(), after: None, unreachable: false }
    }
}

struct Sender<'a> {
    shared: &'a Arc<Shared>,
    headers: &'a HeaderMap,
    connection: Connection,
    dir: PathBuf,
    uploads: Uploads,
}

impl Sender<'_> {
    async fn look(&mut self, status: CapturesStatus) {
        self.dir.clone_from(&status.dir);
        let mut uploads = std::mem::take(&mut self.uploads);
        self.uploads = blocking(move || {
            uploads.look(&status.dir, &status.captures);
            uploads
        })
        .await;
        self.publish();
    }

    /// Keeps the status up to date while nothing is sent.
    async fn look_during(&mut self, rest: impl Future<Output = ()>, captures: &mut watch::Receiver<CapturesStatus>) {
        tokio::pin!(rest);
        loop {
            tokio::select! {
                () = &mut rest => return,
                changed = captures.changed() => if changed.is_err() { return rest.await },
            }
            let status = captures.borrow_and_update().clone();
            self.look(status).await;
        }
    }

    fn publish(&self) {
        let now = self.uploads.status();
        self.shared.uploads.send_if_modified(|status| std::mem::replace(status, now.clone()) != now);
    }

    /// The next capture whose incident the control plane knows.
    async fn next(&self) -> Option<CaptureId> {
        let waiting = self.uploads.waiting();
        if waiting.is_empty() {
            return None;
        }
        // A refusal would be for ever: the incident's reports go first.
        let reported = self.shared.with_spool(|spool| spool.incidents()).await;
        waiting.into_iter().find(|id| !reported.contains(&id.incident))
    }

    /// Sends a capture chunk by chunk; what went stays, there and in the note beside the capture.
    async fn send(&mut self, id: CaptureId) -> Result<(), Failed> {
        let Some((capture, upload)) = self.uploads.of(id) else { return Ok(()) };
        let (capture, mut upload) = (capture.clone(), upload.cloned());
        loop {
            let mut now = match upload.take() {
                Some(upload) => upload,
                None => match self.begin(id).await? {
                    Some(upload) => upload,
                    None => return Ok(()),
                },
            };
            let (dir, copy) = (self.dir.clone(), now.clone());
            let chunk = match blocking(move || copy.chunk(&dir, id)).await {
                Ok(chunk) => Bytes::from(chunk),
                Err(error) => return self.unreadable(id, &error),
            };
            let length = chunk.len() as u64;
            let answered = self.post(&capture, &now, chunk).await?;
            match answered {
                Posted::Taken(Answer { complete, missing }) => {
                    self.uploads.sent(length);
                    if !now.on_answer(complete, &missing) {
                        return Err(Failed::new("the answer to a chunk makes no sense"));
                    }
                }
                Posted::Refused(why) => {
                    warn!(capture = %id, why, "the control plane refuses a capture: the file stays here");
                    (now.progress, now.why) = (Progress::Refused, Some(why));
                }
            }
            self.note(id, now.clone()).await?;
            match now.progress {
                Progress::UnderWay => upload = Some(now),
                Progress::Uploaded => {
                    info!(capture = %id, bytes = now.bytes, "a capture is at the control plane");
                    return Ok(());
                }
                Progress::Refused => return Ok(()),
            }
        }
    }

    async fn begin(&mut self, id: CaptureId) -> Result<Option<Upload>, Failed> {
        let dir = self.dir.clone();
        match blocking(move || Upload::begin(&dir, id, Uuid::new_v4())).await {
            Ok(upload) => {
                self.note(id, upload.clone()).await?;
                Ok(Some(upload))
            }
            Err(error) => self.unreadable(id, &error).map(|()| None),
        }
    }

    fn unreadable(&mut self, id: CaptureId, error: &io::Error) -> Result<(), Failed> {
        // Often it was deleted to make room.
        warn!(capture = %id, %error, "a capture cannot be read, and is not uploaded");
        self.uploads.skip(id);
        self.publish();
        Ok(())
    }

    /// Keeps how far an upload is, on disk before anything else happens.
    async fn note(&mut self, id: CaptureId, upload: Upload) -> Result<(), Failed> {
        let (dir, copy) = (self.dir.clone(), upload.clone());
        let saved = blocking(move || save(&dir, id, &copy)).await.map_err(Failed::new);
        self.uploads.note(id, upload);
        self.publish();
        saved
    }

    async fn post(&mut self, capture: &Capture, upload: &Upload, chunk: Bytes) -> Result<Posted, Failed> {
        let mut headers = self.headers.clone();
        let body = describe(&mut headers, capture, upload, chunk);
        let path = format!("/api/v1/agent/incidents/{}/pcap", capture.incident);
        let call = Call { method: Method::POST, path: &path, headers: &headers, body: Some(body) };
        let answer = self.connection.call(&call, ANSWER_BYTES).await;
        let answer = answer.map_err(|error| Failed { unreachable: true, ..Failed::new(error) })?;
        match fate_within(answer.status, answer.header(RETRY_AFTER), &answer.body, RETRY_AFTER_AT_MOST) {
            Fate::Delivered => match serde_json::from_slice(&answer.body) {
                Ok(answer) => Ok(Posted::Taken(answer)),
                Err(error) => Err(Failed::new(format!("the answer to a chunk makes no sense: {error}"))),
            },
            // The report of a short attack may still be on its way.
            Fate::Refused { why } if answer.status == 404 && self.uploads.tries(capture.id()) < UNKNOWN_TRIES => {
                Err(Failed::new(why))
            }
            Fate::Refused { why } => Ok(Posted::Refused(why)),
            Fate::Retry { after, why } => Err(Failed { after, ..Failed::new(why) }),
            Fate::Credentials { why } => {
                let after = Some(self.shared.config.timing.operator);
                Err(Failed { after, ..Failed::new(key_refused(self.shared, &why)) })
            }
        }
    }
}

/// What became of a chunk.
enum Posted {
    Taken(Answer),
    Refused(String),
}

fn save(dir: &Path, id: CaptureId, upload: &Upload) -> Result<(), persist::PersistError> {
    persist::save_json(&upload_state(dir, id), upload)
}

/// Sets the headers of a chunk and gives its body: the only chunk of a capture goes as multipart.
fn describe(headers: &mut HeaderMap, capture: &Capture, upload: &Upload, chunk: Bytes) -> Bytes {
    let mut set = |name: &'static str, value: &str| {
        let value = HeaderValue::from_str(value).expect("digits, letters and punctuation are header text");
        headers.insert(HeaderName::from_static(name), value);
    };
    set("x-upload-id", &upload.id.to_string());
    set("x-capture-sha256", &upload.sha256);
    set("x-capture-part", &capture.part.to_string());
    set("x-capture-packets", &capture.packets.to_string());
    if upload.chunks() > 1 {
        set("x-chunk-index", &upload.next.to_string());
        set("x-chunk-total", &upload.chunks().to_string());
        set("content-type", "application/octet-stream");
        return chunk;
    }
    // The hash of what lies between cannot stand in it but by a miracle.
    let boundary = format!("ftagent-{}", &upload.sha256[..upload.sha256.len().min(56)]);
    set("content-type", &format!("multipart/form-data; boundary={boundary}"));
    let head = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"pcap\"; filename=\"{}.pcapng\"\r\n\
         content-type: application/octet-stream\r\n\r\n",
        capture.id()
    );
    [head.as_bytes(), &chunk, format!("\r\n--{boundary}--\r\n").as_bytes()].concat().into()
}

/// Runs `work` where waiting for the disk holds nobody up.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("work on captures does not panic, and the runtime outlives its tasks")
}
