//! What older kernels get, tried on this one: every branch left out, and tc by a classic filter.

use std::time::Duration;

use aya::programs::{ProgramInfo, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use bpf_tests::bpffs::LabDir;
use bpf_tests::clock::now;
use bpf_tests::skip_without_root;
use ftagent::object;
use ftagent::xdp::adapt;
use ftagent::xdp::kernel::Support;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::program::AttachChoice;
use ftagent::xdp::tc;
use ftagent_common::vocab::AttachMode;

use crate::datapath::attach;
use crate::lab::Lab;

/// The datapath as a kernel of this release gets it.
fn loaded_for(release: &str) -> Ebpf {
    let support = Support::of_release(release);
    let mut loader = EbpfLoader::new();
    for (switch, value) in support.switches() {
        loader.override_global(switch, value, false);
    }
    loader.load(&adapt::for_kernel(object::DATAPATH, &support)).expect("its maps can be made")
}

/// Which of these programs the kernel has.
fn loaded(ids: &[u32]) -> Vec<u32> {
    let all = aya::programs::loaded_programs().flatten().map(|program: ProgramInfo| program.id());
    all.filter(|id| ids.contains(id)).collect()
}

#[test]
fn the_verifier_takes_what_any_kernel_gets() {
    if skip_without_root("the_verifier_takes_what_any_kernel_gets") {
        return;
    }
    for release in ["5.10.0", "5.15.0", "6.1.0", "7.2.0"] {
        let mut ebpf = loaded_for(release);
        let program: &mut Xdp = ebpf.program_mut("ftagent_xdp").expect("there").try_into().expect("an XDP program");
        program.load().unwrap_or_else(|e| panic!("as for {release}: {e}"));
        let program: &mut SchedClassifier =
            ebpf.program_mut("ftagent_tc").expect("there").try_into().expect("a classifier");
        program.load().unwrap_or_else(|e| panic!("as for {release}: {e}"));
    }
}

#[test]
fn a_classic_filter_is_replaced_in_its_place_and_removed() {
    if skip_without_root("a_classic_filter_is_replaced_in_its_place_and_removed") {
        return;
    }
    let lab = Lab::new();
    let index = lab.edge0.index;
    lab.edge
        .run(|| {
            assert_eq!(tc::attached(index).expect("asked"), None, "no qdisc yet");
            let mut ids = Vec::new();
            for replace in [false, true, true] {
                let mut ebpf = loaded_for("5.10.0");
                let program: &mut SchedClassifier =
                    ebpf.program_mut("ftagent_tc").expect("there").try_into().expect("a classifier");
                program.load().expect("loads");
                tc::attach(program, "edge0", replace).expect("attaches");
                let id = program.info().expect("loaded").id();
                drop(ebpf);
                assert_eq!(tc::attached(index).expect("asked"), Some(id), "it stays when its maker goes");
                ids.push(id);
            }
            // The kernel frees a program some time after the last use of it.
            let deadline = now() + Duration::from_secs(10);
            while loaded(&ids) != ids[2..] {
                assert!(now() < deadline, "the replaced ones are gone: {:?} of {ids:?}", loaded(&ids));
                std::thread::sleep(Duration::from_millis(20));
            }

            let mut second = loaded_for("5.10.0");
            let program: &mut SchedClassifier =
                second.program_mut("ftagent_tc").expect("there").try_into().expect("a classifier");
            program.load().expect("loads");
            tc::attach(program, "edge0", false).expect_err("the place is taken");

            tc::detach("edge0").expect("removed");
            assert_eq!(tc::attached(index).expect("asked"), None);
            tc::detach("edge0").expect("what is not there is as good");
        })
        .expect("inside");
}

/// Attaches the filter as a kernel without tc links has it, with its program pinned.
pub(crate) fn filter(lab: &Lab, pins: &Pins) {
    lab.edge
        .run(|| {
            let mut ebpf = loaded_for("5.10.0");
            let program: &mut SchedClassifier =
                ebpf.program_mut("ftagent_tc").expect("there").try_into().expect("a classifier");
            program.load().expect("loads");
            tc::attach(program, "edge0", false).expect("attaches");
            pins.create().expect("directories");
            program.pin(pins.program("edge0")).expect("pinned");
        })
        .expect("inside");
}

#[test]
fn a_classic_filter_goes_with_the_pins_and_gives_way_to_a_link() {
    if skip_without_root("a_classic_filter_goes_with_the_pins_and_gives_way_to_a_link") {
        return;
    }
    let lab = Lab::new();
    let dir = LabDir::create("filter").expect("a bpffs");
    let pins = Pins::below(&dir.bpf()).expect("a bpffs");
    let attached = || lab.edge.run(|| tc::attached(lab.edge0.index).expect("asked")).expect("inside");

    filter(&lab, &pins);
    assert!(attached().is_some());
    assert_eq!(lab.edge.run(|| pins.remove_all().expect("removed")).expect("inside"), ["edge0"]);
    assert_eq!(attached(), None, "detached with everything else");

    for (choice, mode) in [(AttachChoice::Native, AttachMode::Native), (AttachChoice::Tc, AttachMode::Tc)] {
        filter(&lab, &pins);
        let now = attach(&lab, &pins, choice);
        assert_eq!((now[0].mode, now[0].link_id.is_some()), (mode, true), "{choice:?}: {}", now[0].reason);
        assert_eq!(attached(), None, "{choice:?}: one program on an interface is enough");
        lab.edge.run(|| pins.remove_all().expect("removed")).expect("inside");
    }

    filter(&lab, &pins);
    attach(&lab, &pins, AttachChoice::Nftables);
    assert_eq!(attached(), None, "the configuration does not want a program there any more");
}
