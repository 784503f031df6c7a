//! Metrics are what the kernel and the daemon have counted: read by a real Prometheus, on the API's socket, and without a daemon.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use pod_steer_tests::{
    check,
    daemon::{BPFFS, Stage},
    exec::Exec,
    load::Load,
    process::{Process, output, run},
    report, require,
    rollouts::{TARGET, web},
    scale, tools, wait,
};
use rustix::process::Signal;
use serde_json::Value;

/// The port of the daemon's metrics, and Prometheus's own.
const METRICS: u16 = 9464;
const PROMETHEUS: u16 = 9090;
const STEERED: &str = "pod_steer_backend_steered_total";
const OPENED: &str = "pod_steer_backend_connections_opened_total";

fn with_port() -> Result<Stage> {
    Stage::configured(&format!("metrics = \"{METRICS}\"\n"))
}

/// `pod-steer metrics`, of the daemon or without one.
fn metrics(stage: &Stage) -> Result<String> {
    run(stage.daemon.cli()?.args(["metrics", "--bpffs", BPFFS]))
}

/// The samples of a metric, by the name of their backend.
fn by_backend(page: &str, name: &str) -> BTreeMap<String, u64> {
    let lines = page.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} "));
    let backend = |labels: &str| Some(labels.split_once("backend=\"")?.1.split_once('"')?.0.to_owned());
    lines.filter_map(|(labels, value)| Some((backend(labels)?, value.parse::<f64>().ok()? as u64))).collect()
}

/// The value of a series.
fn value(page: &str, series: &str) -> Result<f64> {
    let found = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    found.with_context(|| format!("there is no {series}\n{page}"))?.parse().context("a number")
}

/// Whether the page describes the metric that this name of a query or a sample belongs to.
fn describes(page: &str, name: &str) -> bool {
    let plain = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    [name, plain].iter().any(|name| page.contains(&format!("# TYPE {name} ")))
}

/// The metrics of pod-steer that a text names.
fn named(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("pod_steer_") || word.starts_with("process_"))
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("examples").join("prometheus")
}

/// `promtool check metrics`, which says nothing of a good page.
fn lint(page: &str) -> Result<()> {
    let mut promtool = Command::new("promtool");
    let promtool = promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut promtool = promtool.stderr(Stdio::piped()).spawn()?;
    promtool.stdin.take().context("it is piped")?.write_all(page.as_bytes())?;
    let said = promtool.wait_with_output()?;
    let text = String::from_utf8_lossy(&said.stderr);
    ensure!(said.status.success() && text.is_empty(), "promtool: {text}");
    Ok(())
}

/// A Prometheus that scrapes the daemon and evaluates the alerts.
struct Prometheus<'a> {
    stage: &'a Stage,
    process: Process,
}

impl<'a> Prometheus<'a> {
    fn start(stage: &'a Stage) -> Result<Self> {
        let dir = stage.host.dir().join("prometheus");
        fs::create_dir(&dir)?;
        let (config, alerts) = (dir.join("prometheus.yml"), examples().join("alerts.yml"));
        let text = format!(
            "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\nrule_files: ['{}']\nscrape_configs: [{{job_name: pod-steer, \
             static_configs: [{{targets: ['127.0.0.1:{METRICS}']}}]}}]\n",
            alerts.display()
        );
        fs::write(&config, text)?;
        let mut command = stage.host.command("prometheus")?;
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", dir.join("data").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{PROMETHEUS}"));
        Ok(Self { stage, process: stage.host.start("prometheus", &mut command)? })
    }

    /// The answer of its API; nothing while it starts.
    fn get(&self, path: &str, query: Option<&str>) -> Result<Option<Value>> {
        let mut curl = self.stage.host.command("curl")?;
        curl.args(["-sG", &format!("http://127.0.0.1:{PROMETHEUS}/api/v1/{path}")]);
        if let Some(query) = query {
            curl.args(["--data-urlencode", &format!("query={query}")]);
        }
        Ok(serde_json::from_slice(&output(&mut curl)?.stdout).ok())
    }

    /// The series that a query finds.
    fn query(&self, query: &str) -> Result<Option<Vec<Value>>> {
        let Some(answer) = self.get("query", Some(query))? else { return Ok(None) };
        ensure!(answer["status"] == "success", "{query}: {answer}");
        Ok(Some(answer["data"]["result"].as_array().cloned().unwrap_or_default()))
    }
}

