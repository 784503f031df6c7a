//! What `pod-steer explain` prints, that it changes nothing, and that bad input gives one clear line.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    bpf,
    daemon::{BPFFS, Stage},
    load::attempt_by,
    process::{output, run},
    require,
    rollouts::web,
    sk_lookup::ForeignLookup,
    tools,
};

/// The maps that the programs write to, except those of counters, which `pod-steer metrics` prints.
const WRITTEN: [&str; 4] = ["maps/OWN_CONNECTIONS", "maps/SOCKETS", "maps/OWN_SOURCES", "maps/SWITCHES"];

fn explain(stage: &Stage, args: &[&str]) -> Result<Command> {
    let mut command = stage.daemon.cli()?;
    command.env("POD_STEER_BPFFS", BPFFS).arg("explain").args(args);
    Ok(command)
}

fn said(stage: &Stage, args: &[&str]) -> Result<String> {
    run(&mut explain(stage, args)?)
}

/// Everything that an explanation could change: pins, counters, and what programs remember.
fn kernel_state(stage: &Stage) -> Result<String> {
    let mut state = run(stage.daemon.cli()?.args(["metrics", "--bpffs", BPFFS]))?;
    // These are of the moment.
    state = state.lines().filter(|line| !line.contains("process_") && !line.contains("seconds")).collect();
    state += &format!("{:?}", bpf::pinned(&stage.host)?);
    for map in WRITTEN {
        let dump =
            run(stage.host.command("bpftool")?.args(["--json", "map", "dump", "pinned", &format!("{BPFFS}/{map}")]))?;
        state += &dump;
    }
    Ok(state)
}

#[test]
fn the_answer_is_for_a_person_and_changes_nothing() -> Result<()> {
    require!(tools::root_and(&["bpftool"]));
    let mut stage = Stage::without_engine()?;
    let servers = ["v1-1", "v1-2", "v2-1"].map(|name| web(&stage, name).start(&stage));
    let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 3)?;
    stage.daemon.order_done("shift web v1=1 v2=0")?;
    stage.daemon.order_done("drain web --backend v1-2")?;
    let asked = ["tcp", "127.0.0.1:40001", "127.0.0.1:80"];
    let with_daemon = said(&stage, &asked)?;
    ensure!(!with_daemon.contains("of others"), "{with_daemon}");
    ensure!(with_daemon.contains("v1-2 (v1): withheld") && with_daemon.contains("(state: drained)"), "{with_daemon}");
    stage.daemon.kill()?;
    let before = kernel_state(&stage)?;
    let text = said(&stage, &asked)?;
    println!("{text}");
    let first = text.lines().next().context("nothing was printed")?;
    ensure!(first.starts_with("127.0.0.1:40001 → 127.0.0.1:80: v1-1 (service web, version v1), socket "), "{text}");
    for line in
        ["comes by lo", "port 80, every address", "taken", "dry run and the tables agree", "Not chosen:", "v2-1 (v2)"]
    {
        ensure!(text.contains(line), "no `{line}`: {text}");
    }
    ensure!(text.lines().all(|line| line.chars().count() <= 80), "more than 80 columns: {text}");
    // A thousand ports, then as JSON, then a port of no service.
    let any = said(&stage, &["tcp", "127.0.0.1", "127.0.0.1:80"])?;
    ensure!(any.starts_with("127.0.0.1 (any port) → 127.0.0.1:80: v1-1 "), "{any}");
    let json: serde_json::Value =
        serde_json::from_str(&said(&stage, &["--json", "tcp", "127.0.0.1:40001", "127.0.0.1:80"])?)?;
    ensure!(json["choice"]["backend"]["name"] == "v1-1" && json["difference"].is_null(), "{json:#}");
    let free = said(&stage, &["tcp", "127.0.0.1:40001", "127.0.0.1:81"])?;
    ensure!(free.contains("left to the kernel's own lookup: no service"), "{free}");
    ensure!(before == kernel_state(&stage)?, "the kernel state has changed");
    // All servers end, and no daemon is there to see it.
    drop(servers);
    let before = kernel_state(&stage)?;
    let gone = said(&stage, &asked)?;
    println!("{gone}");
    ensure!(gone.contains("left to the kernel's own lookup: no backend"), "{gone}");
    ensure!(gone.contains("its socket has closed") && gone.contains("a real packet would count: "), "{gone}");
    ensure!(before == kernel_state(&stage)?, "the kernel state has changed");
    // A real connection does change it, as the test can see.
    let (from, to) = ("127.0.0.1:40001".parse()?, "127.0.0.1:80".parse()?);
    stage.host.net().run(|| attempt_by(from, to, Duration::from_secs(5)));
    ensure!(before != kernel_state(&stage)?, "a real connection was not counted");
    Ok(())
}

