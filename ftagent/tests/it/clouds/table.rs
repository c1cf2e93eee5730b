//! Each action with each thing that can happen to it.

use std::time::Duration;

use ftagent::engine::{Acted, Outcome};
use ftagent_common::api::{PreviewContext, preview};
use serde_json::{Value, json};
use uuid::Uuid;

use super::cloudflare::Cloudflare;
use super::receiver::{Sent, TOKEN, Trouble};
use super::{ACCOUNT, BYSTANDER, CASES, LATER_NS, LIST, SEC, Site, UUID, ZONE, done, outcome, undone};

/// Whether what was sent is what was shown, where `<…>` stands for what is known only then, in an array for any number.
fn is_as_shown(shown: &Value, sent: &Value) -> bool {
    match (shown, sent) {
        (Value::String(text), _) if text.starts_with('<') && text.ends_with('>') => true,
        (Value::String(text), Value::String(sent)) if text.contains('<') => {
            let parts: Vec<&str> = text.split(['<', '>']).collect();
            sent.starts_with(parts[0]) && sent.ends_with(parts[parts.len() - 1])
        }
        (Value::Object(shown), Value::Object(sent)) => {
            let is_open = |value: &Value| value.as_str().is_some_and(|text| text.starts_with('<'));
            sent.keys().all(|key| shown.contains_key(key))
                && shown.iter().all(|(key, value)| match sent.get(key) {
                    Some(sent) => is_as_shown(value, sent),
                    None => is_open(value),
                })
        }
        (Value::Array(shown), Value::Array(sent)) => match shown.split_first() {
            None => sent.is_empty(),
            Some((Value::String(text), rest)) if text.starts_with('<') => {
                let rest = Value::from(rest.to_vec());
                (0..=sent.len()).any(|from| is_as_shown(&rest, &sent[from..].into()))
            }
            Some((first, rest)) => {
                sent.first().is_some_and(|sent| is_as_shown(first, sent))
                    && is_as_shown(&Value::from(rest.to_vec()), &sent[1..].into())
            }
        },
        _ => shown == sent,
    }
}

/// Each request that was sent was shown, and each that was shown was sent.
fn check_shown(shown: &[Vec<String>], sent: &[Sent], what: &str) {
    let one = |argv: &Vec<String>| {
        let path = argv[1].split_once("/v4/").or(argv[1].split_once("/v2/")).expect("an official URL").1;
        let body = if argv[2].is_empty() { Value::Null } else { serde_json::from_str(&argv[2]).unwrap() };
        (argv[0].clone(), format!("/{path}"), body)
    };
    let mut shown: Vec<_> = shown.iter().filter(|argv| !argv.is_empty() && argv[0] != "GET").map(one).collect();
    for sent in sent {
        let is_it = |(method, path, body): &(String, String, Value)| {
            *method == sent.method
                && is_as_shown(&path.as_str().into(), &sent.path.as_str().into())
                && is_as_shown(body, &sent.body)
        };
        let at = shown.iter().position(is_it).unwrap_or_else(|| panic!("{what}: {sent:?} was not shown: {shown:#?}"));
        shown.remove(at);
    }
    assert!(shown.is_empty(), "{what}: not sent: {shown:#?}");
}

#[test]
fn what_is_sent_is_what_is_shown() {
    for case in CASES {
        let site = Site::new(case.tool);
        if case.tool == "digitalocean" {
            let rule = json!({
                "action": "allow", "protocol": "tcp", "ports": "443", "sources": { "addresses": ["0.0.0.0/0", "::/0"] },
            });
            let firewall = json!({ "name": "edge", "inbound_rules": [rule], "droplet_ids": [1], "tags": [] });
            assert_eq!(site.receiver.by_hand("PUT", &format!("/firewalls/{UUID}"), &firewall).0, 200);
        }
        let target = "203.0.113.5/32".parse().unwrap();
        let context = PreviewContext::of(target);
        let shown = preview(&case.action(case.sources), &context);
        let mut keeper = site.keeper(case.tool, 0);
        let acted = done(&mut keeper, vec![case.wanted(1, case.sources)], 0);
        check_shown(&shown.do_, &site.receiver.state().sent_changes(), case.head);
        check_told(&acted, &site.receiver.state().sent_changes());
        site.receiver.state().log.clear();
        let acted = undone(&mut keeper, vec![], &[1], SEC);
        check_shown(&shown.undo, &site.receiver.state().sent_changes(), case.head);
        check_told(&acted, &site.receiver.state().sent_changes());
    }
}