#[test]
fn prometheus_reads_what_the_kernel_has_counted() -> Result<()> {
    require!(tools::root_and(&["curl", "prometheus"]));
    let stage = with_port()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    let prometheus = Prometheus::start(&stage)?;
    let tally = Load::to(TARGET.parse()?).threads(2).count(400).run(stage.host.net())?;
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)?;
    let steered = format!("{STEERED}{{service=\"web\"}}");
    let counted = wait::until_ok("Prometheus to have scraped", || {
        let series = prometheus.query(&steered)?.unwrap_or_default();
        let count = |own: &Value| own["value"][1].as_str().and_then(|count| count.parse::<u64>().ok());
        let name = |own: &Value| own["metric"]["backend"].as_str().map(str::to_owned);
        let counts: BTreeMap<String, u64> = series.iter().filter_map(|own| Some((name(own)?, count(own)?))).collect();
        Ok((counts.values().sum::<u64>() == 400).then_some(counts))
    })
    .with_context(|| prometheus.process.stderr())?;
    ensure!(counted == tally.by_name, "{counted:?}, and clients were answered {:?}", tally.by_name);
    report::figure("counted as Prometheus has it", format!("{counted:?}"));

    // It takes every query of the board, and the page has what they ask for.
    let page = metrics(&stage)?;
    let text = fs::read_to_string(examples().join("dashboard.json"))?;
    let board: Value = serde_json::from_str(&text)?;
    let panels = board["panels"].as_array().context("the board has no panels")?;
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let notes = board["annotations"]["list"].as_array().cloned().unwrap_or_default();
    let queries: Vec<String> = targets.chain(notes).filter_map(|of| of["expr"].as_str().map(str::to_owned)).collect();
    // Services of one name on two machines are not added up.
    let is_of_machines = |query: &String| query.contains("instance=~\"$instance\"") && !query.contains("by (service");
    ensure!(queries.iter().all(is_of_machines), "{queries:?}");
    let queries: Vec<String> =
        queries.iter().map(|query| query.replace("$service", ".*").replace("$instance", ".*")).collect();
    ensure!(queries.len() > 30, "the board has {} queries", queries.len());
    // A rate needs two scrapes.
    let found = wait::until_ok("most queries of the board to find something", || {
        let mut found = 0;
        for query in &queries {
            found += usize::from(!prometheus.query(query)?.context("an answer")?.is_empty());
        }
        Ok((found > 30).then_some(found))
    })?;
    let missing: Vec<&str> = named(&text).filter(|name| !describes(&page, name)).collect();
    ensure!(missing.is_empty(), "the board asks for {missing:?}");
    report::figure("queries of the board that find something", format!("{found} of {}", queries.len()));

    // It evaluates the alerts, and none is raised.
    let healthy = |rule: &Value| rule["health"] == "ok" && rule["state"] != "firing";
    wait::until_ok("the alerts to be evaluated", || {
        let Some(rules) = prometheus.get("rules", None)? else { return Ok(None) };
        let rules = rules["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
        Ok((rules.len() > 10 && rules.iter().all(healthy)).then_some(()))
    })?;
    Ok(())
}

