//! `ftagent`: arguments in, exit status out.

use std::io::{ErrorKind, IsTerminal as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{CommandFactory as _, Parser as _};
use ftagent::cli::{Cli, Command, ListsCommand, ProfileChange, ReplayArguments, RuleChange};
use ftagent::client::{self, Refused};
use ftagent::config::{Config, ConfigError, DEFAULT_PATH};
use ftagent::enforce::gate::Syncookies;
use ftagent::enforce::nftables::{Nftables, NftablesError};
use ftagent::enforce::null_route::NullRoute;
use ftagent::enforce::tc::Tc;
use ftagent::engine::OperatorOrder;
use ftagent::host::host_facts;
use ftagent::lists::{self, ListConfig, Pick, Widest};
use ftagent::persist::StateLock;
use ftagent::profile::{self, ProfileOrder};
use ftagent::replay::{self, Sampling};
use ftagent::xdp::pins::Pins;
use ftagent::{actions, check, daemon, lab};
use serde_json::json;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // The lab starts this program inside its namespaces.
    ftagent_lab::inside::exec_if_asked();
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("FTAGENT_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal).init();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ftagent: {error:#}");
            if error.downcast_ref::<Refused>().is_some() { ExitCode::from(3) } else { ExitCode::FAILURE }
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "ftagent", &mut std::io::stdout());
        return Ok(());
    }
    if let Command::Lab(arguments) = &cli.command {
        return lab::run(arguments, cli.json);
    }
    if let Command::TcBucket(arguments) = cli.command {
        return actions::own::tc_bucket(arguments).map_err(|why| anyhow!(why));
    }
    let config = Config::load(&cli.config);
    if let Command::Lists { command } = &cli.command {
        return lists(command, config, cli.json);
    }
    if let Command::Replay(arguments) = &cli.command {
        return replay(arguments, config, &cli.config, cli.json);
    }
    let config = config?;
    if matches!(cli.command, Command::Detach) {
        // Nothing of it waits, and what it asks of clouds has a runtime of its own, which no other may be around.
        return detach(&config, cli.json);
    }
    // One thread for everything that waits; what blocks has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio runtime")?;
    runtime.block_on(carry_out(cli.command, cli.json, config))
}

async fn carry_out(command: Command, json: bool, config: Config) -> Result<()> {
    match command {
        Command::Run => daemon::run(config).await,
        Command::Status => client::status(&config, json).await,
        Command::Top { interval, count } => client::top(&config, json, interval, count).await,
        Command::Block { source, ttl, rate } => client::order(&config, json, client::block(source.0, ttl, rate)).await,
        Command::Unblock { source } => client::order(&config, json, OperatorOrder::Unblock { source: source.0 }).await,
        Command::Allow { prefix, label, remove: false } => {
            client::order(&config, json, OperatorOrder::Allow { prefix: prefix.0, label }).await
        }
        Command::Allow { prefix, remove: true, .. } => {
            client::order(&config, json, OperatorOrder::Disallow { prefix: prefix.0 }).await
        }
        Command::Rules { change: None } => client::rules(&config, json).await,
        Command::Rules { change: Some(RuleChange::Add { target, matches, action, ttl, evaluate }) } => {
            client::order(&config, json, client::add_rule(target.0, matches, action, ttl, evaluate)).await
        }
        Command::Rules { change: Some(RuleChange::Delete { target, matches, .. }) } => {
            client::order(&config, json, OperatorOrder::DeleteRule { target: target.0, matches }).await
        }
        Command::Incidents { uuid: Some(incident), resolve: true, false_positive } => {
            client::order(&config, json, OperatorOrder::Resolve { incident, false_positive }).await
        }
        Command::Incidents { uuid, .. } => client::incidents(&config, json, uuid).await,
        Command::Captures => client::captures(&config, json).await,
        Command::Profile { change: None } => client::profile(&config, json).await,
        Command::Profile { change: Some(ProfileChange::Confirm) } => {
            client::profile_order(&config, json, ProfileOrder::Confirm).await
        }
        Command::Profile { change: Some(ProfileChange::Rollback) } => {
            // With a lock that is free no agent runs, and nobody else will take it back.
            match config.state_dir.exists().then(|| StateLock::take(&config.state_dir)) {
                Some(Ok(_lock)) => take_profile_back(&config, json),
                _ => client::profile_order(&config, json, ProfileOrder::RollBack).await,
            }
        }
        Command::Check => check_machine(&config, json).await,
        Command::CheckConfig => check_config(&config, json),
        Command::Lists { .. }
        | Command::Completions { .. }
        | Command::Lab(_)
        | Command::Replay(_)
        | Command::TcBucket(_)
        | Command::Detach => {
            bail!("handled before there is a runtime")
        }
    }
}

