//! Strangers beside the fleet, who cost the server what they can: slow heads and bodies, half-closed connections, floods
//! of headers, bodies without an end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::agent::World;

/// So many of each.
const SLOW: usize = 200;
const FLOODS: usize = 4;

/// Starts all of them; they end with what is given back.
pub(super) fn start(world: &Arc<World>, token: &str) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    let authorized = format!("authorization: Bearer {token}\r\ncontent-type: application/json\r\n");
    for _ in 0..SLOW {
        // A header a second, for ever.
        tasks.spawn(again(world.clone(), |world| async move {
            drip(&world, b"GET /api/v1/nodes HTTP/1.1\r\nhost: x\r\n".to_vec(), b"a: b\r\n").await
        }));
        let head =
            format!("POST /api/v1/firewall-rules HTTP/1.1\r\nhost: x\r\n{authorized}content-length: 900000\r\n\r\n{{");
        tasks.spawn(again(world.clone(), move |world| {
            let head = head.clone().into_bytes();
            async move { drip(&world, head, b" ").await }
        }));
        tasks.spawn(again(world.clone(), |world| async move { half_closed(&world).await }));
    }
    for _ in 0..FLOODS {
        tasks.spawn(again(world.clone(), |world| async move {
            let flood =
                format!("GET / HTTP/1.1\r\nhost: x\r\n{}", "a: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n".repeat(5_000));
            push(&world, flood.as_bytes(), &[]).await
        }));
        let head = format!(
            "POST /api/v1/firewall-rules HTTP/1.1\r\nhost: x\r\n{authorized}transfer-encoding: chunked\r\n\r\n"
        );
        let chunk = [b"10000\r\n".as_slice(), &[b' '; 65_536], b"\r\n"].concat();
        tasks.spawn(again(world.clone(), move |world| {
            let (head, chunk) = (head.clone(), chunk.clone());
            // A gigabyte, if it were taken.
            async move { push(&world, head.as_bytes(), &vec![chunk.as_slice(); 16_384]).await }
        }));
    }
    tasks
}

/// Does it again and again, ten times a second at most.
async fn again<F: Future<Output = io::Result<()>>>(world: Arc<World>, what: impl Fn(Arc<World>) -> F) {
    loop {
        // Every end is the one that was asked for.
        drop(what(world.clone()).await);
        sleep(Duration::from_millis(100)).await;
    }
}

/// Sends a little every second until the server has enough.
async fn drip(world: &World, head: Vec<u8>, piece: &[u8]) -> io::Result<()> {
    let mut stream = world.place.connect().await?;
    stream.write_all(&head).await?;
    let mut answer = [0; 1_024];
    while timeout(Duration::from_secs(1), stream.read(&mut answer)).await.is_err() {
        stream.write_all(piece).await?;
    }
    Ok(())
}

/// Half a request, and the end of what is sent.
async fn half_closed(world: &World) -> io::Result<()> {
    let mut stream = world.place.connect().await?;
    stream.write_all(b"POST /api/v1/agent/metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n{").await?;
    stream.shutdown().await?;
    let mut answer = Vec::new();
    timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await??;
    Ok(())
}

/// Sends all of it, and reads the answer if one comes meanwhile.
async fn push(world: &World, head: &[u8], pieces: &[&[u8]]) -> io::Result<()> {
    let (mut reads, mut writes) = world.place.connect().await?.into_split();
    let send = async {
        writes.write_all(head).await?;
        for piece in pieces {
            writes.write_all(piece).await?;
        }
        writes.shutdown().await
    };
    let mut answer = vec![0; 4_096];
    let receive = async {
        while reads.read(&mut answer).await? > 0 {}
        io::Result::Ok(())
    };
    timeout(Duration::from_secs(60), async {
        tokio::select! {
            sent = send => sent,
            received = receive => received,
        }
    })
    .await?
}
