use ftagent_common::vocab::TrafficClass as Class;

use super::super::record::Flow;
use super::super::testing::{
    Dice, Exported, TEMPLATE, ipfix, netflow5, netflow9, options9, options10, record, set, template,
};
use super::*;

fn netflow() -> Netflow {
    Netflow::new(Protocol::Auto, 1).expect("valid bounds")
}

fn flow() -> Exported {
    Exported {
        packets: 10,
        bytes: 1_000,
        first: 440_000,
        last: 490_000,
        ..Exported::new([198, 51, 100, 1], [203, 0, 113, 5], 17)
    }
}

fn only(datagram: &Datagram) -> &Flow {
    let [message] = datagram.messages.as_slice() else { panic!("{datagram:?}") };
    let [flow] = message.flows.as_slice() else { panic!("{message:?}") };
    flow
}

fn is_right(flow: &Flow, one_in: u64) {
    assert_eq!((flow.packets, flow.bytes), (10 * one_in, 1_140 * one_in));
    assert_eq!(flow.packet.class, Class::Udp);
    assert_eq!((flow.over_ns, flow.input), (50_000_000_000, 7));
}

#[test]
fn each_version_says_the_same() {
    let sets = || [set(0, &template(300, TEMPLATE)), set(300, &record(&flow()))];
    let ipfix_sets = [set(2, &template(300, TEMPLATE)), set(300, &record(&flow()))];
    for datagram in [netflow5(1, 0, 9, &[flow()]), netflow9(1, 9, &sets()), ipfix(1, 9, &ipfix_sets)] {
        let parsed = netflow().parse(&datagram);
        assert!(parsed.error.is_none(), "{parsed:?}");
        is_right(only(&parsed), 1);
    }
    let age = only(&netflow().parse(&netflow5(1, 0, 9, &[flow()]))).age_ns;
    assert_eq!(age, 10_000_000_000, "by the clock of the header");
}

#[test]
fn the_rate_of_a_v5_header_corrects_its_records() {
    // The two bits of the mode are not part of the number.
    is_right(only(&netflow().parse(&netflow5(1, 0x4000 | 100, 9, &[flow()]))), 100);
    let mut told_by_nobody = Netflow::new(Protocol::Auto, 64).expect("valid bounds");
    is_right(only(&told_by_nobody.parse(&netflow5(1, 0, 9, &[flow()]))), 64);
}

#[test]
fn options_tell_the_rate() {
    let with_sampler: Vec<(u16, u16)> = TEMPLATE.iter().copied().chain([(48, 2)]).collect();
    let sampled = |id: u16| [record(&flow()), id.to_be_bytes().to_vec()].concat();
    let mut parser = netflow();
    let options = [0, 0, 0, 1, 0, 5, 0, 0, 0, 200];
    let sets = [
        set(1, &options9(400, &[(48, 2), (50, 4)])),
        set(400, &options),
        set(0, &template(300, TEMPLATE)),
        set(0, &template(301, &with_sampler)),
    ];
    parser.parse(&netflow9(1, 9, &sets));
    assert_eq!(parser.told_rates(), [200]);
    is_right(only(&parser.parse(&netflow9(2, 9, &[set(301, &sampled(5))]))), 200);
    is_right(only(&parser.parse(&netflow9(3, 9, &[set(300, &record(&flow()))]))), 200);
    // Another sampler, of which nothing was told, among two.
    let second = [0, 0, 0, 1, 0, 6, 0, 0, 1, 0];
    parser.parse(&netflow9(4, 9, &[set(400, &second)]));
    is_right(only(&parser.parse(&netflow9(5, 9, &[set(301, &sampled(6))]))), 256);
    is_right(only(&parser.parse(&netflow9(6, 9, &[set(301, &sampled(9))]))), 1);

    let mut parser = netflow();
    let selector = [0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 99];
    let sets = [
        set(3, &options10(400, &[(302, 8), (305, 4), (306, 4)])),
        set(400, &selector),
        set(2, &template(300, TEMPLATE)),
        set(300, &record(&flow())),
    ];
    let parsed = parser.parse(&ipfix(1, 9, &sets));
    is_right(only(&parsed), 100);
    assert_eq!(parsed.messages[0].grows_by, Some(2), "options are data records too");
}

#[test]
fn a_rate_beyond_belief_is_not_believed() {
    let mut parser = netflow();
    let sets = [
        set(1, &options9(400, &[(34, 4)])),
        set(400, &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]),
        set(0, &template(300, TEMPLATE)),
        set(300, &record(&flow())),
    ];
    is_right(only(&parser.parse(&netflow9(1, 9, &sets))), 1);
}

#[test]
fn records_before_their_template_are_counted_as_such() {
    let mut parser = netflow();
    let parsed = parser.parse(&netflow9(1, 9, &[set(300, &record(&flow()))]));
    assert_eq!((parsed.messages[0].unknown_templates, parsed.messages[0].flows.len()), (1, 0));
    let parsed = parser.parse(&ipfix(1, 9, &[set(300, &record(&flow()))]));
    assert_eq!((parsed.messages[0].unknown_templates, parsed.messages[0].grows_by), (1, None));
    parser.parse(&netflow9(2, 9, &[set(0, &template(300, TEMPLATE))]));
    is_right(only(&parser.parse(&netflow9(3, 9, &[set(300, &record(&flow()))]))), 1);
    assert_eq!(parser.templates(), 1);
}

