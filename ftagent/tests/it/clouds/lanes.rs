//! The threads of the clouds, as the daemon drives them.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use ftagent::actions::cloud::Clouds;
use ftagent::actions::{Actions, undo_all};
use ftagent::clock;
use ftagent::engine::{Acted, ActionSet, Ending, Outcome, Wanted};
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use super::receiver::{TOKEN, Trouble};
use super::{CASES, Case, Site};

fn clouds(case: Case, site: &Site) -> Clouds {
    let config = Some(site.config());
    match case.tool {
        "cloudflare" => Clouds { cloudflare: config, ..Clouds::default() },
        "digitalocean" => Clouds { digitalocean: config, ..Clouds::default() },
        _ => Clouds { vultr: config, ..Clouds::default() },
    }
}

/// The next result of this kind.
fn next(results: &mut UnboundedReceiver<Vec<Acted>>, is_it: impl Fn(&Outcome) -> bool) -> Acted {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        loop {
            let some = tokio::time::timeout(Duration::from_secs(30), results.recv()).await.unwrap().unwrap();
            if let Some(one) = some.into_iter().find(|one| is_it(&one.outcome)) {
                return one;
            }
        }
    })
}

fn set(wanted: &[Wanted]) -> ActionSet {
    ActionSet { wanted: wanted.to_vec(), ending: Vec::new() }
}

#[test]
fn a_lane_does_undoes_and_leaves_nothing_when_it_stops() {
    for case in CASES {
        let site = Site::new(case.tool);
        let before = site.receiver.snapshot();
        let state = tempfile::tempdir().unwrap();
        let open = || Actions::open(state.path(), "this boot", "web-1", clouds(case, &site));
        let (mut actions, mut results) = open();
        let wanted = vec![case.wanted(1, case.sources)];
        let begun_ns = clock::mono_ns();
        actions.act(&set(&wanted));
        let applied = next(&mut results, |outcome| *outcome == Outcome::Applied);
        println!(
            "{}: {} requests in {} ms",
            case.head,
            applied.commands.len(),
            (applied.at_mono_ns - begun_ns) / 1_000_000
        );
        assert!(case.sources.iter().all(|source| site.receiver.blocks(source)));
        let status = (0..100)
            .find_map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                actions.status().into_iter().find(|status| status.tool == case.tool && status.actions == 1)
            })
            .expect("a status");
        assert!(status.objects > 0 && status.applied == 1, "{status:?}");
        let said = format!("{status:?} {:?} {applied:?}", actions.warnings());
        assert!(!said.contains(TOKEN), "{said}");
        for file in std::fs::read_dir(state.path().join("actions")).unwrap() {
            assert!(!std::fs::read_to_string(file.unwrap().path()).unwrap().contains(TOKEN));
        }
        actions.stop();
        assert_eq!(site.receiver.snapshot(), before, "{case:?}: a stop undoes");

        // And the end of an incident does.
        let (mut actions, mut results) = open();
        actions.act(&set(&wanted));
        next(&mut results, |outcome| *outcome == Outcome::Applied);
        let ending = vec![Ending { task: Uuid::from_u128(1), tool: case.tool }];
        actions.act(&ActionSet { wanted: Vec::new(), ending });
        next(&mut results, |outcome| *outcome == Outcome::Undone);
        assert_eq!(site.receiver.snapshot(), before, "{case:?}");
        actions.stop();
    }
}

#[test]
fn what_a_stop_cannot_undo_the_next_start_or_detach_does() {
    for case in CASES {
        let site = Site::new(case.tool);
        let before = site.receiver.snapshot();
        let state = tempfile::tempdir().unwrap();
        let open = || Actions::open(state.path(), "this boot", "web-1", clouds(case, &site));
        let (mut actions, mut results) = open();
        actions.act(&set(&[case.wanted(1, case.sources)]));
        next(&mut results, |outcome| *outcome == Outcome::Applied);
        site.trouble(vec![Some(Trouble::Status(503, None)); 100]);
        let begun_ns = clock::mono_ns();
        actions.stop();
        assert!(clock::mono_ns() - begun_ns < 5_000_000_000, "a stop does not wait for ever");
        assert_ne!(site.receiver.snapshot(), before);
        let left = undo_all(state.path(), "this boot", "web-1", &clouds(case, &site));
        assert!(left.iter().any(|why| why.contains("503")), "{left:?}");
        let left = undo_all(state.path(), "this boot", "web-1", &Clouds::default());
        assert!(left.iter().any(|why| why.contains("no key")), "{left:?}");
        site.trouble([]);
        assert_eq!(undo_all(state.path(), "this boot", "web-1", &clouds(case, &site)), Vec::<String>::new());
        assert_eq!(site.receiver.snapshot(), before, "{case:?}");
    }
}

