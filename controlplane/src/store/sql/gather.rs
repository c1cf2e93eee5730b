//! Calls that are carried out together: what comes while the database is busy with some is its next batch.
//!
//! ```text
//! call --> queue (bounded) --> one task: everything that waits, at most so many --> one transaction --> each its answer
//! ```
//! Alone, a call costs what it did without this; thousands at once cost a few statements and one commit. Where batches
//! follow each other, each begins a pace after the one before: what is a transaction for every few calls otherwise,
//! because calls come in as fast as they are carried out, becomes one for many.
//! A batch that fails because of one of its calls is tried again call by call.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::WAIT;
use crate::store::{Result, StoreError};

/// Calls that may wait for the batch before theirs; more wait for a place.
const QUEUE: usize = 4_096;

/// How often it is looked whether a batch is full, while it waits for its time.
const STEP: Duration = Duration::from_millis(5);

type Answer<O> = oneshot::Sender<Result<O>>;

/// Where calls of one kind come together.
pub(super) struct Gather<I, O> {
    queue: mpsc::Sender<(I, Answer<O>)>,
    /// Ends with this.
    _task: JoinSet<()>,
}

impl<I, O> Gather<I, O>
where
    I: Clone + Send + Sync + 'static,
    O: Send + 'static,
{
    /// `work` takes at most `most` calls and answers each, in order; `pace` is the least between the beginnings of two
    /// batches, unless the first had one call alone or the second is full.
    pub(super) fn start<W, F>(most: usize, pace: Duration, work: W) -> Self
    where
        W: Fn(Vec<I>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<Result<O>>>> + Send + 'static,
    {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let mut task = JoinSet::new();
        task.spawn(carry_out(waiting, most, pace, work));
        Self { queue, _task: task }
    }

    /// Carries out `call` with whichever others there are.
    pub(super) async fn call(&self, call: I) -> Result<O> {
        self.call_within(call, WAIT).await
    }

    async fn call_within(&self, call: I, wait: Duration) -> Result<O> {
        let (answer, answered) = oneshot::channel();
        let closed = || unavailable("it is closed");
        match tokio::time::timeout(wait, self.queue.send((call, answer))).await {
            Ok(sent) => sent.map_err(|_| closed())?,
            Err(_) => return Err(unavailable("too many calls wait for it")),
        }
        answered.await.unwrap_or_else(|_| Err(closed()))
    }
}

fn unavailable(reason: &'static str) -> StoreError {
    StoreError::Unavailable { reason, source: Box::new(std::io::Error::other(reason)) }
}

async fn carry_out<I, O, W, F>(mut waiting: mpsc::Receiver<(I, Answer<O>)>, most: usize, pace: Duration, work: W)
where
    I: Clone + Send + Sync,
    O: Send,
    W: Fn(Vec<I>) -> F + Send + Sync,
    F: Future<Output = Result<Vec<Result<O>>>> + Send,
{
    let mut batch = Vec::new();
    while waiting.recv_many(&mut batch, most).await > 0 {
        let mut paced = pin!(tokio::time::sleep(pace));
        let (calls, answers): (Vec<I>, Vec<Answer<O>>) = batch.drain(..).unzip();
        let alone = calls.len() == 1;
        match work(calls.clone()).await {
            Ok(done) => {
                debug_assert_eq!(done.len(), answers.len());
                // Whoever does not wait any more needs no answer.
                answers.into_iter().zip(done).for_each(|(answer, done)| drop(answer.send(done)));
            }
            Err(fault @ StoreError::Unavailable { .. }) => {
                answers.into_iter().for_each(|answer| drop(answer.send(Err(same(&fault)))));
            }
            Err(_) => {
                for (call, answer) in calls.into_iter().zip(answers) {
                    let done = work(vec![call]).await;
                    let done =
                        done.and_then(|mut done| done.pop().unwrap_or_else(|| Err(unavailable("it was cut off"))));
                    drop(answer.send(done));
                }
            }
        }
        // In steps, so that a batch that is full before does not wait.
        while !alone && waiting.len() < most {
            tokio::select! {
                () = &mut paced => break,
                () = tokio::time::sleep(STEP) => {}
            }
        }
    }
}

/// A fault that has no one call to blame, for each of them.
fn same(fault: &StoreError) -> StoreError {
    match fault {
        StoreError::Unavailable { reason, source } => {
            StoreError::Unavailable { reason, source: Box::new(std::io::Error::other(source.to_string())) }
        }
        other => StoreError::Unexpected {
            what: "a batch failed",
            source: Box::new(std::io::Error::other(other.to_string())),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::Instant;

    use super::*;
    use crate::domain::Problem;

    #[tokio::test]
    async fn calls_that_come_together_are_carried_out_together_and_answered_in_order() {
        let batches = Arc::new(AtomicUsize::new(0));
        let counted = batches.clone();
        let gather = Arc::new(Gather::start(64, Duration::ZERO, move |calls: Vec<u32>| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(Duration::from_millis(5)).await;
                Ok(calls.into_iter().map(|n| Ok(n * 2)).collect())
            }
        }));
        let calls: Vec<_> = (0..200).map(|n| (n, gather.clone())).collect();
        let calls = calls.into_iter().map(|(n, gather)| tokio::spawn(async move { (n, gather.call(n).await) }));
        for call in calls.collect::<Vec<_>>() {
            let (n, done) = call.await.expect("no panic");
            assert_eq!(done.expect("carried out"), n * 2);
        }
        let batches = batches.load(Ordering::Relaxed);
        assert!((4..=12).contains(&batches), "{batches} batches of at most 64");
    }

    #[expect(clippy::disallowed_methods, reason = "it is simulated time")]
    #[tokio::test(start_paused = true)]
    async fn batches_that_follow_each_other_keep_a_pace_and_a_call_alone_does_not_wait() {
        let pace = Duration::from_millis(20);
        let gather = Arc::new(Gather::start(8, pace, |calls: Vec<u32>| async move {
            Ok(calls.into_iter().map(|_| Ok(Instant::now())).collect())
        }));
        let began = Instant::now();
        for n in 0..3 {
            assert!(gather.call(n).await.expect("carried out") - began < Duration::from_millis(5), "alone");
        }
        let together = |many: u32| {
            let calls: Vec<_> = (0..many).map(|n| (n, gather.clone())).collect();
            calls.into_iter().map(|(n, gather)| tokio::spawn(async move { gather.call(n).await })).collect::<Vec<_>>()
        };
        // The second batch of these is full before its time, and the third is not.
        let mut times = Vec::new();
        for call in together(18) {
            times.push(call.await.expect("no panic").expect("carried out") - began);
        }
        let late = times.iter().filter(|time| **time >= pace).count();
        assert_eq!(late, 2, "{times:?}");
    }

    #[tokio::test]
    async fn one_bad_call_spoils_no_other() {
        let gather = Arc::new(Gather::start(64, Duration::ZERO, |calls: Vec<u32>| async move {
            if calls.contains(&3) {
                return Err(Problem::NotFound("three").into());
            }
            Ok(calls.into_iter().map(Ok).collect())
        }));
        let calls: Vec<_> = (0..10).map(|n| (n, gather.clone())).collect();
        let calls = calls.into_iter().map(|(n, gather)| tokio::spawn(async move { (n, gather.call(n).await) }));
        for call in calls.collect::<Vec<_>>() {
            let (n, done) = call.await.expect("no panic");
            assert_eq!(done.is_ok(), n != 3, "{n}");
        }
    }

    #[tokio::test]
    async fn a_database_that_is_away_is_away_for_all_and_a_full_queue_does_not_wait_for_ever() {
        let gather =
            Gather::start(64, Duration::ZERO, |_: Vec<u32>| async { Err::<Vec<Result<u32>>, _>(unavailable("gone")) });
        assert!(matches!(gather.call(1).await, Err(StoreError::Unavailable { reason: "gone", .. })));
        let stuck = Arc::new(Gather::start(1, Duration::ZERO, |_: Vec<u32>| {
            std::future::pending::<Result<Vec<Result<u32>>>>()
        }));
        let calls = (0..=QUEUE).map(|n| (u32::try_from(n).expect("small"), stuck.clone()));
        let mut waiting = JoinSet::new();
        calls.for_each(|(n, stuck)| drop(waiting.spawn(async move { stuck.call(n).await })));
        while stuck.queue.capacity() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let late = stuck.call_within(7, Duration::from_millis(20)).await;
        assert!(matches!(late, Err(StoreError::Unavailable { reason: "too many calls wait for it", .. })));
    }
}