#[test]
fn a_template_that_changes_is_read_by_its_new_form() {
    let mut parser = netflow();
    parser.parse(&netflow9(1, 9, &[set(0, &template(300, TEMPLATE))]));
    let turned: Vec<(u16, u16)> = TEMPLATE.iter().rev().copied().collect();
    parser.parse(&netflow9(2, 9, &[set(0, &template(300, &turned))]));
    let mut bytes = record(&flow());
    // The same fields from the end to the beginning.
    let mut fields = Vec::new();
    for (_, len) in TEMPLATE {
        let rest = bytes.split_off(usize::from(*len));
        fields.push(std::mem::replace(&mut bytes, rest));
    }
    fields.reverse();
    is_right(only(&parser.parse(&netflow9(3, 9, &[set(300, &fields.concat())]))), 1);
}

#[test]
fn templates_of_one_domain_are_not_those_of_another() {
    let mut parser = netflow();
    parser.parse(&ipfix(1, 9, &[set(2, &template(300, TEMPLATE))]));
    let mut other = ipfix(1, 9, &[set(300, &record(&flow()))]);
    other[12..16].copy_from_slice(&4u32.to_be_bytes());
    assert_eq!(parser.parse(&other).messages[0].unknown_templates, 1);
}

#[test]
fn a_flood_of_templates_is_bounded() {
    let mut parser = netflow();
    for n in 0..8_000u32 {
        let id = 256 + n as u16;
        let mut datagram = netflow9(n, 9, &[set(0, &template(id, TEMPLATE))]);
        // And of domains.
        datagram[16..20].copy_from_slice(&(n % 100).to_be_bytes());
        parser.parse(&datagram);
    }
    assert!(parser.templates() <= MAX_DOMAINS * MAX_TEMPLATES, "{}", parser.templates());
    // One that has too many fields, and one that has fields of no length.
    let wide: Vec<(u16, u16)> = (0..2_000).map(|n| (n, 1)).collect();
    parser.parse(&netflow9(1, 9, &[set(0, &template(300, &wide))]));
    parser.parse(&netflow9(2, 9, &[set(0, &template(301, &[(8, 0), (12, 0)])), set(301, &[0; 1_000])]));
    let narrow = netflow9(3, 9, &[set(0, &template(302, &[(4, 1)])), set(302, &vec![17; 60_000])]);
    let parsed = parser.parse(&narrow);
    assert!(parsed.messages.iter().all(|m| m.records <= MAX_RECORDS as u64));
}

#[test]
fn many_samplers_are_bounded() {
    let mut parser = netflow();
    parser.parse(&netflow9(1, 9, &[set(1, &options9(400, &[(48, 2), (50, 4)]))]));
    for id in 0..2_000u16 {
        let record = [&[0, 0, 0, 1][..], &id.to_be_bytes(), &[0, 0, 0, 200]].concat();
        parser.parse(&netflow9(2, 9, &[set(400, &record)]));
    }
    assert_eq!(parser.rates.len(), MAX_SAMPLERS);
}

#[test]
fn wrong_versions_are_refused() {
    for datagram in [&[][..], &[0], &[0, 1, 2, 3], &[0, 7, 0, 1], &[0, 11, 0, 20], &[0xff; 100]] {
        let parsed = netflow().parse(datagram);
        assert!(parsed.messages.is_empty() && parsed.error.is_some(), "{datagram:?}: {parsed:?}");
    }
    let mut only_ipfix = Netflow::new(Protocol::Ipfix, 1).expect("valid bounds");
    assert!(only_ipfix.parse(&netflow5(1, 0, 9, &[flow()])).error.is_some());
}

#[test]
fn what_is_cut_off_or_noise_never_panics() {
    let sets9 = [
        set(1, &options9(400, &[(48, 2), (50, 4)])),
        set(400, &[0, 0, 0, 1, 0, 5, 0, 0, 0, 200]),
        set(0, &template(300, TEMPLATE)),
        set(300, &[record(&flow()), record(&flow())].concat()),
    ];
    let sets10 = [
        set(3, &options10(400, &[(302, 8), (305, 4), (306, 4)])),
        set(2, &template(300, &[(8, 4), (12, 4), (2, 8), (1, 8), (82, 0xffff), (150, 4), (156, 8)])),
        set(300, &[7; 100]),
    ];
    let wholes = [netflow5(1, 0, 9, &[flow(); 30]), netflow9(1, 9, &sets9), ipfix(1, 9, &sets10)];
    let mut dice = Dice(11);
    let mut parser = netflow();
    for whole in &wholes {
        for len in 0..whole.len() {
            drop(parser.parse(&whole[..len]));
        }
    }
    for round in 0..8_000 {
        let mut noisy = wholes[round % wholes.len()].clone();
        for _ in 0..=dice.below(8) {
            let at = dice.below(noisy.len() as u64) as usize;
            noisy[at] = dice.roll() as u8;
        }
        let datagram = parser.parse(&noisy);
        assert!(datagram.messages.iter().map(|m| m.records).sum::<u64>() <= 4 * MAX_RECORDS as u64);
        let mut noise: Vec<u8> = (0..dice.below(300)).map(|_| dice.roll() as u8).collect();
        if noise.len() > 2 {
            (noise[0], noise[1]) = (0, [5, 9, 10][round % 3]);
        }
        drop(parser.parse(&noise));
    }
}