/// What is told is what was sent, with what came of it.
fn check_told(acted: &[Acted], sent: &[Sent]) {
    let told = &acted.last().unwrap();
    let methods = |argv: &Vec<String>| argv[0].clone();
    assert_eq!(
        told.commands.iter().map(methods).collect::<Vec<_>>(),
        sent.iter().map(|s| s.method.clone()).collect::<Vec<_>>()
    );
    assert!(told.commands.iter().zip(sent).all(|(argv, sent)| argv[1].ends_with(&sent.path)), "{told:?}");
    assert!(told.output.contains(" us, HTTP 2"), "{}", told.output);
}

#[test]
fn it_blocks_the_sources_and_nobody_else_and_undoing_leaves_no_trace() {
    for case in CASES {
        let site = Site::new(case.tool);
        let before = site.receiver.snapshot();
        let mut keeper = site.keeper(case.tool, 0);
        let was_open = !site.receiver.blocks(BYSTANDER);
        done(&mut keeper, vec![case.wanted(1, case.sources)], 0);
        for source in case.sources {
            assert!(site.receiver.blocks(source), "{case:?} {source}: {}", site.receiver.snapshot());
        }
        assert_eq!(!site.receiver.blocks(BYSTANDER), was_open, "{case:?}");
        let during = site.receiver.snapshot();
        let sent = site.receiver.state().sent_changes().len();
        // Twice, by the same agent, by one that was started anew, and at the next looks.
        keeper.set(vec![case.wanted(1, case.sources), case.wanted(2, case.sources)], []);
        assert_eq!(outcome(&keeper.work(SEC), 2), Some(&Outcome::Applied));
        keeper.repair(100 * SEC);
        let mut keeper = site.keeper(case.tool, 0);
        done(&mut keeper, vec![case.wanted(1, case.sources), case.wanted(2, case.sources)], SEC);
        keeper.repair(100 * SEC);
        assert_eq!(site.receiver.state().sent_changes().len(), sent, "{case:?}: nothing is sent again");
        assert_eq!(site.receiver.snapshot(), during);
        // One of two that want the same is not the last.
        undone(&mut keeper, vec![case.wanted(1, case.sources)], &[2], LATER_NS);
        assert_eq!(site.receiver.snapshot(), during);
        undone(&mut keeper, vec![], &[1], LATER_NS + SEC);
        assert_eq!(site.receiver.snapshot(), before, "{case:?}");
        assert!(keeper.is_idle());
        let sent = site.receiver.state().sent_changes().len();
        undone(&mut keeper, vec![], &[1], LATER_NS + 2 * SEC);
        assert_eq!(site.receiver.state().sent_changes().len(), sent, "{case:?}: undone twice is undone once");
    }
}

#[test]
fn what_is_gone_already_is_undone() {
    for case in CASES {
        let site = Site::new(case.tool);
        let mut keeper = site.keeper(case.tool, 0);
        done(&mut keeper, vec![case.wanted(1, case.sources)], 0);
        // All of it goes by another hand: another site of the same kind is what is left.
        let fresh = Site::new(case.tool);
        let before = fresh.receiver.snapshot();
        std::mem::swap(&mut site.receiver.state().cloud, &mut fresh.receiver.state().cloud);
        undone(&mut keeper, vec![], &[1], SEC);
        assert_eq!(site.receiver.snapshot(), before, "{case:?}");
        assert!(keeper.is_idle());
    }
}

