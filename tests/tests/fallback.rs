//! A service without a backend: clients are refused at once and counted, or passed to the kernel's own lookup.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use pod_steer_tests::{daemon::Stage, exec::Exec, load::Load, require, server, sk_lookup::ForeignLookup, tools, wait};

#[test]
fn refused_at_once_and_counted() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let spec = server::named("web-1", "0.0.0.0:8080").service("web", "80:8080");
    let container = stage.engine().start_container(&spec)?;
    assert_eq!(stage.daemon.wait_ready("web", 1)?.fallback, "refuse", "the default");
    let target = "127.0.0.1:80".parse()?;
    let served = Load::to(target).count(10).run(stage.host.net())?;
    assert_eq!(served.answered_by("web-1"), 10, "{served}");

    container.stop()?;
    stage.daemon.wait_state("web", "web-1", "exited")?;
    let before = stage.daemon.status()?.service("web").expect("its container exists").counter("refused_no_backend");
    let refused = Load::to(target).threads(2).count(500).run(stage.host.net())?;
    assert_eq!(refused.refused(), 500, "{refused}");
    let after = stage.daemon.status()?.service("web").expect("its container exists").counter("refused_no_backend");
    assert_eq!(after - before, 500, "each has its reason counted");

    container.start()?;
    stage.daemon.wait_ready("web", 1)?;
    let served = Load::to(target).count(10).run(stage.host.net())?;
    assert_eq!(served.answered_by("web-1"), 10, "{served}");
    Ok(())
}

#[test]
fn passed_to_the_kernels_own_listener() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    // An unmanaged listener has the port before the service claims it.
    let mut command = stage.host.command(tools::named_server()?)?;
    command.args(["--name", "kernel", "--listen", "0.0.0.0:80"]);
    let listener = stage.host.start("kernel", &mut command)?;
    wait::until("the kernel's listener", || listener.stdout().contains("listening").then_some(()))?;
    let target = "127.0.0.1:80".parse()?;
    let own = Load::to(target).count(10).run(stage.host.net())?;
    assert_eq!(own.answered_by("kernel"), 10, "{own}");

    let spec = server::named("web-1", "0.0.0.0:8080").service("web", "80:8080").label("pod-steer.fallback", "pass");
    let container = stage.engine().start_container(&spec)?;
    assert_eq!(stage.daemon.wait_ready("web", 1)?.fallback, "pass");
    let steered = Load::to(target).count(100).run(stage.host.net())?;
    assert_eq!(steered.answered_by("web-1"), 100, "{steered}");

    container.kill("KILL")?;
    stage.daemon.wait_state("web", "web-1", "exited")?;
    let before = stage.daemon.status()?.service("web").expect("its container exists").counter("passed_no_backend");
    let passed = Load::to(target).count(100).run(stage.host.net())?;
    assert_eq!(passed.answered_by("kernel"), 100, "{passed}");
    let service = stage.daemon.status()?.service("web").expect("its container exists").clone();
    assert_eq!(service.counter("passed_no_backend") - before, 100);
    assert_eq!(service.counter("refused_no_backend"), 0);

    // The container is removed, and the service with it: the unmanaged listener has the port again.
    drop(container);
    stage.daemon.wait_for("the service to be gone", |status| status.service("web").is_none().then_some(()))?;
    let own = Load::to(target).count(10).run(stage.host.net())?;
    assert_eq!(own.answered_by("kernel"), 10, "{own}");
    Ok(())
}

/// One backend of a service determines its fallback, and `status` names the backends that ask for another one.
#[test]
fn the_newest_backend_decides_before_the_configuration() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let stage = Stage::configured("[service.web]\nfallback = 'pass'\n")?;
    let _web_1 = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").start(&stage)?;
    assert_eq!(stage.daemon.wait_ready("web", 1)?.fallback, "pass", "the table of the service");
    let _web_2 = Exec::new("web-2", "web", "80:8080", "0.0.0.0:8080").flags(&["--fallback", "refuse"]).start(&stage)?;
    assert_eq!(stage.daemon.wait_ready("web", 2)?.fallback, "refuse", "the newest backend");
    let conditions = stage.daemon.said_of("web")?["conditions"].to_string();
    let said = "pod-steer.fallback: `refuse`, by the newest, web-2, is in effect, and web-1 would have `pass`";
    assert!(conditions.contains("options-disagree") && conditions.contains(said), "{conditions}");

    stage.daemon.order_done("drain web")?;
    let refused = Load::to("127.0.0.1:80".parse()?).count(10).run(stage.host.net())?;
    assert_eq!(refused.refused(), 10, "{refused}");
    let service = stage.daemon.wait_idle("web")?;
    assert_eq!((service.counter("refused_no_backend"), service.counter("passed_no_backend")), (10, 0));
    Ok(())
}

#[test]
fn clients_that_another_lookup_program_has_served_are_not_refused() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    let mut stage = Stage::without_engine()?;
    // It is attached first, so Linux runs it first.
    let foreign = ForeignLookup::attach(stage.host.net(), 8080)?;
    let _m = Exec::new("m", "web", "8080-8081", "0.0.0.0:8080").server(&["--listen", "0.0.0.0:8081"]).start(&stage)?;
    stage.daemon.wait_ready("web", 1)?;
    let net = stage.host.net().try_clone()?;
    let load = |port: u16| Load::to((Ipv4Addr::LOCALHOST, port).into()).count(50).run(&net);
    let by_foreign = |stage: &Stage, counted: u64| -> Result<()> {
        let tally = load(8080)?;
        assert_eq!(tally.answered_by("foreign"), 50, "{tally}");
        let service = stage.daemon.status()?.service("web").context("it is there")?.clone();
        assert_eq!((service.counter("assign_eexist"), service.counter("refused_no_backend")), (counted, 0));
        Ok(())
    };
    by_foreign(&stage, 50)?;
    assert_eq!(load(8081)?.answered_by("m"), 50, "the other program does not choose for its other port");
    assert_eq!(stage.daemon.wait_idle("web")?.backends[0].steered, 50);
    // The same without a backend, and without a daemon.
    stage.daemon.order_done("drain web")?;
    by_foreign(&stage, 100)?;
    assert_eq!(load(8081)?.refused(), 50);
    stage.daemon.order_done("resume web")?;
    stage.daemon.kill()?;
    assert_eq!(load(8080)?.answered_by("foreign"), 50);
    stage.daemon.restart()?;
    stage.daemon.wait_ready("web", 1)?;
    // Without it the service has the port.
    drop(foreign);
    assert_eq!(load(8080)?.answered_by("m"), 50);
    Ok(())
}
