//! What may be imported.

use super::*;
use crate::domain::AllowlistScope;

fn now() -> Timestamp {
    Timestamp::from_secs(1_000_000_000)
}

fn given(value: &str) -> GivenIndicator {
    GivenIndicator {
        value: value.to_owned(),
        kind: None,
        confidence: 0.8,
        source: "feed".to_owned(),
        description: String::new(),
        first_seen: None,
        last_seen: None,
        expires_at: None,
    }
}

#[test]
fn a_value_has_one_spelling_and_a_kind() {
    for (text, expected) in [
        ("198.51.100.7", Some(("198.51.100.7", IndicatorKind::Address))),
        ("198.51.100.7/32", Some(("198.51.100.7", IndicatorKind::Address))),
        ("198.51.100.77/24", Some(("198.51.100.0/24", IndicatorKind::Prefix))),
        ("2001:DB8:0::1", Some(("2001:db8::1", IndicatorKind::Address))),
        ("2001:db8::1/48", Some(("2001:db8::/48", IndicatorKind::Prefix))),
        ("Evil.Example.", Some(("evil.example", IndicatorKind::Domain))),
        ("a-1.b.example", Some(("a-1.b.example", IndicatorKind::Domain))),
        ("example", None),
        ("198.51.100.256", None),
        ("198.51.100.0/33", None),
        ("-a.example", None),
        ("a..example", None),
        ("a_b.example", None),
        ("evil.example\tIntel::ADDR", None),
        ("evil.example\n", Some(("evil.example", IndicatorKind::Domain))),
        ("evil.example;drop", None),
        ("", None),
    ] {
        let value = IndicatorValue::parse(text);
        let got = value.as_ref().map(|v| (v.to_string(), v.kind()));
        assert_eq!(got, expected.map(|(text, kind)| (text.to_owned(), kind)), "{text}");
    }
    assert!(!is_domain(&format!("{}.example", "a".repeat(64))));
    assert!(!is_domain(&format!("{}example", "a.".repeat(124))));
}

#[test]
fn every_bound_is_named_by_its_index_and_field() {
    type Change = fn(&mut GivenIndicator);
    let table: [(&str, Change); 13] = [
        ("value", |g| g.value = "x".to_owned()),
        ("value", |g| g.value = "192.0.0.0/7".to_owned()),
        ("value", |g| g.value = "2001:db8::/18".to_owned()),
        ("value", |g| g.value = "10.1.2.3".to_owned()),
        ("value", |g| g.value = "::ffff:198.51.100.7".to_owned()),
        ("value", |g| g.value = "172.0.0.0/8".to_owned()),
        ("kind", |g| g.kind = Some(IndicatorKind::Domain)),
        ("confidence", |g| g.confidence = 1.01),
        ("confidence", |g| g.confidence = f64::NAN),
        ("source", |g| g.source = "a\tb".to_owned()),
        ("last_seen", |g| g.last_seen = Some(now().plus_secs(86_401))),
        ("first_seen", |g| g.first_seen = Some(now().plus_secs(1))),
        ("expires_at", |g| g.expires_at = Some(now())),
    ];
    for (n, (field, change)) in table.into_iter().enumerate() {
        let mut call = vec![given("198.51.100.1"), given("198.51.100.2")];
        change(&mut call[1]);
        let Err(Problem::Invalid(fields)) = check_import(call, now()) else { panic!("{n} {field} was accepted") };
        assert_eq!(fields[0].field, format!("indicators[1].{field}"), "{n}");
    }
    let taken = check_import(vec![given("198.51.100.1")], now()).expect("within bounds");
    assert_eq!((taken[0].expires_at, taken[0].first_seen), (now().plus_secs(30 * 86_400), now()));
}

#[test]
fn a_call_has_1_to_100_indicators_and_none_twice() {
    let many = |n: usize| (0..n).map(|n| given(&format!("198.51.100.{n}"))).collect::<Vec<_>>();
    for (n, fits) in [(0, false), (1, true), (100, true), (101, false)] {
        assert_eq!(check_import(many(n), now()).is_ok(), fits, "{n}");
    }
    let mut call = vec![given("x"), given("198.51.100.1"), given("198.51.100.1/32")];
    call.push(GivenIndicator { source: "another".to_owned(), ..given("198.51.100.1") });
    let Err(Problem::Invalid(fields)) = check_import(call, now()) else { panic!("accepted") };
    let told: Vec<_> = fields.iter().map(|f| (f.field.as_str(), f.message.as_str())).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[1], ("indicators[2].value", "is indicators[1] again"));
}

#[test]
fn an_allowlisted_value_is_refused_with_the_entry() {
    let entry = AllowlistEntry {
        id: 4,
        ip_address: "198.51.100.0/28".parse().expect("a prefix"),
        label: String::new(),
        scope: AllowlistScope::Node,
        node: Some(uuid::Uuid::nil()),
        created_at: now(),
    };
    let table = [
        ("198.51.100.7", false),
        ("198.51.100.16", true),
        ("198.51.0.0/16", false),
        ("198.51.100.1/32", false),
        ("evil.example", true),
    ];
    for (value, fits) in table {
        let new = check_import(vec![given(value)], now()).expect("within bounds");
        let got = check_allowed(&new, std::slice::from_ref(&entry));
        assert_eq!(got.is_ok(), fits, "{value}");
        if let Err(Problem::Invalid(fields)) = got {
            assert!(fields[0].message.contains("entry 4 (198.51.100.0/28)"), "{fields:?}");
        }
    }
}