#[test]
fn the_counters_survive_the_daemon_and_can_be_read_without_one() -> Result<()> {
    require!(tools::root_and(&["promtool"]));
    let mut stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    Load::to(TARGET.parse()?).threads(2).count(200).run(stage.host.net())?;
    stage.daemon.wait_idle("web")?;
    run(stage.daemon.cli()?.args(["shift", "web", "v1=100"]))?;
    let before = metrics(&stage)?;
    lint(&before)?;
    let kept = [
        "pod_steer_service_decisions_total{service=\"web\"}",
        "pod_steer_service_operations_total{service=\"web\",operation=\"shift\",outcome=\"done\"}",
        "pod_steer_service_listener_events_total{service=\"web\",event=\"listening\"}",
        "pod_steer_operation_duration_seconds_count{operation=\"shift\"}",
        "pod_steer_time_to_effect_seconds_count{change=\"decision\"}",
        "pod_steer_time_to_effect_seconds_count{change=\"backends\"}",
        "pod_steer_tables_published_total",
    ];
    let counts = |page: &str| kept.iter().map(|series| value(page, series)).collect::<Result<Vec<f64>>>();
    let counted = counts(&before)?;
    report::figure("decisions, shifts, listeners, durations, effects, tables", format!("{counted:?}"));
    ensure!(counted.iter().all(|count| *count >= 1.0) && counted[1] == 1.0 && counted[2] == 2.0, "{counted:?}");

    // Killed at this instant, the daemon loses nothing that it has told.
    stage.daemon.kill()?;
    let without = metrics(&stage)?;
    lint(&without)?;
    ensure!(value(&before, "pod_steer_up")? == 1.0 && value(&without, "pod_steer_up")? == 0.0);
    ensure!(counts(&without)? == counted, "{without}");
    for name in [STEERED, OPENED] {
        let counts = by_backend(&before, name);
        ensure!(counts.values().sum::<u64>() == 200 && counts == by_backend(&without, name), "{name}: {counts:?}");
    }
    Load::to(TARGET.parse()?).count(50).run(stage.host.net())?;
    let steered = by_backend(&metrics(&stage)?, STEERED);
    ensure!(steered.values().sum::<u64>() == 250, "clients that connect now are counted too: {steered:?}");

    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    let after = metrics(&stage)?;
    ensure!(
        by_backend(&after, STEERED) == steered && value(&after, "pod_steer_daemon_restarts_total")? == 1.0,
        "{after}"
    );
    ensure!(counts(&after)?.iter().zip(&counted).all(|(after, before)| after >= before), "{after}");
    Ok(())
}

/// A stopped server has a full queue, which turns clients away.
#[test]
fn accept_queues_and_what_they_turn_away_are_measured() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    let mut server = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").server(&["--backlog", "1"]).start(&stage)?;
    let _other = Exec::new("web-2", "web", "80:8080", "0.0.0.0:9090").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    server.process.signal(Signal::STOP)?;
    let net = stage.host.net().try_clone()?;
    let connect = move || {
        net.enter()?;
        // The kernel queues one connection more than the backlog, and turns the next client away.
        let clients = (0..2).map(|_| Ok(TcpStream::connect(TARGET)?)).collect::<Result<Vec<_>>>();
        let third = TcpStream::connect_timeout(&TARGET.parse()?, Duration::from_millis(200));
        ensure!(third.is_err(), "a third client came into the queue");
        clients
    };
    let _clients = std::thread::spawn(connect).join().map_err(|_| anyhow!("the clients panicked"))??;
    let of = |page: &str, name: &str| {
        value(page, &format!("pod_steer_backend_{name}{{service=\"web\",version=\"unversioned\",backend=\"web-1\"}}"))
    };
    let drops = "listen_drops_total";
    let full = wait::until_ok("the full queue", || {
        let page = metrics(&stage)?;
        Ok((of(&page, "accept_queue_length")? == 2.0 && of(&page, drops)? >= 1.0).then_some(page))
    })?;
    ensure!(of(&full, "accept_queue_limit")? == 1.0 && of(&full, "accept_queue_usage_ratio")? == 1.0, "{full}");
    let of_namespace = |name: &str| {
        let line = full.lines().find(|line| line.starts_with(&format!("pod_steer_namespace_{name}_total{{")));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).with_context(|| format!("no {name}\n{full}"))
    };
    ensure!(of_namespace("listen_overflows")? >= 1 && of_namespace("listen_drops")? >= 1, "{full}");
    of_namespace("syn_drops")?;
    // What a listener has dropped is counted for its backend when it has closed, and by the next daemon.
    let dropped = of(&full, drops)?;
    stage.daemon.kill()?;
    let without = metrics(&stage)?;
    ensure!(of(&without, drops)? >= dropped, "they are kept");
    ensure!(of(&without, "accept_queue_length")? == 2.0 && of(&without, "accept_queue_limit")? == 1.0, "{without}");
    stage.daemon.restart()?;
    ensure!(of(&metrics(&stage)?, drops)? >= dropped, "the next daemon goes on");
    server.process.kill()?;
    Ok(())
}

