//! The folder by itself: what is kept, what goes, and a disk without room.

use super::*;

fn capture(bytes: usize) -> Vec<u8> {
    let mut capture = vec![0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a];
    capture.extend((0..bytes - capture.len()).map(|n| (n % 251) as u8));
    capture
}

async fn put(files: &CaptureFiles, key: Uuid, index: u32, bytes: &[u8]) -> Result<()> {
    let mut receiving = files.receive().await?;
    for piece in bytes.chunks(10_000) {
        receiving.write(piece).await?;
    }
    receiving.finish().await?;
    files.place(receiving, key, index)
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder").map(|e| e.expect("an entry").file_name());
    let mut names: Vec<_> = entries.map(|n| n.into_string().expect("text")).collect();
    names.sort();
    names
}

#[tokio::test]
async fn chunks_come_in_any_order_and_again_and_survive_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = CaptureFiles::open(folder.path()).expect("opened");
    let whole = capture(250_000);
    let pieces: Vec<_> = whole.chunks(100_000).collect();
    let key = Uuid::from_u128(1);
    put(&files, key, 2, pieces[2]).await.expect("kept");
    put(&files, key, 0, b"another try").await.expect("kept");
    let mut half = files.receive().await.expect("a place");
    half.write(&[1; 1_000]).await.expect("written");
    // The process dies: nothing is dropped.
    std::mem::forget(half);
    assert_eq!(names(&folder.path().join("incoming")).len(), 2);

    let files = CaptureFiles::open(folder.path()).expect("opened again");
    files.clear().expect("cleared");
    assert_eq!(names(&folder.path().join("incoming")), [key.to_string()]);
    assert_eq!(files.chunks(key).expect("listed"), BTreeSet::from([0, 2]));
    for index in [1, 0] {
        put(&files, key, index, pieces[index as usize]).await.expect("kept");
    }
    let hash: [u8; 32] = Sha256::digest(&whole).into();
    let mode = |path: &Path| {
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).expect("there").permissions()) & 0o777
    };
    assert_eq!(mode(&folder.path().join("incoming")), 0o700);
    assert_eq!(mode(&files.chunk_dir(key).join("0")), 0o600);
    assert!(matches!(files.assemble(key, 3, 249_999, None).expect("read"), Err(Refused::Size)));
    assert!(matches!(files.assemble(key, 3, 250_000, Some([1; 32])).expect("read"), Err(Refused::Hash)));
    assert_eq!(names(&folder.path().join("files")), [""; 0], "nothing half done");
    let assembled = files.assemble(key, 3, 250_000, Some(hash)).expect("read").expect("a capture");
    assert_eq!(assembled, Assembled { format: PcapFormat::Pcapng, bytes: 250_000, sha256: hash });
    assert_eq!(names(&folder.path().join("files")), [sha256_text(&hash)]);
    assert_eq!(mode(&files.path(&hash)), 0o600);
    assert_eq!(fs::read(files.path(&hash)).expect("there"), whole);
    assert_eq!(files.names().expect("listed"), (vec![key], vec![hash]));
    files.forget(key);
    files.remove(&hash).expect("removed");
    assert_eq!(files.names().expect("listed"), (vec![], vec![]));
    assert_eq!(files.chunks(key).expect("listed"), BTreeSet::new());
}

#[tokio::test]
async fn what_is_no_capture_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = CaptureFiles::open(folder.path()).expect("opened");
    for (n, body) in [&b"MZ"[..], &[0; 100], b""].into_iter().enumerate() {
        let key = Uuid::from_u128(n as u128);
        put(&files, key, 0, body).await.expect("kept");
        assert!(matches!(files.assemble(key, 1, 1_000, None).expect("read"), Err(Refused::Format)), "{body:?}");
    }
    assert_eq!(names(&folder.path().join("files")), [""; 0]);
    assert!(names(&folder.path().join("incoming")).iter().all(|name| !name.ends_with(".tmp")));
}
