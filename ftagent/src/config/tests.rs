use super::*;

const MINIMAL: &str = "[[interface]]\nname = \"eth0\"\n";

fn check(extra: &str, expected: Result<(), &str>) {
    let text = format!("{extra}\n{MINIMAL}");
    let got = Config::parse(&text, Path::new("t.toml")).map(|_| ()).map_err(|e| e.to_string());
    match expected {
        Ok(()) => assert_eq!(got, Ok(()), "{extra}"),
        Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{extra}: {got:?} lacks {part:?}"),
    }
}

#[test]
fn what_is_wrong_is_named_with_its_key_and_bounds() {
    check("", Ok(()));
    check("[agent]\ncolour = \"red\"", Err("colour"));
    check("[agent]\ntick_ms = 5", Err("agent.tick_ms: must be 10 to 100, got 5"));
    check("[agent]\nmode = \"panic\"", Err("panic"));
    check("[detection]\nmultiplier = 0.5", Err("detection.multiplier"));
    check("[detection]\nstatic_pps = 5000", Err("detection.mode"));
    check("[detection]\nmode = \"static\"\nstatic_pps = 5000", Ok(()));
    check("[management]\nsources = [\"192.0.2.0/24\"]", Err("management.ports"));
    check("[management]\nsources = [\"0.0.0.0/0\"]\nports = [22]", Err("trust everybody"));
    check("[control_plane]\nurl = \"ftp://x\"", Err("control_plane.url"));
    check("[control_plane]\nurl = \"http://x\"\ndeploy_token = \"short\"", Err("64 hex"));
    check("[control_plane]\nurls = [\"https://a\", \"https://b/\"]\nca_certificate = \"ca.pem\"", Ok(()));
    check("[control_plane]\nurl = \"https://a\"\nca_file = \"ca.pem\"", Ok(()));
    check("[control_plane]\nurls = [\"https://a\", \"https://a/\"]", Err("control_plane.urls"));
    check("[control_plane]\nurls = []", Err("control_plane.urls"));
    check("[control_plane]\nurl = \"https://a\"\nurls = [\"https://b\"]", Err("not both"));
    check("[control_plane]\nurl = \"https://a\"\nclient_certificate = \"c.pem\"", Err("client_key"));
    check("[datapath]\nsample_buffer_bytes = 1000000", Err("power of two"));
    check("[datapath]\nsource_limit_pps = 5", Err("promote_pps"));
    check("[datapath]\npromote_pps = 20000", Err("promote_pps"));
    check("[datapath]\nwithout = [\"colour\"]", Err("colour"));
    check("[datapath]\nwithout = [\"distinct\", \"tunnels\"]", Ok(()));
    check("[datapath]\nfallback = []", Err("datapath.fallback: name nftables_ingress"));
    check("[datapath]\nfallback = [\"nftables\", \"nftables\"]", Err("datapath.fallback"));
    check("[datapath]\nfallback = [\"bgp\"]", Err("bgp"));
    check("[datapath]\nfallback = [\"tc\", \"null_route\"]", Ok(()));
    check("[datapath]\nfallback = [\"nftables\", \"nftables_ingress\"]", Ok(()));
    let crowdsec = "[crowdsec]\nurl = \"http://127.0.0.1:8080\"\napi_key = \"0123456789abcdef\"";
    check(crowdsec, Ok(()));
    check(&format!("[datapath]\nwithout = [\"lists\"]\n{crowdsec}"), Err("datapath.without: crowdsec needs"));
    check("[crowdsec]\nurl = \"http://127.0.0.1:8080\"", Err("crowdsec.api_key: give api_key_file"));
    check("[protect]\nprefixes = [\"300.0.0.1/8\"]", Err("300.0.0.1"));
    check(
        "[[rule]]\nname = \"x\"\ntrigger = { type = \"any\" }\naction = { type = \"xdp_rate_limit_target\" }",
        Err("rule[0].action.pps"),
    );
    check(
        "[[rule]]\nname = \"x\"\ntrigger = { type = \"any\" }\naction = { type = \"vultr_block\", \
         group_id = \"0f9619ff-8b86-4011-b42d-00cf4fc964ff\" }",
        Err("rule[0].action.type: vultr_block needs a key: give cloud.vultr.token_file"),
    );
    let tool = "[[rule]]\nname = \"x\"\ntrigger = { type = \"any\" }\naction = ";
    check(&format!("{tool}{{ type = \"iptables_drop_source\" }}"), Ok(()));
    check(&format!("{tool}{{ type = \"iptables_drop_port\", protocol = \"tcp\", port = 0 }}"), Err("port"));
    check("[[lists]]\nname = \"a\"\npath = \"a.txt\"", Err("lists[0].path: must be an absolute path"));
    check("[[threshold]]\ntarget = \"192.0.2.1/32\"", Err("threshold[0]"));
}

#[test]
fn interfaces_are_named_once_and_rightly() {
    let parse = |text: &str| Config::parse(text, Path::new("t.toml")).map_err(|e| e.to_string());
    assert!(parse("").is_err_and(|e| e.contains("interface")));
    let twice = format!("{MINIMAL}{MINIMAL}");
    assert!(parse(&twice).is_err_and(|e| e.contains("twice")));
    assert!(parse("[[interface]]\nname = \"a/b\"\n").is_err_and(|e| e.contains("no interface name")));
    let own = format!("{MINIMAL}[[interface]]\nname = \"eth0.7\"\nat_own_device = true\n");
    let wanted = parse(&own).expect("valid").wanted();
    assert_eq!(
        wanted.iter().map(|w| (w.name.as_str(), w.at_own_device)).collect::<Vec<_>>(),
        [("eth0", false), ("eth0.7", true)]
    );
}

#[test]
fn stages_that_are_left_out_keep_their_names() {
    const ALL: [&str; 7] = ["sanity", "tunnels", "lists", "rules", "sources", "distinct", "samples"];
    for name in ALL {
        let text = format!("{MINIMAL}[datapath]\nwithout = [{name:?}]\n");
        let datapath = Config::parse(&text, Path::new("t.toml")).expect(name).datapath;
        assert_eq!(datapath.left_out, [name]);
        assert_eq!(datapath.sizes.stages.count_zeros(), 1, "{name}");
    }
}

#[test]
fn a_secret_never_shows() {
    let token = "ab".repeat(32);
    let text = format!("{MINIMAL}[control_plane]\nurl = \"http://x/\"\ndeploy_token = \"{token}\"\n");
    let config = Config::parse(&text, Path::new("t.toml")).expect("valid");
    assert!(!format!("{config:?}").contains(&token));
    assert_eq!(config.control_plane.expect("there").urls, ["http://x"]);
}

#[test]
fn rules_of_the_file_have_ids_of_their_own() {
    let rule = "[[rule]]\nname = \"x\"\ntrigger = { type = \"any\" }\naction = { type = \"xdp_drop_source\" }\n";
    let config = Config::parse(&format!("{MINIMAL}{rule}{rule}"), Path::new("t.toml")).expect("valid");
    let ids: Vec<i64> = config.settings.rules.iter().map(|r| r.id).collect();
    assert_eq!(ids, [FIRST_LOCAL_RULE, FIRST_LOCAL_RULE + 1]);
}
