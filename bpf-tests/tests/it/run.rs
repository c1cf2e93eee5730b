//! Single runs by `BPF_PROG_TEST_RUN`, on programs that every build has.

use aya::Ebpf;
use aya::programs::Xdp;
use bpf_tests::packet::PacketBuilder;
use bpf_tests::run::{Outcome, run_xdp, time};
use bpf_tests::skip_without_root;

#[test]
fn a_run_gives_the_verdict_and_the_frame() {
    if skip_without_root("a_run_gives_the_verdict_and_the_frame") {
        return;
    }
    let mut ebpf = Ebpf::load(bpf_tests::object::GENERATOR).expect("a built object");
    let frame = PacketBuilder::v4([192, 0, 2, 1], [192, 0, 2, 2]).udp(1, 2).payload(b"x").build();
    // XDP_DROP is 1, XDP_PASS is 2 (include/uapi/linux/bpf.h).
    for (name, verdict) in [("lab_drop", 1), ("lab_pass", 2)] {
        let program: &mut Xdp = ebpf.program_mut(name).expect(name).try_into().expect("an XDP program");
        program.load().expect("loads");
        let loopback = Some(1);
        for ingress in [None, loopback] {
            let outcome = run_xdp(program, &frame, ingress).expect("runs");
            assert_eq!(outcome, Outcome { verdict, frame: frame.clone() }, "{name} {ingress:?}");
        }
        let mean = time(program, &frame, 10_000).expect("runs");
        assert!(mean.as_nanos() > 0, "{name}: {mean:?}");
    }
}
