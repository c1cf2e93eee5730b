//! `[[lists]]` of the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::{ListAction, ListConfig, ListSource, Pick, Widest, rule_of};

/// Lists that a node can have.
const MAX_LISTS: usize = 64;

/// One `[[lists]]` as people write it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawList {
    name: String,
    /// A text file; or `mmdb`.
    path: Option<PathBuf>,
    mmdb: Option<PathBuf>,
    #[serde(default)]
    countries: Vec<String>,
    #[serde(default)]
    asns: Vec<u32>,
    #[serde(default)]
    action: ListAction,
    #[serde(default = "refresh_secs")]
    refresh_secs: u32,
    #[serde(default = "min_prefix_v4")]
    min_prefix_v4: u8,
    #[serde(default = "min_prefix_v6")]
    min_prefix_v6: u8,
}

const fn refresh_secs() -> u32 {
    60
}

fn min_prefix_v4() -> u8 {
    Widest::default().min_prefix_v4
}

fn min_prefix_v6() -> u8 {
    Widest::default().min_prefix_v6
}

/// Checks every `[[lists]]`.
///
/// # Errors
/// The first key that is wrong, and what is wrong with it.
pub fn check_lists(raw: &[RawList]) -> Result<Vec<ListConfig>, (String, String)> {
    if raw.len() > MAX_LISTS {
        return Err(("lists".to_owned(), format!("must be at most {MAX_LISTS}, got {}", raw.len())));
    }
    let mut by_rule = BTreeMap::new();
    let mut lists = Vec::with_capacity(raw.len());
    for (index, list) in raw.iter().enumerate() {
        let list = check(list).map_err(|(key, message)| (format!("lists[{index}].{key}"), message))?;
        if let Some(other) = by_rule.insert(rule_of(&list.name), list.name.clone()) {
            let message = if other == list.name {
                format!("{other} is named twice")
            } else {
                format!("{} has the same rule id as {other}: choose another name", list.name)
            };
            return Err((format!("lists[{index}].name"), message));
        }
        lists.push(list);
    }
    Ok(lists)
}

fn check(raw: &RawList) -> Result<ListConfig, (&'static str, String)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if raw.name.is_empty() || raw.name.len() > 64 || !raw.name.chars().all(is_name) {
        return Err(("name", "must be 1 to 64 letters, digits, '_', '.' or '-'".to_owned()));
    }
    let has_pick = !raw.countries.is_empty() || !raw.asns.is_empty();
    let source = match (&raw.path, &raw.mmdb) {
        (Some(_), None) if has_pick => {
            return Err(("countries", "countries and asns belong to mmdb, not to path".to_owned()));
        }
        (Some(path), None) => ListSource::Text(path.clone()),
        (None, Some(_)) if !has_pick => {
            return Err(("mmdb", "name what to take out of it: countries = [\"XX\"] or asns = [64500]".to_owned()));
        }
        (None, Some(path)) => ListSource::Mmdb { path: path.clone(), pick: pick(raw)? },
        _ => return Err(("path", "give path (a text file) or mmdb (a database), one of them".to_owned())),
    };
    if !source.path().is_absolute() {
        let key = if raw.path.is_some() { "path" } else { "mmdb" };
        return Err((key, format!("must be an absolute path, got {}", source.path().display())));
    }
    within("refresh_secs", raw.refresh_secs, 1, 86_400)?;
    within("min_prefix_v4", raw.min_prefix_v4.into(), 1, 32)?;
    within("min_prefix_v6", raw.min_prefix_v6.into(), 1, 128)?;
    Ok(ListConfig {
        name: raw.name.clone(),
        source,
        action: raw.action,
        refresh_secs: raw.refresh_secs,
        widest: Widest { min_prefix_v4: raw.min_prefix_v4, min_prefix_v6: raw.min_prefix_v6 },
    })
}

