//! Back to the first control plane when it is well again.

use std::sync::Arc;
use std::time::Duration;

use hyper::Method;
use hyper::header::HeaderMap;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use super::Shared;
use super::http::{Call, Connection};

/// Good answers in a row that make a server well.
const GOOD: u32 = 2;
/// Of an answer.
const ANSWER_BYTES: usize = 64 << 10;

/// Asks the first server while another one is used, until it is dropped.
pub(super) async fn watch_first(shared: &Arc<Shared>) {
    if shared.servers.count() == 1 {
        return;
    }
    let mut connection = Connection::new(Arc::clone(&shared.servers), shared.config.timing.request).pinned(0);
    let mut routes = shared.servers.routes();
    let mut random = StdRng::from_os_rng();
    let mut good = 0;
    loop {
        if routes.wait_for(|route| route.server != 0).await.is_err() {
            return;
        }
        // Spread, so that a thousand nodes do not return in the same second.
        sleep(spread(shared.config.timing.back, &mut random)).await;
        let headers = HeaderMap::new();
        let call = Call { method: Method::GET, path: "/api/ready", headers: &headers, body: None };
        let well = connection.call(&call, ANSWER_BYTES).await.is_ok_and(|answer| answer.status == 200);
        good = if well { good + 1 } else { 0 };
        if good >= GOOD {
            shared.servers.return_to_first();
            good = 0;
        }
    }
}

/// Between half of `wait` and one and a half.
fn spread(wait: Duration, random: &mut StdRng) -> Duration {
    wait.mul_f64(random.random_range(0.5..=1.5))
}
