//! Containers on the host's network share one port, in the proportion of their weights.

use anyhow::Result;
use pod_steer_tests::{check, daemon::Stage, load::Load, process::output, require, server, tools, wait};

#[test]
fn three_containers_share_a_port_by_weight() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let weights = [("web-1", 1), ("web-2", 2), ("web-3", 3)];
    let _containers = weights
        .iter()
        .map(|(name, weight)| {
            let spec = server::named(name, "0.0.0.0:8080").service("web", "8080:8080").weight(*weight);
            stage.engine().start_container(&spec.version("v1"))
        })
        .collect::<Result<Vec<_>>>()?;
    stage.daemon.wait_ready("web", 3)?;

    let load = Load::to("127.0.0.1:8080".parse()?).threads(4);
    let service =
        check::measured_shares("three containers, one port", &stage.daemon, stage.host.net(), &load, &weights)?;
    assert_eq!(service.ports, ["8080:8080/tcp"]);
    for (name, weight) in weights {
        let status = stage.daemon.status()?;
        let backend = status.backend("web", name);
        assert_eq!((backend.kind.as_str(), backend.version.as_str(), backend.weight), ("container", "v1", weight));
        assert_eq!(backend.engine.as_deref(), Some(stage.engine().url().as_str()));
        assert_eq!(backend.id.len(), 64, "a container is known by its full id");
    }
    Ok(())
}

#[test]
fn unmodified_servers_of_four_kinds_share_a_port() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["nginx", "python3", "ldd"]));
    let stage = Stage::with_docker()?;
    let specs = [
        server::named("named-1", "0.0.0.0:8080"),
        server::busybox("busybox-1", 8080),
        server::python("python-1", 8080),
        server::nginx("nginx-1", 8080),
    ];
    let _containers = specs
        .into_iter()
        .map(|spec| stage.engine().start_container(&spec.service("web", "8080:8080")))
        .collect::<Result<Vec<_>>>()?;
    // nginx has a socket for each of its two workers; the backend's share is the same as that of the others.
    let service = stage.daemon.wait_ready("web", 4)?;
    stage
        .daemon
        .wait_for("both of nginx's sockets", |status| (status.backend("web", "nginx-1").sockets == 2).then_some(()))?;
    assert!(service.backends.iter().all(|backend| backend.weight == 1));

    // Python's backlog is five: fewer clients than that, so that none has to retransmit its SYN.
    let load = Load::to("127.0.0.1:8080".parse()?).threads(3);
    let weights = [("named-1", 1), ("busybox-1", 1), ("python-1", 1), ("nginx-1", 1)];
    let label = "named, busybox, python and nginx, one port";
    check::measured_shares(label, &stage.daemon, stage.host.net(), &load, &weights).map(drop)
}

#[test]
fn connections_kept_alive_stay_where_they_are() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let start = |name: &str| {
        let spec = server::named(name, "0.0.0.0:8080").service("web", "80:8080,8080:8080");
        stage.engine().start_container(&spec)
    };
    let _first = start("web-1")?;
    stage.daemon.wait_ready("web", 1)?;
    let kept = Load::to("127.0.0.1:8080".parse()?).threads(4).requests(200).pause(std::time::Duration::ZERO);
    let kept = kept.start(stage.host.net())?;
    wait::until("the first connections", || (kept.answered() > 4).then_some(()))?;
    let _second = start("web-2")?;
    stage.daemon.wait_ready("web", 2)?;
    let before = kept.answered();
    wait::until("more connections", || (kept.answered() > before + 40).then_some(()))?;
    let tally = kept.stop()?;

    // The load counts a connection as lost if two servers have answered its requests.
    let service = stage.daemon.wait_idle("web")?;
    check::kernel_agrees(&service, &tally)?;
    assert_eq!(tally.requests_by_name.values().sum::<u64>(), 200 * tally.connections());
    assert!(tally.answered_by("web-1") > 0 && tally.answered_by("web-2") > 0, "{tally}");
    Ok(())
}

#[test]
fn unmanaged_servers_are_not_affected() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let web = server::named("web-1", "0.0.0.0:8080").service("web", "8080:8080");
    let _web = stage.engine().start_container(&web)?;
    stage.daemon.wait_ready("web", 1)?;

    // An undeclared port is served as before, and is not counted.
    let _other = stage.engine().start_container(&server::named("other-1", "0.0.0.0:8090"))?;
    let other = "127.0.0.1:8090".parse()?;
    wait::until("the other server", || {
        Load::to(other).count(1).run(stage.host.net()).ok().filter(|t| t.answered() == 1)
    })?;
    // A bind to the managed port fails, as it does without pod-steer.
    let intruder = stage.engine().start_container(&server::named("intruder-1", "0.0.0.0:8080"))?;
    let logs = wait::until("the intruder to end", || intruder.logs().ok().filter(|logs| !logs.is_empty()))?;
    assert!(logs.contains("Address already in use"), "{logs}");
    // The same for a process outside any container.
    let mut command = stage.host.command(tools::named_server()?)?;
    let outcome = output(command.args(["--name", "process-1", "--listen", "0.0.0.0:8080"]))?;
    assert!(!outcome.status.success());

    let tally = Load::to("127.0.0.1:8080".parse()?).count(500).run(stage.host.net())?;
    assert_eq!(tally.answered_by("web-1"), 500, "{tally}");
    let service = stage.daemon.wait_idle("web")?;
    check::kernel_agrees(&service, &tally)?;
    assert_eq!(service.backends.len(), 1);
    let status = stage.daemon.status()?;
    assert!(status.warnings().is_empty(), "{:?}", status.warnings());
    assert!(status.said_about("other").is_empty());
    Ok(())
}