#[test]
fn a_program_that_may_choose_first_is_named() -> Result<()> {
    require!(tools::root_and(&[]));
    let stage = Stage::without_engine()?;
    let _other = ForeignLookup::attach(stage.host.net(), 80)?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let text = said(&stage, &["tcp", "127.0.0.1:40001", "127.0.0.1:80"])?;
    ensure!(text.contains("  1 lookup program of others runs before ours, and may choose first\n"), "{text}");
    Ok(())
}

#[test]
fn bad_input_is_one_line_and_changes_nothing() -> Result<()> {
    require!(tools::root_and(&["bpftool"]));
    let mut stage = Stage::without_engine()?;
    let refused = |stage: &Stage, args: &[&str], wanted: &str| -> Result<()> {
        let said = output(&mut explain(stage, args)?)?;
        let (text, printed) = (String::from_utf8_lossy(&said.stderr), String::from_utf8_lossy(&said.stdout));
        ensure!(said.status.code() == Some(2), "{args:?} exits with {:?}: {text}{printed}", said.status.code());
        ensure!(text.lines().count() == 1 && text.contains(wanted) && printed.is_empty(), "{args:?}: {text}{printed}");
        Ok(())
    };
    let (from, to) = ("127.0.0.1:40001", "127.0.0.1:80");
    refused(&stage, &["tcp", from, to], "nothing is steered in the network namespace")?;
    let _server = web(&stage, "v1-1").start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    stage.daemon.kill()?;
    let before = kernel_state(&stage)?;
    let packets = stage.host.dir().join("packets");
    fs::write(&packets, "127.0.0.1:40001 127.0.0.1:80\nnonsense\n")?;
    let (packets, missing) = (packets.display().to_string(), "/nonexistent");
    for (args, wanted) in [
        (&["udp", from, to][..], "invalid value 'udp'"),
        (&["tcp", from], "<DESTINATION>"),
        (&["tcp", "localhost:1", to], "use ADDRESS or ADDRESS:PORT"),
        (&["tcp", "::1", "[::1]:80"], "write the address in brackets"),
        (&["tcp", "127.0.0.1:0", to], "no connection has port 0"),
        (&["tcp", from, "127.0.0.1:0"], "no connection has port 0"),
        (&["tcp", from, "127.0.0.1:65536"], "use ADDRESS:PORT"),
        (&["tcp", from, "0.0.0.0:80"], "no connection has the address 0.0.0.0"),
        (&["tcp", from, "[::1]:80"], "are of two families"),
        (&["tcp", from, "198.51.100.1:80"], "198.51.100.1 is no address of this network namespace"),
        (&["tcp", from, to, "--device", "eth\u{1b}[31m9"], "there is no network device `eth"),
        (&["tcp", "203.0.113.5:4711", to], "no route to the client 203.0.113.5; name the device with --device"),
        (&["tcp", "[fe80::5%3]:4711", "[::1]:80"], "leave out the scope id"),
        (&["tcp", "[::1]:4711", "[fe80::1%lo]:80"], "leave out the scope id"),
        (&["tcp", "[fe80::5]:4711", "[::1]:80"], "fe80::5 is valid on one device only; name the device with --device"),
        (&["tcp", "[2001:db8::5]:4711", "[fe80::1]:80"], "fe80::1 is valid on one device only"),
        (&["tcp", "[fe80::5]", "[::1]:80", "--device", "eth9"], "there is no network device `eth9`"),
        (&["tcp", from, to, "--namespace", missing], "cannot enter the network namespace `/nonexistent`"),
        (&["tcp", from, to, "--namespace", "/proc/self/ns/mnt"], "cannot enter the network namespace"),
        (&["tcp", "--packets", missing], "cannot read the packets in `/nonexistent`"),
        (&["tcp", "--packets", &packets], "line 2 of the packets: use SOURCE DESTINATION"),
        (&["tcp", from, to, "--packets", &packets], "cannot be used with"),
        (&["tcp", from, to, "--bpffs", missing], "nothing is steered: there is no kernel state below `/nonexistent`"),
    ] {
        refused(&stage, args, wanted)?;
    }
    ensure!(before == kernel_state(&stage)?, "the kernel state has changed");
    // Pins of which some are missing, as of a daemon that is just making or removing them: none is made.
    let pins = stage.host.path(BPFFS);
    for pin in ["maps/SWITCHES", "maps/SOCKETS", "maps/META"] {
        fs::remove_file(pins.join(pin)).with_context(|| pin.to_owned())?;
        let wanted = if pin == "maps/META" { "there is no kernel state" } else { "cannot open" };
        refused(&stage, &["tcp", from, to], wanted)?;
        ensure!(!pins.join(pin).exists(), "{pin} was made");
    }
    Ok(())
}
