//! The daemon's control socket: one JSON line asked, one JSON line answered.
//!
//! A Unix socket for root alone (mode 0600 in a directory of mode 0700); whoever can open it may steer the agent.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::engine::{OperatorOrder, OrderOutcome};
use crate::profile::ProfileOrder;

/// A question takes a few hundred bytes.
const MAX_QUESTION: u64 = 64 << 10;
/// Asked at once; more wait.
const MAX_ASKING: usize = 16;
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    Status {},
    Incidents {},
    Rules {},
    Captures {},
    Order { order: OperatorOrder },
    Profile {},
    ProfileOrder { order: ProfileOrder },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    Status {
        status: Value,
    },
    Incidents {
        incidents: Value,
    },
    Rules {
        rules: Value,
    },
    /// Null where there are to be none.
    Captures {
        captures: Value,
    },
    Order {
        outcome: OrderOutcome,
    },
    /// Null where there is none.
    Profile {
        profile: Value,
    },
    Error {
        message: String,
    },
}

/// A question and where its answer goes.
pub struct Asked {
    pub question: Question,
    pub answer: oneshot::Sender<Answer>,
}

/// The listening socket.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens at `path`. A socket that a dead daemon left behind is replaced: the state directory's lock says that no
    /// other daemon lives.
    ///
    /// # Errors
    /// When the directory or the socket cannot be made.
    pub fn listen(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        }
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Takes questions and hands them to the daemon, until it hangs up.
    pub async fn serve(self, questions: mpsc::Sender<Asked>) {
        let places = std::sync::Arc::new(Semaphore::new(MAX_ASKING));
        let mut conversations = tokio::task::JoinSet::new();
        loop {
            while conversations.try_join_next().is_some() {}
            let Ok(place) = std::sync::Arc::clone(&places).acquire_owned().await else { return };
            let stream = tokio::select! {
                stream = self.listener.accept() => stream,
                () = questions.closed() => return,
            };
            match stream {
                Ok((stream, _)) => {
                    let questions = questions.clone();
                    conversations.spawn(async move {
                        let talk = tokio::time::timeout(PATIENCE, converse(stream, questions)).await;
                        if let Ok(Err(error)) = talk {
                            tracing::debug!(%error, "a conversation on the control socket broke off");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket accepts nobody");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // A socket that stays is replaced at the next start.
        std::fs::remove_file(&self.path).ok();
    }
}

async fn converse(stream: UnixStream, questions: mpsc::Sender<Asked>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_QUESTION)).read_line(&mut line).await?;
    let answer = match serde_json::from_str::<Question>(&line) {
        Ok(question) => {
            let (sender, receiver) = oneshot::channel();
            let asked = Asked { question, answer: sender };
            match questions.send(asked).await {
                Ok(()) => receiver.await.unwrap_or_else(|_| stopping()),
                Err(_) => stopping(),
            }
        }
        Err(error) => Answer::Error { message: format!("not a question: {error}") },
    };
    let mut text = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    text.push(b'\n');
    write.write_all(&text).await
}

fn stopping() -> Answer {
    Answer::Error { message: "the agent is stopping".to_owned() }
}

/// Asks the daemon at `path`.
///
/// # Errors
/// When nobody listens there, or the answer is late or none.
pub async fn ask(path: &Path, question: &Question) -> io::Result<Answer> {
    let talk = async {
        let mut stream = UnixStream::connect(path).await?;
        let mut text = serde_json::to_vec(question).map_err(io::Error::other)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        serde_json::from_slice(&answer).map_err(io::Error::other)
    };
    tokio::time::timeout(PATIENCE, talk).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_question_gets_an_error_and_a_question_its_answer() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/ftagent.sock");
        let control = Control::listen(&path).expect("listens");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let (sender, mut receiver) = mpsc::channel::<Asked>(1);
        let server = tokio::spawn(control.serve(sender));
        let daemon = tokio::spawn(async move {
            let asked = receiver.recv().await.expect("a question");
            assert_eq!(asked.question, Question::Rules {});
            asked.answer.send(Answer::Rules { rules: Value::Null }).expect("somebody waits");
        });
        assert_eq!(ask(&path, &Question::Rules {}).await.expect("an answer"), Answer::Rules { rules: Value::Null });
        daemon.await.expect("the daemon lives");
        server.await.expect("ends with the daemon");
        assert!(!path.exists(), "the socket goes with the server");
        assert!(ask(&path, &Question::Status {}).await.is_err(), "nobody listens");
    }
}
