//! Recorded frames to begin from, where a machine has the captures.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};

use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};

/// Frames of one file at most: floods repeat themselves.
const OF_EACH: usize = 64;
/// Bytes of a frame at most: headers are at its beginning.
const BYTES: usize = 512;

/// The frames of all captures, each once. Empty where there are no captures.
pub(crate) fn frames() -> Vec<Vec<u8>> {
    let named = std::env::var_os("FTAGENT_CAPTURES").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures/dev"));
    let mut files = Vec::new();
    for part in ["hostile", "benign", "attack"] {
        let Ok(entries) = fs::read_dir(folder.join(part)) else { continue };
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    // The same order on every machine: it is part of what a seed means.
    files.sort();
    let mut seen = BTreeSet::new();
    let mut frames = Vec::new();
    for file in files {
        for frame in read(&file) {
            if seen.insert(frame.clone()) {
                frames.push(frame);
            }
        }
    }
    frames
}

/// The first frames of a file; what cannot be read ends it.
fn read(path: &Path) -> Vec<Vec<u8>> {
    let Ok(file) = File::open(path).map(BufReader::new) else { return Vec::new() };
    let mut frames = Vec::new();
    if path.extension().is_some_and(|e| e == "pcapng") {
        let Ok(mut reader) = PcapNgReader::new(file) else { return frames };
        let mut links = Vec::new();
        while let (true, Some(Ok(block))) = (frames.len() < OF_EACH, reader.next_block()) {
            match block {
                Block::InterfaceDescription(interface) => links.push(interface.linktype),
                Block::EnhancedPacket(packet) => {
                    let link = links.get(packet.interface_id as usize).copied();
                    frames.extend(link.and_then(|link| ethernet(link, &packet.data)));
                }
                _ => {}
            }
        }
    } else {
        let Ok(mut reader) = PcapReader::new(file) else { return frames };
        let link = reader.header().datalink;
        while let (true, Some(Ok(packet))) = (frames.len() < OF_EACH, reader.next_raw_packet()) {
            frames.extend(ethernet(link, &packet.data));
        }
    }
    frames
}

/// The frame, with a header of Ethernet before it where it has none.
fn ethernet(link: DataLink, data: &[u8]) -> Option<Vec<u8>> {
    let cut = &data[..data.len().min(BYTES)];
    match link {
        DataLink::ETHERNET => Some(cut.to_vec()),
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => {
            let ether_type: [u8; 2] = if data.first()? >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] };
            Some([&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &ether_type, cut].concat())
        }
        _ => None,
    }
}