#[test]
fn the_alerts_are_raised_by_their_faults_alone() -> Result<()> {
    require!(tools::root_and(&["promtool"]));
    let examples = examples();
    let said = run(Command::new("promtool").current_dir(&examples).args(["test", "rules", "alerts_test.yml"]))?;
    ensure!(said.contains("SUCCESS"), "{said}");
    let stage = Stage::without_engine()?;
    let page = metrics(&stage)?;
    for file in ["alerts.yml", "alerts_test.yml"] {
        let text = fs::read_to_string(examples.join(file))?;
        let missing: Vec<&str> = named(&text).filter(|name| !describes(&page, name)).collect();
        ensure!(missing.is_empty(), "{file} names {missing:?}");
    }
    Ok(())
}

/// Prints how long a scrape takes: `cargo xtask soak` with 1,000 backends.
#[test]
fn a_scrape_has_every_backend() -> Result<()> {
    require!(tools::root_and(&["curl"]));
    let (count, stage) = (scale::of(20, 1_000), with_port()?);
    let mut servers = Vec::new();
    for number in 0..count {
        let name = format!("web-{number}");
        servers.push(Exec::new(&name, "web", "80:8080", "0.0.0.0:8080").launch(&stage)?);
        // A few at a time, to leave processor time to the daemon.
        if number % 20 == 19 {
            wait::until_ok("the servers to listen", || servers[number].listening())?;
        }
    }
    stage.daemon.wait_ready("web", count)?;
    let url = format!("http://127.0.0.1:{METRICS}/metrics");
    let mut took = Vec::new();
    for _ in 0..20 {
        let mut curl = stage.host.command("curl")?;
        curl.args(["-s", "-H", "Accept: application/openmetrics-text", "-w", "took %{time_total}", &url]);
        let answer = run(&mut curl)?;
        let (page, seconds) = answer.rsplit_once("took ").context("the page is there")?;
        ensure!(page.ends_with("# EOF\n") && by_backend(page, STEERED).len() == count, "{page}");
        took.push(Duration::from_secs_f64(seconds.trim().parse()?));
        // As if it were another minute.
        std::thread::sleep(Duration::from_millis(50));
    }
    took.sort_unstable();
    report::figure(&format!("a scrape with {count} backends, median of 20"), format!("{:?}", took[took.len() / 2]));
    report::figure("the slowest", format!("{:?}", took[took.len() - 1]));
    // What `top` asks for.
    let mut took = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let (status, live) = stage.daemon.api("/v1/live", None)?;
        took.push(began.elapsed());
        let queues = live["queues"].as_object().map_or(0, serde_json::Map::len);
        ensure!(status == 200 && queues == count, "{status}, {queues} queues");
    }
    took.sort_unstable();
    report::figure(&format!("an answer for top with {count} backends, median of 20"), format!("{:?}", took[10]));
    sockets_of_all(&stage, count)
}

/// What `sockets` asks for: every listener with its process.
fn sockets_of_all(stage: &Stage, count: usize) -> Result<()> {
    let memory_kib = |field: &str| -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", stage.daemon.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("the daemon has memory")?;
        line.trim().trim_end_matches(" kB").parse().context("a number")
    };
    let before = memory_kib("VmRSS:")?;
    // Its peak is counted from here (proc_pid_clear_refs(5)).
    fs::write(format!("/proc/{}/clear_refs", stage.daemon.pid()), "5")?;
    let mut took = Vec::new();
    for path in ["/v1/sockets", "/v1/sockets?live=true"].repeat(5) {
        let began = Instant::now();
        let (status, found) = stage.daemon.api(path, None)?;
        took.push((path, began.elapsed()));
        ensure!(status == 200 && found["unseen"] == serde_json::json!([]), "{status}: {}", found["unseen"]);
        let held = found["sockets"].as_array().into_iter().flatten().filter(|socket| socket["holders"] == 1).count();
        ensure!(held == count, "{held} sockets have one process");
    }
    took.sort_unstable();
    for (label, at) in [("an answer with every socket", 2), ("the same with connections", 7)] {
        report::figure(&format!("{label} of {count} backends, median of 5"), format!("{:?}", took[at].1));
    }
    let peak = memory_kib("VmHWM:")?;
    report::figure("memory of the daemon before, and at most during these, in KiB", format!("{before}, {peak}"));
    Ok(())
}
