//! What an agent of another version or with other sizes leaves: its filters, and maps that are made anew.

use std::thread;
use std::time::Duration;

use aya::maps::MapInfo;
use bpf_tests::bpffs::LabDir;
use bpf_tests::skip_without_root;
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::tc;

use crate::kernel::filter;
use crate::lab::Lab;
use crate::survival::{PACE, Siege, Stream, assert_none_misjudged, disguise, growth, judged, meter};

#[test]
fn a_filter_stays_when_what_another_version_left_is_removed() {
    if skip_without_root("a_filter_stays_when_what_another_version_left_is_removed") {
        return;
    }
    let lab = Lab::new();
    let dir = LabDir::create("versions").expect("a bpffs");
    let pins = Pins::below(&dir.bpf()).expect("a bpffs");
    let attached = || lab.edge.run(|| tc::attached(lab.edge0.index).expect("asked")).expect("inside");
    let clean = || lab.edge.run(|| pins.remove_other_versions().expect("removed")).expect("inside");

    // The filter of another version, whose place a filter of this version took.
    filter(&lab, &pins);
    disguise(&dir.bpf(), 0);
    lab.edge.run(|| tc::detach("edge0").expect("removed")).expect("inside");
    filter(&lab, &pins);
    let ours = attached();
    clean();
    assert!(ours.is_some() && attached() == ours, "it enforces");
    assert!(!dir.bpf().join("ftagent/v0").exists(), "nothing of the other version is left");

    // A filter of another version on an interface where this version has none.
    disguise(&dir.bpf(), 0);
    assert!(attached().is_some());
    clean();
    assert_eq!(attached(), None, "nobody wants it any more");
}

#[test]
fn maps_of_another_size_are_filled_before_they_are_used() {
    let Some(mut siege) = Siege::new("maps_of_another_size_are_filled_before_they_are_used") else { return };
    siege.fortify();
    let behind = meter(&siege);
    let maps = Maps::open(&siege.pins().maps()).expect("maps");
    let before = judged(&[&maps]);
    let stream = Stream::start(&siege.lab, PACE);
    let map_id = |siege: &Siege| MapInfo::from_pin(siege.pins().maps().join("BLOCK6_NET")).map(|info| info.id()).ok();
    for (from, to, dies) in [(4_096, 8_192, false), (8_192, 16_384, true)] {
        siege.agent.kill();
        let text = std::fs::read_to_string(&siege.agent.config).expect("the configuration");
        let text = text.replace(&format!("= {from}\n"), &format!("= {to}\n"));
        std::fs::write(&siege.agent.config, text).expect("written");
        // A file that was written to just now is not read before it has come to rest.
        let list = siege.dir.path().join("list");
        std::fs::write(&list, std::fs::read(&list).expect("the list")).expect("written");
        let old = map_id(&siege);
        if dies {
            // The maps of the new size are there, and the program is still the one on the old ones.
            siege.agent.spawn();
            let is_new = || map_id(&siege).is_some_and(|id| Some(id) != old);
            siege.agent.wait("a map of the new size", Duration::from_secs(10), is_new);
            siege.agent.kill();
        }
        let took = siege.adopt();
        siege.wait_until_ready();
        println!("maps of {from} entries became maps of {to} after {took:?}");
        assert_ne!(map_id(&siege), old);
        thread::sleep(Duration::from_millis(300));
    }
    let sent = stream.finish();
    let counted = growth(judged(&[&maps]), before);
    assert_none_misjudged("sizes", sent, counted, behind.counts().expect("readable"));
}