#[test]
fn the_command_detach_undoes_at_clouds_whatever_else_it_cannot_take_away() {
    // In a network of its own: whatever is of an agent in this machine's stays.
    crate::profiles::site::inside(|| {
        let case = CASES[0];
        let site = Site::new(case.tool);
        let before = site.receiver.snapshot();
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        let (mut actions, mut results) = Actions::open(&state, "this boot", "web-1", clouds(case, &site));
        actions.act(&set(&[case.wanted(1, case.sources)]));
        next(&mut results, |outcome| *outcome == Outcome::Applied);
        site.trouble(vec![Some(Trouble::Status(503, None)); 100]);
        actions.stop();
        site.trouble([]);
        assert_ne!(site.receiver.snapshot(), before);
        let at = |name: &str| folder.path().join(name).display().to_string();
        // No bpffs is there: programs and maps cannot be looked for.
        let text = format!(
            "[agent]\nname = \"web-1\"\nstate_dir = {:?}\nruntime_dir = {:?}\nbpffs = {:?}\n\
             [[interface]]\nname = \"lo\"\n[cloud.cloudflare]\ntoken_file = {:?}\napi_url = {:?}\n",
            at("state"),
            at("run"),
            at("bpf"),
            site.key(),
            site.receiver.url,
        );
        std::fs::write(at("ftagent.toml"), text).unwrap();
        let run = |word: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_ftagent"));
            let output = command.args(["--config", &at("ftagent.toml"), word]).output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        // A key that cannot be used keeps nothing but its cloud from being undone.
        std::fs::set_permissions(site.key(), std::fs::Permissions::from_mode(0o644)).unwrap();
        let (is_ok, said) = run("check-config");
        assert!(!is_ok && said.contains("cloud.cloudflare.token_file") && said.contains("chmod 0600"), "{said}");
        let (is_ok, said) = run("detach");
        assert!(!is_ok && said.contains("not all is detached: ") && said.contains("chmod 0600"), "{said}");
        assert_ne!(site.receiver.snapshot(), before);
        site.write_key(TOKEN);
        assert_eq!(run("check-config"), (true, String::new()));
        let (is_ok, said) = run("detach");
        assert_eq!(site.receiver.snapshot(), before, "{said}");
        assert!(said.contains("not all is detached: programs and maps: ") && said.contains("is not a bpffs"), "{said}");
        assert!(!is_ok && !said.contains("panicked") && !said.contains("another tool"), "{said}");
    });
}

#[test]
fn a_key_that_is_put_right_counts_from_the_next_reload() {
    let case = CASES[0];
    let site = Site::new(case.tool);
    let state = tempfile::tempdir().unwrap();
    let (mut actions, mut results) = Actions::open(state.path(), "b", "web-1", Clouds::default());
    actions.act(&set(&[case.wanted(1, case.sources)]));
    let failed = next(&mut results, |outcome| matches!(outcome, Outcome::Failed(_)));
    let Outcome::Failed(why) = failed.outcome else { panic!() };
    assert!(why.contains("cloud.cloudflare.token_file is not in this node's configuration"), "{why}");
    actions.set_clouds(clouds(case, &site));
    actions.act(&set(&[case.wanted(2, case.sources)]));
    next(&mut results, |outcome| *outcome == Outcome::Applied);
    // Another key, while something is in force.
    site.receiver.state().token = "the-next-key-0123456789abcdef".to_owned();
    site.write_key("the-next-key-0123456789abcdef");
    actions.set_clouds(clouds(case, &site));
    actions.act(&ActionSet { wanted: vec![], ending: vec![Ending { task: Uuid::from_u128(2), tool: case.tool }] });
    next(&mut results, |outcome| *outcome == Outcome::Undone);
    actions.stop();
}
