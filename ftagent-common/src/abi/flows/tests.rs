use super::*;

const SEC: u64 = 1_000_000_000;
const NOW: u64 = 50_000 * SEC;

fn hash(n: u32) -> u64 {
    flow_hash(&[7, 9], &Ip::v4(n.to_be_bytes()), &Ip::v4([192, 0, 2, 1]), [53, 40_000], 17, 0)
}

fn learn(set: &mut FlowSet, hash: u64, now_ns: u64, life: Life, [is_closing, has_data, is_proved]: [bool; 3]) {
    set.learn(&mut 0, hash, now_ns, life, Seen { is_closing, has_data, is_proved });
}

#[test]
fn a_flow_is_known_until_its_life_ends() {
    let mut set = FlowSet::default();
    learn(&mut set, hash(1), NOW, Life::QUERY, [false, true, true]);
    assert!(set.knows(hash(1), NOW));
    assert!(set.knows(hash(1), NOW + 29 * SEC));
    assert!(!set.knows(hash(1), NOW + 31 * SEC));
    assert!(!set.knows(hash(2), NOW));
}

#[test]
fn an_empty_set_knows_nobody_at_any_time() {
    for now in [0, 1, NOW, u64::MAX] {
        assert!(!FlowSet::default().knows(0, now) && FlowSet::default().alive(now) == 0);
    }
}

#[test]
fn only_a_proved_flow_is_added() {
    let mut set = FlowSet::default();
    learn(&mut set, hash(1), NOW, Life::CONNECTION, [false, false, false]);
    assert_eq!(set, FlowSet::default());
}

#[test]
fn a_busy_flow_is_written_once_a_second() {
    let mut set = FlowSet::default();
    learn(&mut set, hash(1), NOW, Life::CONNECTION, [false, true, true]);
    let written = set;
    learn(&mut set, hash(1), NOW + SEC / 2, Life::CONNECTION, [false, true, true]);
    assert_eq!(set, written);
    learn(&mut set, hash(1), NOW + 2 * SEC, Life::CONNECTION, [false, true, true]);
    assert_ne!(set, written);
    assert_eq!(set.alive(NOW + 2 * SEC), 1);
}

#[test]
fn what_would_end_first_makes_room_and_short_lives_never_push_out_long_ones() {
    let mut set = FlowSet::default();
    for n in 0..7 {
        learn(&mut set, hash(n), NOW, Life::CONNECTION, [false, true, true]);
    }
    // A scan of our own: a thousand SYNs through one set.
    for n in 100..1_100 {
        learn(&mut set, hash(n), NOW + SEC, Life::OPENING, [false, false, true]);
    }
    assert!((0..7).all(|n| set.knows(hash(n), NOW + SEC)));
    assert!(set.knows(hash(1_099), NOW + SEC));
}

#[test]
fn a_closing_flow_ends_soon_unless_a_new_one_takes_its_ports() {
    let mut set = FlowSet::default();
    learn(&mut set, hash(1), NOW, Life::CONNECTION, [false, true, true]);
    learn(&mut set, hash(1), NOW, Life::CONNECTION, [true, false, true]);
    learn(&mut set, hash(1), NOW + SEC, Life::CONNECTION, [false, false, false]);
    assert!(set.knows(hash(1), NOW + 100 * SEC));
    assert!(!set.knows(hash(1), NOW + 300 * SEC), "the acknowledgement of the other FIN is not a new life");
    learn(&mut set, hash(1), NOW + 2 * SEC, Life::CONNECTION, [false, true, true]);
    assert!(set.knows(hash(1), NOW + 300 * SEC));
    assert_eq!(set.alive(NOW + 3 * SEC), 1);
}

#[test]
fn a_syn_passes_when_it_is_repeated_after_a_while() {
    let FirstSyn::Remember(word) = first_syn(0, hash(1), NOW) else { panic!("it is new") };
    assert_eq!(first_syn(word, hash(1), NOW + SEC / 10), FirstSyn::TooSoon);
    assert_eq!(first_syn(word, hash(1), NOW + SEC), FirstSyn::Repeated);
    assert_eq!(first_syn(word, hash(1), NOW + 20 * SEC), FirstSyn::Repeated);
}