/// Takes the attack profile back without an agent.
fn take_profile_back(config: &Config, json: bool) -> Result<()> {
    let taken = profile::take_back_alone(&config.state_dir).map_err(|why| anyhow!("it is not taken back: {why}"))?;
    match taken {
        _ if json => println!("{}", json!({ "ok": true, "application": taken })),
        Some(application) => println!("taken back: nothing of application {application} is left"),
        None => println!("there is no profile on this node"),
    }
    Ok(())
}

/// Removes everything of ours from the kernel, from other tools and from clouds. What cannot be taken away keeps nothing
/// else from being.
fn detach(config: &Config, json: bool) -> Result<()> {
    // A running agent would attach again what is removed below its feet.
    let _lock = if config.state_dir.exists() { Some(StateLock::take(&config.state_dir)?) } else { None };
    // What cannot be taken away keeps nothing else from being: a rung that cannot be asked, as on a kernel without
    // nf_tables, or a firewall that says no.
    let mut left = Vec::new();
    let mut take =
        |what: &str, result: Result<(), String>| left.extend(result.err().map(|why| format!("{what}: {why}")));
    let mut interfaces = Vec::new();
    let pins = Pins::below(&config.bpffs).and_then(|pins| pins.remove_all()).map(|removed| interfaces = removed);
    take("programs and maps", pins.map_err(|error| format!("{error:#}")));
    take("nftables", no_table(Nftables::new(false).remove_all()));
    take("nftables at ingress", no_table(Nftables::at_ingress(Vec::new()).remove_all()));
    take("tc", Tc::default().remove_all());
    take("null routes", NullRoute::new(&config.state_dir).remove_all());
    take("the attack profile is not taken back", profile::take_back_alone(&config.state_dir).map(drop));
    let cookies = Syncookies::new(&config.state_dir).release();
    take("net.ipv4.tcp_syncookies is not set back", cookies.map_err(|error| format!("{error:#}")));
    let tools = actions::undo_all(&config.state_dir, &daemon::boot_id(), &config.name, &config.clouds);
    take("other tools still hold what this agent did", if tools.is_empty() { Ok(()) } else { Err(tools.join("; ")) });
    if !left.is_empty() {
        bail!("not all is detached: {}", left.join("; "));
    }
    if json {
        println!("{}", json!({ "ok": true, "detached": interfaces }));
    } else if interfaces.is_empty() {
        println!("nothing was attached");
    } else {
        println!("detached from {}; maps and the nftables table are gone", interfaces.join(", "));
    }
    Ok(())
}

