use super::*;

fn webhook() -> NewDestination {
    let mut secrets = Secrets::default();
    secrets.set("secret", "sesame".to_owned());
    secrets.set("header.X-Api-Key", "open".to_owned());
    NewDestination {
        kind: DestinationKind::Webhook,
        name: "hook".to_owned(),
        enabled: true,
        min_severity: Severity::Low,
        settings: BTreeMap::from([("url".to_owned(), Setting::Text("https://example.net/hook".to_owned()))]),
        secrets,
    }
}

fn wrong(new: NewDestination, duty: Duty) -> Vec<String> {
    let Err(Problem::Invalid(fields)) = new.check(duty, false) else { panic!("it was accepted") };
    fields.into_iter().map(|f| f.field).collect()
}

#[test]
fn a_webhook_gets_its_defaults() {
    let checked = webhook().check(Duty::Channel, false).expect("within bounds");
    assert_eq!(checked.settings["timeout_secs"], Setting::Number(10));
    assert!(webhook().check(Duty::Integration, false).is_ok());
}

#[test]
fn every_bound_is_named_by_its_field() {
    type Change = fn(&mut NewDestination);
    let table: [(&str, Change); 20] = [
        ("name", |d| d.name.clear()),
        ("settings.url", |d| drop(d.settings.remove("url"))),
        ("settings.url", |d| drop(d.settings.insert("url".into(), Setting::Text("http://127.0.0.1/".into())))),
        ("settings.url", |d| drop(d.settings.insert("url".into(), Setting::Number(1)))),
        ("settings.colour", |d| drop(d.settings.insert("colour".into(), Setting::Number(1)))),
        ("settings.secret", |d| drop(d.settings.insert("secret".into(), Setting::Text("x".into())))),
        ("settings.timeout_secs", |d| drop(d.settings.insert("timeout_secs".into(), Setting::Number(31)))),
        ("settings.timeout_secs", |d| drop(d.settings.insert("timeout_secs".into(), Setting::Text("9".into())))),
        ("secrets.secret", |d| d.secrets = Secrets::default()),
        ("secrets.secret", |d| d.secrets.set("secret", String::new())),
        ("secrets.secret", |d| d.secrets.set("secret", "a\nb".into())),
        ("secrets.url", |d| d.secrets.set("url", "x".into())),
        ("headers.Host", |d| d.secrets.set("header.Host", "x".into())),
        ("headers.x-ftagent-delivery", |d| d.secrets.set("header.x-ftagent-delivery", "x".into())),
        ("headers.a b", |d| d.secrets.set("header.a b", "x".into())),
        ("headers.", |d| d.secrets.set("header.", "x".into())),
        ("headers.X", |d| d.secrets.set("header.X", "a\r\nb: c".into())),
        ("headers.x-api-key", |d| d.secrets.set("header.x-api-key", "x".into())),
        ("headers", |d| (0..20).for_each(|n| d.secrets.set(&format!("header.h{n}"), "x".into()))),
        ("kind", |d| d.kind = DestinationKind::Slack),
    ];
    for (field, change) in table {
        let mut changed = webhook();
        change(&mut changed);
        let duty = if field == "kind" { Duty::Integration } else { Duty::Channel };
        let named = wrong(changed, duty);
        assert!(named.iter().any(|f| f == field), "{field}: {named:?}");
    }
}

#[test]
fn every_kind_says_what_it_lacks() {
    for kind in DestinationKind::ALL {
        assert_eq!(DestinationKind::from_word(kind.as_str()), Some(*kind));
        let new = NewDestination { kind: *kind, settings: Settings::new(), secrets: Secrets::default(), ..webhook() };
        let required: Vec<_> = kind.fields().iter().filter(|f| f.required).map(|f| f.name).collect();
        match new.check(kind.duties()[0], false) {
            Ok(_) => assert!(required.is_empty(), "{kind:?}"),
            Err(Problem::Invalid(fields)) => {
                let named: Vec<_> = fields.iter().filter_map(|f| f.field.split('.').next_back()).collect();
                assert_eq!(named, required, "{kind:?}");
            }
            Err(other) => panic!("{kind:?}: {other}"),
        }
    }
}

#[test]
fn a_change_keeps_what_it_does_not_name() {
    let mut secrets = webhook().secrets;
    secrets.take(BTreeMap::from([("secret".to_owned(), Some("other".to_owned())), ("gone".to_owned(), None)]));
    assert_eq!(secrets.value("secret"), Some("other"));
    assert_eq!(secrets.headers().collect::<Vec<_>>(), [("X-Api-Key", "open")]);
    secrets.replace_headers(BTreeMap::from([("Y".to_owned(), "1".to_owned())]));
    assert_eq!(secrets.headers().collect::<Vec<_>>(), [("Y", "1")]);
    assert!(!format!("{secrets:?}").contains("other"));
}

#[test]
fn the_status_is_what_happened_last() {
    let at = |secs| Some(Timestamp::from_secs(secs));
    let health = |delivered_at, failed_at, failures| Health {
        circuit: Circuit { failures, open_until: None },
        paused_until: None,
        delivered_at,
        failed_at,
    };
    use DestinationKind::{Slack, Webhook};
    let table = [
        ("new", health(None, None, 0), Webhook, true, DestinationStatus::Configured),
        ("well", health(at(2), at(1), 0), Webhook, true, DestinationStatus::Connected),
        ("failed", health(at(1), at(2), 1), Webhook, true, DestinationStatus::Failing),
        ("never well", health(None, at(2), 0), Webhook, true, DestinationStatus::Failing),
        ("off", health(at(2), None, 0), Webhook, false, DestinationStatus::Disabled),
        ("of another kind", health(None, None, 0), Slack, true, DestinationStatus::NotConnected),
        ("of another kind and off", health(None, None, 0), Slack, false, DestinationStatus::NotConnected),
    ];
    for (name, health, kind, enabled, expected) in table {
        assert_eq!(health.status(kind, enabled), expected, "{name}");
    }
}