fn pick(raw: &RawList) -> Result<Pick, (&'static str, String)> {
    let is_code = |code: &String| code.len() == 2 && code.bytes().all(|b| b.is_ascii_uppercase());
    if let Some(code) = raw.countries.iter().find(|code| !is_code(code)) {
        return Err(("countries", format!("{code:?} is no code of two capital letters")));
    }
    if raw.asns.contains(&0) {
        return Err(("asns", "0 is no autonomous system".to_owned()));
    }
    Ok(Pick { countries: raw.countries.iter().cloned().collect(), asns: raw.asns.iter().copied().collect() })
}

fn within(key: &'static str, value: u32, low: u32, high: u32) -> Result<(), (&'static str, String)> {
    if (low..=high).contains(&value) { Ok(()) } else { Err((key, format!("must be {low} to {high}, got {value}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        lists: Vec<RawList>,
    }

    fn parse(text: &str) -> Result<Vec<ListConfig>, String> {
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        check_lists(&file.lists).map_err(|(key, message)| format!("{key}: {message}"))
    }

    #[test]
    fn a_list_says_where_it_is_and_has_defaults() {
        let lists = parse(
            "[[lists]]\nname = \"drop\"\npath = \"/etc/drop.txt\"\n\
             [[lists]]\nname = \"geo\"\nmmdb = \"/x/c.mmdb\"\ncountries = [\"AA\"]\nasns = [64500]\naction = \"evaluate\"\n",
        )
        .expect("valid");
        assert_eq!(lists[0].source, ListSource::Text("/etc/drop.txt".into()));
        assert_eq!(
            (lists[0].action, lists[0].refresh_secs, lists[0].widest),
            (ListAction::Block, 60, Widest::default())
        );
        assert_eq!(lists[1].action, ListAction::Evaluate);
        assert!(matches!(&lists[1].source, ListSource::Mmdb { pick, .. } if pick.asns.contains(&64_500)));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("name = \"\"\npath = \"/x\"", "lists[0].name: must be 1 to 64"),
            ("name = \"a b\"\npath = \"/x\"", "lists[0].name"),
            ("name = \"a\"", "lists[0].path: give path"),
            ("name = \"a\"\npath = \"/x\"\nmmdb = \"/y\"\nasns = [1]", "lists[0].path: give path"),
            ("name = \"a\"\npath = \"x\"", "lists[0].path: must be an absolute path, got x"),
            ("name = \"a\"\nmmdb = \"/x\"", "lists[0].mmdb: name what to take"),
            ("name = \"a\"\npath = \"/x\"\nasns = [1]", "belong to mmdb"),
            ("name = \"a\"\nmmdb = \"/x\"\ncountries = [\"aa\"]", "\"aa\" is no code"),
            ("name = \"a\"\nmmdb = \"/x\"\nasns = [0]", "lists[0].asns"),
            ("name = \"a\"\npath = \"/x\"\nrefresh_secs = 0", "lists[0].refresh_secs: must be 1 to 86400, got 0"),
            ("name = \"a\"\npath = \"/x\"\nmin_prefix_v4 = 0", "lists[0].min_prefix_v4: must be 1 to 32, got 0"),
            ("name = \"a\"\npath = \"/x\"\nmin_prefix_v6 = 200", "lists[0].min_prefix_v6"),
            ("name = \"a\"\npath = \"/x\"\naction = \"allow\"", "allow"),
            ("name = \"a\"\npath = \"/x\"\ncolour = 1", "colour"),
        ] {
            let got = parse(&format!("[[lists]]\n{text}\n"));
            assert!(got.as_ref().is_err_and(|e| e.contains(expected)), "{text}: {got:?} lacks {expected:?}");
        }
        let twice = "[[lists]]\nname = \"a\"\npath = \"/x\"\n".repeat(2);
        assert_eq!(parse(&twice), Err("lists[1].name: a is named twice".to_owned()));
    }
}
