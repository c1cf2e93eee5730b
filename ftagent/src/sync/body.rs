//! A request's body, at once or no faster than an uplink under attack can spare.

use std::convert::Infallible;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

/// What goes out at once.
const PIECE: usize = 16 << 10;

/// Bytes with a pace.
pub(super) struct Paced {
    rest: Bytes,
    /// Bytes per second; absent: as fast as it goes.
    pace: Option<NonZeroU64>,
    /// Until the next piece may go.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Paced {
    pub(super) const fn new(bytes: Bytes, pace: Option<NonZeroU64>) -> Self {
        Self { rest: bytes, pace, pause: None }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let Some(pace) = self.pace else {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.rest)))));
        };
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(context));
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        let nanos = (length as u64).saturating_mul(1_000_000_000) / pace;
        self.pause = Some(Box::pin(sleep(Duration::from_nanos(nanos))));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn it_is_whole_and_no_faster_than_its_pace() {
        let bytes: Bytes = (0..100_000_u32).map(|n| n as u8).collect::<Vec<_>>().into();
        for (pace, at_least) in [(None, 0), (NonZeroU64::new(200_000), 400)] {
            let body = Paced::new(bytes.clone(), pace);
            assert_eq!(body.size_hint().exact(), Some(100_000));
            let before = sleep(Duration::ZERO).deadline();
            let collected = body.collect().await.expect("it cannot fail").to_bytes();
            let took = (sleep(Duration::ZERO).deadline() - before).as_millis();
            assert!(collected == bytes);
            assert!(took >= at_least, "{pace:?}: {took} ms");
        }
        assert!(Paced::new(Bytes::new(), None).is_end_stream());
    }
}