#[test]
fn a_want_of_a_key_is_told_and_nothing_is_sent() {
    for case in CASES {
        let site = Site::new(case.tool);
        let before = site.receiver.snapshot();
        let fails = |site: &Site, part: &str| {
            let mut keeper = site.keeper(case.tool, 0);
            keeper.set(vec![case.wanted(1, case.sources)], []);
            let acted = keeper.work(0);
            let Some(Outcome::Failed(why)) = outcome(&acted, 1) else { panic!("{case:?}: {acted:?}") };
            assert!(why.contains(part) && why.contains(case.tool), "{case:?}: {why} lacks {part}");
            let told = format!("{acted:?} {:?}", keeper.stuck());
            assert!(!told.contains(TOKEN) && !told.contains("another-key"), "{told}");
            assert!(keeper.journal().entries().is_empty());
            assert_eq!(site.receiver.snapshot(), before, "{case:?}");
        };
        for (status, words) in [(401, "HTTP 401"), (403, "HTTP 403")] {
            site.write_key("another-key-0123456789abcdef");
            site.receiver.state().refuses_with = status;
            fails(&site, words);
        }
        fails(&site, &site.key().display().to_string());
        site.receiver.state().log.clear();
        std::fs::remove_file(site.key()).unwrap();
        fails(&site, "no key: cloud.");
        fails(&site, "No such file");
        site.write_key("short");
        fails(&site, "16 to 256");
        assert!(site.receiver.state().log.is_empty());
    }
}

#[test]
fn a_key_that_is_wrong_when_it_is_undone_stays_in_the_journal_until_it_is_right() {
    for case in CASES {
        let site = Site::new(case.tool);
        let before = site.receiver.snapshot();
        let mut keeper = site.keeper(case.tool, 0);
        done(&mut keeper, vec![case.wanted(1, case.sources)], 0);
        site.write_key("another-key-0123456789abcdef");
        keeper.set(vec![], [Uuid::from_u128(1)]);
        let acted = keeper.work(SEC);
        assert!(matches!(outcome(&acted, 1), Some(Outcome::Stuck(why)) if why.contains("HTTP 401")), "{acted:?}");
        assert!(!keeper.journal().entries().is_empty() && keeper.stuck().len() == 1);
        site.write_key(TOKEN);
        assert_eq!(outcome(&keeper.work(LATER_NS), 1), Some(&Outcome::Undone), "{case:?}");
        assert_eq!(site.receiver.snapshot(), before);
    }
}

#[test]
fn a_provider_that_is_away_when_it_is_undone_is_asked_again_later() {
    for case in CASES {
        for trouble in [Trouble::Status(503, None), Trouble::Drop { after: false }, Trouble::Status(429, Some("20"))] {
            let site = Site::new(case.tool);
            let before = site.receiver.snapshot();
            let mut keeper = site.keeper(case.tool, 0);
            done(&mut keeper, vec![case.wanted(1, case.sources)], 0);
            // A look is tried twice on a connection that was kept.
            site.trouble(vec![Some(trouble.clone()); 2]);
            keeper.set(vec![], [Uuid::from_u128(1)]);
            let acted = keeper.work(SEC);
            assert!(matches!(outcome(&acted, 1), Some(Outcome::Stuck(_))), "{case:?} {trouble:?}: {acted:?}");
            assert!(!keeper.journal().entries().is_empty(), "it stays in the journal");
            site.trouble([]);
            // Not before its time, and by an agent that was started anew as well.
            let asked = site.receiver.state().log.len();
            assert!(keeper.work(SEC + SEC / 2).is_empty());
            assert_eq!(site.receiver.state().log.len(), asked, "{case:?} {trouble:?}");
            assert_eq!(outcome(&keeper.work(60 * SEC), 1), Some(&Outcome::Undone), "{case:?} {trouble:?}");
            assert_eq!(site.receiver.snapshot(), before, "{case:?} {trouble:?}");
        }
    }
}

