//! Every order in every phase, and the clocks.

use proptest::prelude::*;

use super::course::*;
use super::*;

const BOOT: &str = "boot-1";
const SEC_NS: i64 = 1_000_000_000;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// Seconds by both clocks.
fn at(mono: i64, wall: i64) -> Moment {
    Moment { boot: BOOT.to_owned(), mono_ns: (mono * SEC_NS).unsigned_abs(), wall_ns: wall * SEC_NS }
}

fn wanted(n: u128) -> Wanted {
    Wanted {
        application: id(n),
        profile: "saas".to_owned(),
        suite: Suite::Nftables,
        rules: vec![],
        custom: vec![],
        keep: Kept::default(),
        confirm_secs: 60,
    }
}

fn journal(phase: Phase) -> Journal {
    let current = Current {
        wanted: wanted(1),
        phase,
        kept: Kept::default(),
        in_use: Kept::default(),
        steps: vec![],
        seen: String::new(),
        noted: vec![],
    };
    Journal { current: Some(current), past: [].into() }
}

fn trial() -> Phase {
    Phase::Trial { began: at(100, 1_000) }
}

fn going() -> Phase {
    Phase::TakingBack { end: End::Lapsed, reason: "too late".to_owned() }
}

/// `ok`, `err`, `apply`, `keep` or `back`.
fn word(next: &Next) -> &'static str {
    match next {
        Next::Answer(Ok(_)) => "ok",
        Next::Answer(Err(_)) => "err",
        Next::Apply => "apply",
        Next::Keep(_) => "keep",
        Next::TakeBack => "back",
    }
}

#[test]
fn every_order_in_every_phase() {
    let now = at(110, 1_010);
    let past = Journal {
        current: None,
        past: [Past { application: id(1), end: End::Lapsed, reason: "nobody".to_owned(), told: true }].into(),
    };
    // (journal, apply it, apply another, confirm, roll back)
    let table = [
        ("nothing", Journal::default(), ["apply", "apply", "err", "keep"]),
        ("applying", journal(Phase::Applying), ["err", "err", "err", "back"]),
        ("trial", journal(trial()), ["ok", "err", "keep", "back"]),
        ("confirmed", journal(Phase::Confirmed), ["ok", "err", "ok", "back"]),
        ("going", journal(going()), ["err", "err", "err", "back"]),
        ("past", past, ["err", "apply", "err", "ok"]),
    ];
    for (name, journal, expected) in table {
        let got = [
            word(&journal.on_apply(&wanted(1))),
            word(&journal.on_apply(&wanted(2))),
            word(&journal.clone().on_confirm(id(1), &now)),
            word(&journal.clone().on_roll_back(id(1), "told")),
        ];
        assert_eq!(got, expected, "{name}");
        assert_eq!(word(&journal.clone().on_confirm(id(9), &now)), "err", "{name}");
        assert_eq!(word(&journal.clone().on_roll_back(id(9), "told")), "keep", "{name}: what is unknown is gone");
    }
}

#[test]
fn a_start_puts_right_what_was_left_half_done() {
    let another = Moment { boot: "boot-2".to_owned(), ..at(1, 1_001) };
    for (phase, now, expected) in [
        (Phase::Applying, at(110, 1_010), Some(End::Failed)),
        (trial(), at(110, 1_010), None),
        (trial(), at(160, 1_010), Some(End::Lapsed)),
        (trial(), at(110, 1_060), Some(End::Lapsed)),
        (trial(), another.clone(), Some(End::Lapsed)),
        (going(), at(110, 1_010), Some(End::Lapsed)),
        (Phase::Confirmed, another, None),
    ] {
        let mut journal = journal(phase.clone());
        let next = journal.on_start(&now);
        assert_eq!(next, expected.map(|_| Next::TakeBack), "{phase:?}");
        if let Some(end) = expected {
            let past = journal.taken_back().expect("it was there");
            assert_eq!((past.end, past.reason.is_empty(), journal.current), (end, false, None), "{phase:?}");
        }
    }
    assert_eq!(Journal::default().on_start(&at(0, 0)), None);
}

#[test]
fn a_stop_leaves_only_what_was_confirmed() {
    assert_eq!(journal(trial()).on_stop(), Some(Next::TakeBack));
    assert_eq!(journal(Phase::Confirmed).on_stop(), None);
    assert_eq!(Journal::default().on_stop(), None);
}

#[test]
fn a_late_confirmation_takes_back_and_says_so() {
    let mut late = journal(trial());
    assert_eq!(late.on_confirm(id(1), &at(160, 1_010)), Next::TakeBack);
    late.taken_back();
    let Next::Answer(Err(words)) = late.on_confirm(id(1), &at(161, 1_011)) else { panic!("{late:?}") };
    assert_eq!(words, "lapsed: nobody confirmed it within 60 s");
}

#[test]
fn the_first_reason_stays() {
    let mut journal = journal(going());
    journal.on_roll_back(id(1), "an operator");
    assert_eq!(journal.taken_back().map(|p| (p.end, p.reason)), Some((End::Lapsed, "too late".to_owned())));
}

#[test]
fn an_end_is_told_once_but_not_never() {
    let mut journal = journal(going());
    assert!(journal.untold().is_empty());
    let past = journal.taken_back().expect("it was there");
    assert_eq!(journal.untold(), [past]);
    journal.tell(id(1));
    assert!(journal.untold().is_empty());
    journal.remember(Past { application: id(2), end: End::Failed, reason: String::new(), told: false });
    assert!(journal.untold().is_empty(), "failures are acknowledged");
}

#[test]
fn what_is_past_is_remembered_for_a_while() {
    let mut journal = Journal::default();
    for n in 0..100 {
        journal.on_roll_back(id(n), "told");
    }
    assert_eq!(journal.past.len(), 32);
    assert_eq!(word(&journal.on_apply(&wanted(99))), "err", "rolled back before it came");
    assert_eq!(word(&journal.on_apply(&wanted(1))), "apply");
}

#[test]
fn the_journal_reads_what_it_wrote() {
    for phase in [Phase::Applying, trial(), Phase::Confirmed, going()] {
        let journal = journal(phase);
        let text = serde_json::to_string(&journal).expect("JSON");
        assert_eq!(serde_json::from_str::<Journal>(&text).expect("a journal"), journal);
    }
}

proptest! {
    /// Whatever the wall clock does meanwhile, a trial ends when its time is over by the other one, or before.
    #[test]
    fn no_clock_prolongs_a_trial(walls in prop::collection::vec(-100_000i64..100_000, 1..80)) {
        let mut journal = journal(trial());
        for (second, wall) in walls.iter().enumerate() {
            let second = second as i64;
            let now = at(100 + second, 1_000 + wall);
            let ended = journal.on_time(&now).is_some();
            prop_assert_eq!(ended, second >= 60 || *wall >= 60, "{} {}", second, wall);
            if ended {
                break;
            }
            let left = journal.current.as_ref().and_then(|c| c.left_secs(&now)).expect("on trial");
            prop_assert!(left <= 60 - second.unsigned_abs());
        }
    }
}