#[test]
fn four_syns_share_a_word_and_the_oldest_goes() {
    let mut word = 0;
    let mut tags: Vec<u32> = Vec::new();
    let mut n = 0;
    while tags.len() < 5 {
        // Of tags of nine bits some are equal.
        if tags.iter().all(|t| (hash(*t) >> 55) | 1 != (hash(n) >> 55) | 1) {
            tags.push(n);
        }
        n += 1;
    }
    for (i, n) in tags.iter().enumerate() {
        let FirstSyn::Remember(next) = first_syn(word, hash(*n), NOW + i as u64 * SEC) else { panic!("new") };
        word = next;
    }
    assert!(matches!(first_syn(word, hash(tags[0]), NOW + 6 * SEC), FirstSyn::Remember(_)));
    assert!(tags[1..].iter().all(|n| first_syn(word, hash(*n), NOW + 6 * SEC) == FirstSyn::Repeated));
}

/// What a flood of forged SYNs does to honest ones, by its rate.
#[test]
fn drop_first_keeps_its_promises_under_a_flood() {
    let mut words = vec![0u64; FIRST_SYN_WORDS as usize];
    let mut state = 1u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let place = |hash: u64| (hash & u64::from(FIRST_SYN_WORDS - 1)) as usize;
    let honest: Vec<u64> = (0..1_000).map(|_| random()).collect();
    let rate = 500_000;
    let mut passed = 0;
    for second in 0..3 {
        for i in 0..rate {
            let now = NOW + second * SEC + i * SEC / rate;
            let (hash, is_honest) =
                if second == 1 && i < 1_000 { (honest[i as usize], true) } else { (random(), false) };
            match first_syn(words[place(hash)], hash, now) {
                FirstSyn::Remember(word) => words[place(hash)] = word,
                FirstSyn::Repeated if !is_honest => passed += 1,
                _ => {}
            }
        }
    }
    let repeated = |hash: &&u64| first_syn(words[place(**hash)], **hash, NOW + 3 * SEC) == FirstSyn::Repeated;
    let kept = honest.iter().filter(repeated).count();
    assert!(kept > 800, "{kept} of 1,000 honest SYNs were remembered for two seconds of 500,000 forged ones");
    assert!(passed < 3 * rate / 50, "{passed} of {} forged ones passed by chance", 3 * rate);
}

#[test]
fn hashes_tell_both_ends_the_protocol_and_the_number_apart() {
    let ip = |n: u8| Ip::v4([192, 0, 2, n]);
    let six = |n: u8| Ip::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]);
    let all = [
        flow_hash(&[7, 9], &ip(1), &ip(2), [53, 54], 17, 0),
        flow_hash(&[7, 9], &ip(2), &ip(1), [53, 54], 17, 0),
        flow_hash(&[7, 9], &ip(1), &ip(2), [54, 53], 17, 0),
        flow_hash(&[7, 9], &ip(1), &ip(2), [53, 54], 6, 0),
        flow_hash(&[7, 9], &ip(1), &ip(2), [53, 54], 17, 1),
        flow_hash(&[7, 8], &ip(1), &ip(2), [53, 54], 17, 0),
        flow_hash(&[7, 9], &six(1), &six(2), [53, 54], 17, 0),
        flow_hash(&[7, 9], &six(1), &six(3), [53, 54], 17, 0),
    ];
    let different: std::collections::BTreeSet<u64> = all.into_iter().collect();
    assert_eq!(different.len(), all.len());
}

#[test]
fn ports_have_bits_of_their_own() {
    let mut bitmap = [0; PORT_WORDS];
    bitmap[53 >> 6] |= 1 << 53;
    bitmap[PORT_WORDS - 1] |= 1 << 63;
    assert!(has_port(&bitmap, 53) && has_port(&bitmap, 65_535) && !has_port(&bitmap, 54));
}