#[test]
fn what_may_pass_is_tried_again_and_not_before_the_provider_says() {
    for case in CASES {
        let site = Site::new(case.tool);
        let before = site.receiver.snapshot();
        let mut keeper = site.keeper(case.tool, 0);
        site.trouble_with_changes([Some(Trouble::Status(429, Some("30")))]);
        keeper.set(vec![case.wanted(1, case.sources)], []);
        let acted = keeper.work(0);
        assert!(matches!(outcome(&acted, 1), Some(Outcome::Amiss(Some(why))) if why.contains("429")), "{acted:?}");
        let asked = site.receiver.state().log.len();
        assert!(keeper.work(29 * SEC).is_empty());
        assert_eq!(site.receiver.state().log.len(), asked, "{case:?}: it asked to be left alone");
        assert_eq!(outcome(&keeper.work(31 * SEC), 1), Some(&Outcome::Applied), "{case:?}");
        assert!(case.sources.iter().all(|source| site.receiver.blocks(source)));
        undone(&mut keeper, vec![], &[1], LATER_NS);
        assert_eq!(site.receiver.snapshot(), before);
        // A provider that stays away: it is given up, and nothing is left.
        let mut keeper = site.keeper(case.tool, 0);
        let asked = site.receiver.state().log.len();
        site.trouble(vec![Some(Trouble::Status(500, None)); 1_000]);
        keeper.set(vec![case.wanted(2, case.sources)], []);
        let mut failed = None;
        for now in (0..1_000).map(|n| n * SEC) {
            let acted = keeper.work(now);
            if let Some(Outcome::Failed(why)) = outcome(&acted, 2) {
                failed = Some((now / SEC, why.clone()));
                break;
            }
        }
        let (after, why) = failed.expect("an end");
        assert!((300..=600).contains(&after) && why.contains("500"), "{case:?}: after {after} s: {why}");
        assert!(site.receiver.state().log.len() < asked + 30, "waits grow");
        site.trouble([]);
        keeper.work(2_000 * SEC);
        assert_eq!(site.receiver.snapshot(), before);
    }
}

#[test]
fn an_answer_that_is_lost_or_late_is_looked_for_before_anything_is_repeated() {
    for case in CASES {
        for trouble in [
            Trouble::Drop { after: true },
            Trouble::Drop { after: false },
            Trouble::Slow(Duration::from_secs(2)),
            Trouble::Garbage,
            Trouble::Status(500, None),
        ] {
            let mut site = Site::new(case.tool);
            if let Trouble::Slow(pause) = trouble {
                if case.head == CASES[1].head || case.tool == "vultr" {
                    continue;
                }
                site.timeout = pause / 2;
            }
            let before = site.receiver.snapshot();
            let mut keeper = site.keeper(case.tool, 0);
            site.trouble_with_changes([Some(trouble.clone())]);
            keeper.set(vec![case.wanted(1, case.sources)], []);
            let acted = keeper.work(0);
            assert!(matches!(outcome(&acted, 1), Some(Outcome::Amiss(Some(_)))), "{case:?} {trouble:?}: {acted:?}");
            let acted = keeper.work(10 * SEC);
            assert_eq!(outcome(&acted, 1), Some(&Outcome::Applied), "{case:?} {trouble:?}: {acted:?}");
            let mut sent = site.receiver.state().sent_changes();
            let all = sent.len();
            sent.dedup();
            let is_effect = !matches!(trouble, Trouble::Drop { after: false } | Trouble::Status(..));
            assert_eq!(all == sent.len(), is_effect, "{case:?} {trouble:?}: {sent:#?}");
            // And the same on the way back.
            site.trouble_with_changes([Some(trouble.clone())]);
            keeper.set(vec![], [Uuid::from_u128(1)]);
            let acted = keeper.work(20 * SEC);
            assert!(matches!(outcome(&acted, 1), Some(Outcome::Stuck(_))), "{case:?} {trouble:?}: {acted:?}");
            let acted = keeper.work(LATER_NS);
            assert_eq!(outcome(&acted, 1), Some(&Outcome::Undone), "{case:?} {trouble:?}: {acted:?}");
            assert_eq!(site.receiver.snapshot(), before, "{case:?} {trouble:?}");
            assert!(keeper.is_idle());
        }
    }
}