/// A kernel without nf_tables has no table of ours.
fn no_table(removed: Result<(), NftablesError>) -> Result<(), String> {
    match removed {
        Ok(()) | Err(NftablesError::Missing(_)) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Files can be checked on a machine without a configuration: then nothing is known that they should not have.
fn lists(command: &ListsCommand, config: Result<Config, ConfigError>, json: bool) -> Result<()> {
    let ListsCommand::Check { files, countries, asns, min_prefix_v4, min_prefix_v6 } = command;
    let config = match config {
        Ok(config) => Some(config),
        Err(ConfigError::Read { path, source }) if !files.is_empty() && source.kind() == ErrorKind::NotFound => {
            eprintln!("ftagent: no {path}: lists are not compared with what this node trusts");
            None
        }
        Err(error) => return Err(error.into()),
    };
    let widest = Widest { min_prefix_v4: *min_prefix_v4, min_prefix_v6: *min_prefix_v6 };
    let pick = Pick { countries: countries.iter().cloned().collect(), asns: asns.iter().copied().collect() };
    let named: Vec<ListConfig> = files.iter().map(|file| lists::file_as_list(file, &pick, widest)).collect();
    let (configured, spared) = match &config {
        Some(config) => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio runtime")?;
            let facts = runtime.block_on(host_facts());
            if let Err(error) = &facts {
                eprintln!("ftagent: {error}; lists are not compared with this node's own addresses");
            }
            (config.lists.as_slice(), lists::spared(config, facts.as_ref().ok()))
        }
        None => (&[][..], Vec::new()),
    };
    let chosen = if named.is_empty() { configured } else { &named };
    let checked = lists::check(chosen, &spared);
    let failed = checked.iter().filter(|list| !list.ok).count();
    if json {
        println!("{}", json!({ "ok": failed == 0, "lists": checked }));
    } else if checked.is_empty() {
        println!("the configuration has no [[lists]]");
    } else {
        checked.iter().for_each(|list| print!("{}", list.text()));
    }
    if failed > 0 {
        bail!("{failed} of {} lists cannot be loaded", checked.len());
    }
    Ok(())
}

/// A capture can be replayed on a machine without a configuration: then the defaults hold.
fn replay(arguments: &ReplayArguments, config: Result<Config, ConfigError>, path: &Path, json: bool) -> Result<()> {
    let config = match config {
        Ok(config) => Some(config),
        Err(ConfigError::Read { source, .. })
            if path == Path::new(DEFAULT_PATH) && source.kind() == ErrorKind::NotFound =>
        {
            None
        }
        Err(error) => return Err(error.into()),
    };
    let mut options = replay::Options::new(&arguments.file, config.as_ref());
    if !arguments.targets.is_empty() {
        options.limits.protect = arguments.targets.iter().map(|target| target.0).collect();
    }
    (options.rate_pps, options.seconds) = (arguments.rate, arguments.seconds);
    options.sampling = arguments.sample.map_or(Sampling::Adaptive, Sampling::OneIn);
    let outcome = replay::run(&options)?;
    if json {
        print!("{}", replay::json(&outcome));
    } else {
        print!("{}", replay::text(&outcome, &options, arguments.explain));
    }
    match outcome.damage {
        Some(damage) => bail!("{damage}; what came before is above"),
        None => Ok(()),
    }
}

async fn check_machine(config: &Config, json: bool) -> Result<()> {
    let findings = check::check(config).await;
    let failed = findings.iter().filter(|f| !f.ok).count();
    if json {
        println!("{}", json!({ "ok": failed == 0, "findings": findings }));
    } else {
        print!("{}", check::text(&findings));
    }
    if failed > 0 {
        bail!("{failed} of {} checks failed", findings.len());
    }
    Ok(())
}

fn check_config(config: &Config, json: bool) -> Result<()> {
    let settings = &config.settings;
    let faults = config.clouds.faults();
    if !faults.is_empty() {
        bail!("{}: {}", config.path.display(), faults.join("; "));
    }
    if json {
        println!(
            "{}",
            json!({
                "ok": true, "path": config.path, "name": config.name, "mode": settings.mode,
                "interfaces": config.interfaces.iter().map(|(name, _)| name).collect::<Vec<_>>(),
                "flow_exporters": config.flow_exporters.iter().map(|listener| listener.listen).collect::<Vec<_>>(),
                "lists": config.lists.iter().map(|list| &list.name).collect::<Vec<_>>(),
                "rules": settings.rules.len(), "allow": settings.allow.len(), "thresholds": settings.thresholds.len(),
            })
        );
        return Ok(());
    }
    println!("{} is valid", config.path.display());
    println!("  node {} in mode {}, every {} ms", config.name, settings.mode, config.tick_ms);
    for (name, choice) in &config.interfaces {
        println!("  interface {name}, attached {choice:?}");
    }
    let d = &settings.detection;
    println!(
        "  an attack is more than {} pps or {} bit/s, or {} times what is normal after {} s of learning ({:?})",
        d.floor_pps, d.floor_bps, d.multiplier, d.learning_secs, d.threshold
    );
    println!("  automatic response: {}", if settings.response.automatic { "on" } else { "off: only rules act" });
    println!(
        "  {} rules, {} allow entries, {} thresholds of hosts",
        settings.rules.len(),
        settings.allow.len(),
        settings.thresholds.len()
    );
    for list in &config.lists {
        let (name, path) = (&list.name, list.source.path().display());
        println!("  list {name} ({}) from {path}, looked at every {} s", list.action.as_str(), list.refresh_secs);
    }
    for listener in &config.flow_exporters {
        let whom: Vec<String> = listener.exporters.iter().map(ToString::to_string).collect();
        println!("  {} from {} at {}", listener.protocol.as_str(), whom.join(", "), listener.listen);
    }
    match &config.control_plane {
        Some(control_plane) => println!("  control plane {}", control_plane.urls.join(", ")),
        None => println!("  no control plane: the agent works alone"),
    }
    Ok(())
}
