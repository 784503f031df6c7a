//! One of two servers behind a bridge is killed under load and started again, many times. It loses the connections that it holds, and the
//! other server loses none. The queue of a listener that is killed ends with it: no other socket of its namespace could take it over.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};
use pod_steer_tests::{
    bridged,
    daemon::Stage,
    load::{Load, Loss, Running},
    report, require, scale, tools, wait,
};

/// Clients with a connection for each request, and as many with connections that they keep.
const CLIENTS: u64 = 4;
/// A killed server may refuse or reset so few connections that were not open yet, in a hundred kills.
const HANDSHAKES_MAX: usize = 50;
/// And so many more, since chance has more weight in a few kills.
const HANDSHAKES_MORE: usize = 6;

/// Waits until so many more connections were answered.
fn goes_on(load: &Running, more: u64) -> Result<()> {
    let answered = load.answered();
    wait::until("clients to be answered", || (load.answered() >= answered + more).then_some(()))
}

/// What a server has accepted, from all its records: connections, and how often it was killed between `accept` and the record.
fn accepted(records: &[PathBuf]) -> Result<(u64, u64)> {
    let (mut accepted, mut unknown) = (0, 0);
    for record in records {
        let text = fs::read_to_string(record)?;
        accepted += text.lines().filter(|line| line.len() > 1 && *line != "?-").count() as u64;
        unknown += u64::from(text.ends_with('?'));
    }
    Ok((accepted, unknown))
}

#[test]
fn a_killed_server_loses_its_own_connections_only() -> Result<()> {
    require!(tools::docker());
    let kills = scale::of(5, 50);
    let stage = Stage::with_docker()?;
    let client = stage.host.new_client()?;
    client.ns.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
    let records = stage.host.dir().join("records");
    fs::create_dir(&records)?;
    // It accepts slowly, so that connections wait in its queue.
    let victim = bridged::web_with("victim", &["--accept-delay-ms", "1", "--journal", "/records/victim"]);
    let victim = stage.engine().start_container(&victim.mount(&records, "/records"))?;
    let _survivor = stage.engine().start_container(&bridged::web("survivor"))?;
    stage.daemon.wait_ready("web", 2)?;
    let target: SocketAddr = (client.host_ip4, 80).into();
    let short = Load::to(target).threads(CLIENTS).start(&client.ns)?;
    let long = Load::to(target).threads(CLIENTS).requests(50).pause(Duration::from_millis(1)).start(&client.ns)?;
    let mut ended = Vec::new();
    for kill in 0..kills {
        goes_on(&short, 200)?;
        goes_on(&long, 4)?;
        victim.kill("KILL")?;
        // Clients of that time meet the other server.
        goes_on(&short, 50)?;
        stage.engine().docker().run(&["wait", &victim.id])?;
        let record: &Path = &records.join(format!("victim-{kill}"));
        fs::rename(records.join("victim"), record)?;
        ended.push(record.to_owned());
        stage.daemon.wait_for("the end to be known", |status| (status.service("web")?.ready() == 1).then_some(()))?;
        victim.start()?;
        stage.daemon.wait_ready("web", 2)?;
    }
    goes_on(&short, 200)?;
    let (mut tally, long) = (short.stop()?, long.stop()?);
    tally.merge(long);
    ended.push(records.join("victim"));

    let service = stage.daemon.wait_for("the counters", |status| {
        let service = status.service("web")?;
        (service.backends.iter().any(|one| one.name == "survivor" && one.live == 0)).then(|| service.clone())
    })?;
    let (opened, steered) = (service.by_name(|backend| backend.opened), service.by_name(|backend| backend.steered));
    let (accepted, unknown) = accepted(&ended)?;
    let answered = tally.answered_by("victim");
    let lost = tally.losses.len();
    // Of the connections that the killed server had: those that it had accepted, those in its queue, and those that were not open yet.
    let (open, queued) = (accepted.saturating_sub(answered), opened["victim"].saturating_sub(accepted));
    let handshakes = lost.saturating_sub((open + queued) as usize);
    report::figure(
        "servers killed under load",
        format!(
            "{kills} kills, {} requests, {lost} connections lost: {open} accepted, {queued} in the queue, {handshakes} not open yet; \
             {unknown} kills before a record; steered {steered:?}, opened {opened:?}; {tally}",
            tally.requests()
        ),
    );
    // Whatever was lost was the killed server's: the other one has answered every connection that it had.
    ensure!(opened["survivor"] == tally.answered_by("survivor"), "{opened:?}; {tally}");
    ensure!(steered["survivor"] == opened["survivor"], "{steered:?}, {opened:?}");
    let is_end = |loss: &Loss| matches!(loss, Loss::ResetBefore(_) | Loss::ResetAfter(_) | Loss::Refused);
    let others: Vec<&Loss> = tally.losses.iter().map(|(_, loss)| loss).filter(|loss| !is_end(loss)).collect();
    ensure!(others.is_empty(), "no client may wait for a server that is gone: {others:?}");
    ensure!(tally.refused() == 0, "the SYN of a client that is refused can be sent again: {tally}");
    // A client has one connection at a time.
    ensure!(lost as u64 <= 2 * CLIENTS * kills, "{lost} lost in {kills} kills: {tally}");
    ensure!(
        handshakes <= HANDSHAKES_MAX * kills as usize / 100 + HANDSHAKES_MORE,
        "{handshakes} lost that were not open yet: {tally}"
    );
    ensure!(open + queued > 0 && answered > 0, "the killed server had none: {tally}");
    ensure!(service.counter("refused_no_backend") == 0, "{service:#?}");
    ensure!(tally.disguised.is_empty(), "{:?}", tally.disguised);
    Ok(())
}