#[test]
fn a_crash_between_a_request_and_its_answer_leaves_nothing_behind() {
    for case in CASES {
        for is_wanted_after in [true, false] {
            for place in [0, 1, 2, 3, 16, 31, 32, 33, 34] {
                let site = Site::new(case.tool);
                let before = site.receiver.snapshot();
                let mut keeper = site.keeper(case.tool, 0);
                // At the death the request was carried out, and nobody heard of it.
                let until = (0..place).map(|_| None).chain([Some(Trouble::Drop { after: true })]);
                site.trouble_with_changes(until);
                keeper.set(vec![case.wanted(1, case.sources)], []);
                let has_died = outcome(&keeper.work(0), 1) != Some(&Outcome::Applied);
                drop(keeper);
                site.trouble_with_changes([]);
                let mut keeper = site.keeper(case.tool, SEC);
                if is_wanted_after {
                    done(&mut keeper, vec![case.wanted(1, case.sources)], 2 * SEC);
                    assert!(case.sources.iter().all(|source| site.receiver.blocks(source)), "{case:?} {place}");
                }
                keeper.set(vec![], [Uuid::from_u128(1)]);
                keeper.work(3 * SEC);
                assert!(!case.sources.iter().any(|source| site.receiver.blocks(source)), "{case:?} {place}");
                let acted = keeper.work(LATER_NS);
                assert_eq!(site.receiver.snapshot(), before, "{case:?} {place} {is_wanted_after}: {acted:?}");
                assert!(keeper.is_idle(), "{case:?} {place}");
                if !has_died {
                    break;
                }
            }
        }
    }
}

#[test]
fn what_comes_late_after_a_crash_is_undone_too() {
    let case = CASES[0];
    let site = Site::new(case.tool);
    let before = site.receiver.snapshot();
    let mut keeper = site.keeper(case.tool, 0);
    site.trouble_with_changes([Some(Trouble::Drop { after: false })]);
    keeper.set(vec![case.wanted(1, &["198.51.100.7/32"])], []);
    keeper.work(0);
    let sent = site.receiver.state().sent_changes().pop().unwrap();
    let mut keeper = site.keeper(case.tool, SEC);
    keeper.set(vec![], [Uuid::from_u128(1)]);
    assert_eq!(outcome(&keeper.work(SEC), 1), None, "it may still come");
    // And it does.
    assert_eq!(site.receiver.by_hand("POST", &sent.path, &sent.body).0, 200);
    keeper.work(10 * SEC);
    assert_eq!(site.receiver.snapshot(), before);
    keeper.work(LATER_NS);
    assert!(keeper.is_idle());
}

#[test]
fn what_fails_half_way_is_undone() {
    for case in CASES {
        for place in 0..3 {
            let site = Site::new(case.tool);
            let before = site.receiver.snapshot();
            let mut keeper = site.keeper(case.tool, 0);
            site.trouble_with_changes((0..place).map(|_| None).chain([Some(Trouble::Status(422, None))]));
            keeper.set(vec![case.wanted(1, case.sources)], []);
            let acted = keeper.work(0);
            if outcome(&acted, 1) == Some(&Outcome::Applied) {
                continue;
            }
            assert!(matches!(outcome(&acted, 1), Some(Outcome::Failed(why)) if why.contains("422")), "{acted:?}");
            assert_eq!(site.receiver.snapshot(), before, "{case:?} {place}");
            keeper.work(LATER_NS);
            assert!(keeper.journal().entries().is_empty(), "{case:?} {place}");
        }
    }
    // A group without room is asked for nothing.
    let case = CASES[3];
    let site = Site::new(case.tool);
    site.receiver.by_hand("PUT", &format!("/firewalls/{UUID}/most"), &20.into());
    let mut keeper = site.keeper(case.tool, 0);
    keeper.set(vec![case.wanted(1, case.sources)], []);
    let acted = keeper.work(0);
    assert!(matches!(outcome(&acted, 1), Some(Outcome::Failed(why)) if why.contains("may have 20 rules")), "{acted:?}");
    assert!(site.receiver.state().sent_changes().is_empty());
}

#[test]
fn what_somebody_else_made_is_left_alone_and_what_they_take_away_is_made_again() {
    for case in &CASES[..2] {
        let site = Site::new(case.tool);
        let source = "198.51.100.7";
        let (path, body) = match case.head.contains("zone") {
            true => (
                format!("/zones/{ZONE}/firewall/access_rules/rules"),
                json!({ "mode": "block", "configuration": { "target": "ip", "value": source }, "notes": "by hand" }),
            ),
            false => (
                format!("/accounts/{ACCOUNT}/rules/lists/{LIST}/items"),
                json!([{ "ip": source, "comment": "by hand" }]),
            ),
        };
        assert_eq!(site.receiver.by_hand("POST", &path, &body).0, 200);
        site.receiver.by_hand("GET", &format!("{path}?per_page=100"), &Value::Null);
        let before = site.receiver.snapshot();
        let mut keeper = site.keeper(case.tool, 0);
        done(&mut keeper, vec![case.wanted(1, case.sources)], 0);
        undone(&mut keeper, vec![], &[1], LATER_NS);
        assert_eq!(site.receiver.snapshot(), before, "{case:?}");
    }
    for case in CASES {
        let site = Site::new(case.tool);
        let mut keeper = site.keeper(case.tool, 0);
        done(&mut keeper, vec![case.wanted(1, case.sources)], 0);
        let fresh = Site::new(case.tool);
        let before = fresh.receiver.snapshot();
        std::mem::swap(&mut site.receiver.state().cloud, &mut fresh.receiver.state().cloud);
        keeper.repair(LATER_NS);
        assert!(case.sources.iter().all(|source| site.receiver.blocks(source)), "{case:?}");
        undone(&mut keeper, vec![], &[1], 2 * LATER_NS);
        assert_eq!(site.receiver.snapshot(), before, "{case:?}");
    }
}

#[test]
fn a_rule_of_ours_that_somebody_made_theirs_is_left_alone() {
    let case = CASES[0];
    let site = Site::new(case.tool);
    let mut keeper = site.keeper(case.tool, 0);
    done(&mut keeper, vec![case.wanted(1, &["198.51.100.7/32", "198.51.100.8/32"])], 0);
    let ids: Vec<String> = site.receiver.snapshot()["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["id"].as_str().unwrap().to_owned())
        .collect();
    let path = format!("/zones/{ZONE}/firewall/access_rules/rules");
    // One is only renamed, the other allows from now on.
    site.receiver.by_hand("PATCH", &format!("{path}/{}", ids[0]), &json!({ "notes": "botnet" }));
    site.receiver.by_hand("PATCH", &format!("{path}/{}", ids[1]), &json!({ "mode": "whitelist" }));
    undone(&mut keeper, vec![], &[1], SEC);
    let left = site.receiver.snapshot();
    assert_eq!(left["rules"].as_array().unwrap().len(), 1, "{left}");
    assert_eq!(left["rules"][0]["mode"], "whitelist");
}

#[test]
fn what_people_change_meanwhile_stands() {
    let case = CASES[2];
    let site = Site::new(case.tool);
    let path = format!("/firewalls/{UUID}");
    let mut keeper = site.keeper(case.tool, 0);
    done(&mut keeper, vec![case.wanted(1, case.sources)], 0);
    // A droplet joins, a rule is added, another loses its rule for all.
    let mut firewall = site.receiver.snapshot();
    for key in ["id", "status", "created_at", "pending_changes"] {
        firewall.as_object_mut().unwrap().remove(key);
    }
    firewall["droplet_ids"] = json!([8_043_964, 5]);
    let added =
        json!({ "action": "allow", "protocol": "tcp", "ports": "8443", "sources": { "addresses": ["0.0.0.0/0"] } });
    let rules = firewall["inbound_rules"].as_array_mut().unwrap();
    rules.push(added.clone());
    rules[2]["sources"]["addresses"] = json!(["192.0.2.99/32"]);
    assert_eq!(site.receiver.by_hand("PUT", &path, &firewall).0, 200);
    // What is new is narrowed too.
    keeper.repair(LATER_NS);
    assert!(case.sources.iter().all(|source| site.receiver.blocks(source)));
    let acted = undone(&mut keeper, vec![], &[1], 2 * LATER_NS);
    let left = site.receiver.snapshot();
    assert_eq!(left["droplet_ids"], json!([8_043_964, 5]));
    assert_eq!(left["inbound_rules"][0]["sources"]["addresses"], json!(["0.0.0.0/0", "::/0"]));
    assert_eq!(left["inbound_rules"][2]["sources"]["addresses"], json!(["192.0.2.99/32"]), "it stays closed");
    assert_eq!(left["inbound_rules"][5], added);
    assert!(acted[0].output.contains("somebody else took away"), "{acted:?}");
}

#[test]
fn an_operation_on_a_list_takes_its_time_and_there_is_one_at_a_time() {
    let case = CASES[1];
    let site = Site::new(case.tool);
    site.receiver.state().cloud = Box::new(Cloudflare::slow(3));
    let before = site.receiver.snapshot();
    let mut keeper = site.keeper(case.tool, 0);
    done(&mut keeper, vec![case.wanted(1, case.sources)], 0);
    assert!(case.sources.iter().all(|source| site.receiver.blocks(source)));
    // Somebody else's is under way: ours has to wait.
    let path = format!("/accounts/{ACCOUNT}/rules/lists/{LIST}/items");
    assert_eq!(site.receiver.by_hand("POST", &path, &json!([{ "ip": "192.0.2.1" }])).0, 200);
    keeper.set(vec![], [Uuid::from_u128(1)]);
    let acted = keeper.work(SEC);
    assert!(matches!(outcome(&acted, 1), Some(Outcome::Stuck(why)) if why.contains("outstanding")), "{acted:?}");
    let mut now_ns = SEC;
    while !keeper.is_idle() {
        now_ns += 100 * SEC;
        assert!(now_ns < 1_000 * SEC, "it has to come to an end");
        keeper.work(now_ns);
    }
    let left = site.receiver.snapshot();
    assert_eq!((left["items"].as_array().unwrap().len(), &left["items"][0]["ip"]), (1, &json!("192.0.2.1")));
    assert_ne!(left, before);
}

#[test]
fn how_many_rules_others_have_in_a_zone_costs_nothing_when_ours_go() {
    let case = CASES[0];
    let site = Site::new(case.tool);
    let rules = format!("/zones/{ZONE}/firewall/access_rules/rules");
    for n in 0..300_u32 {
        let configuration = json!({ "target": "ip", "value": format!("10.0.{}.{}", n / 250, n % 250) });
        let rule =
            json!({ "mode": "block", "configuration": configuration, "notes": format!("ftagent other-{n:016x}") });
        assert_eq!(site.receiver.by_hand("POST", &rules, &rule).0, 200);
    }
    let before = site.receiver.snapshot();
    let mut keeper = site.keeper(case.tool, 0);
    done(&mut keeper, vec![case.wanted(1, case.sources)], 0);
    site.receiver.state().log.clear();
    undone(&mut keeper, vec![], &[1], SEC);
    assert_eq!(site.receiver.snapshot(), before);
    let looks = site.receiver.state().log.iter().filter(|sent| sent.method == "GET").count();
    assert_eq!(looks, 1, "three pages of a hundred are those of others");
}
