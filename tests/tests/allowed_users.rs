//! `allow-users` restricts a service to listening sockets of these users.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    exec::{Backend, Exec},
    image::Image,
    load::Load,
    process::{output, run},
    require,
    rollouts::{hold, none_lost},
    server,
    settings::{goes_on, reload, write},
    tools, wait,
};

const USER: u32 = 1000;
const ROOT_ONLY: &str = "[service.web]\nallow-users = ['root']\n";
const USER_ONLY: &str = "[service.web]\nallow-users = [1000]\n";
const BOTH: &str = "['service'.'*']\nallow-users = ['root', 1000]\n";

fn exec(name: &str) -> Exec<'static> {
    Exec::new(name, "web", "80:8080", "0.0.0.0:8080")
}

fn of_both(stage: &Stage) -> Result<[Backend; 2]> {
    Ok([exec("of-root").start(stage)?, exec("of-user").user(USER).start(stage)?])
}

/// Exactly these backends serve the clients of `web`; every other backend has a condition that names its user.
fn served_by(stage: &Stage, names: &[&str]) -> Result<()> {
    stage.daemon.wait_ready("web", names.len())?;
    let tally = Load::to("127.0.0.1:80".parse()?).count(200).run(stage.host.net())?;
    none_lost(&tally)?;
    for name in names {
        ensure!(tally.answered_by(name) > 0, "{name}: {tally}");
    }
    ensure!(names.iter().map(|name| tally.answered_by(name)).sum::<u64>() == 200, "{names:?} alone: {tally}");
    for (name, user) in [("of-root", "user 0"), ("of-user", "user 1000")] {
        let is_there = stage.daemon.service_of(name)?.is_some();
        if is_there && !names.contains(&name) {
            stage.daemon.wait_state("web", name, "not-steered")?;
            let said = stage.daemon.status()?.said_about(name).join("\n");
            ensure!(said.contains("allow-users") && said.contains(user), "{said}");
        }
    }
    Ok(())
}

#[test]
fn allow_users_narrowed_at_once_and_at_a_restart() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let mut stage = Stage::configured(ROOT_ONLY)?;
    let _root = exec("of-root").start(&stage)?;
    served_by(&stage, &["of-root"])?;
    // It never gets a client, not even at the moment it starts to listen.
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).start(stage.host.net())?;
    let _user = exec("of-user").user(USER).start(&stage)?;
    stage.daemon.wait_state("web", "of-user", "not-steered")?;
    let tally = load.stop()?;
    none_lost(&tally)?;
    ensure!(tally.answered_by("of-user") == 0, "{tally}");
    served_by(&stage, &["of-root"])?;

    let mut held = hold(stage.host.net())?;
    reload(&stage, USER_ONLY)?;
    served_by(&stage, &["of-user"])?;
    goes_on(&mut held, "of-root")?;
    reload(&stage, BOTH)?;
    served_by(&stage, &["of-root", "of-user"])?;

    stage.daemon.terminate()?;
    write(&stage, ROOT_ONLY)?;
    stage.daemon.restart()?;
    served_by(&stage, &["of-root"])?;
    reload(&stage, "")?;
    served_by(&stage, &["of-root", "of-user"])
}

#[test]
fn a_restart_loses_no_connection_of_an_allowed_user() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let mut stage = Stage::configured(BOTH)?;
    let _both = of_both(&stage)?;
    stage.daemon.wait_ready("web", 2)?;
    let load = Load::to("127.0.0.1:80".parse()?).threads(2).start(stage.host.net())?;
    for _ in 0..3 {
        stage.daemon.kill()?;
        stage.daemon.restart()?;
    }
    let tally = load.stop()?;
    none_lost(&tally)?;
    served_by(&stage, &["of-root", "of-user"])
}

#[test]
fn root_in_a_user_namespace_is_the_user_that_it_is_outside() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv", "unshare"]));
    let stage = Stage::configured(ROOT_ONLY)?;
    let _root = exec("of-root").start(&stage)?;
    let mut command = stage.daemon.cli()?;
    command.args(["exec", "--service", "web", "--ports", "80:8080", "--name", "of-user", "--"]);
    command.args(["setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups", "--"]);
    command.args(["unshare", "--user", "--map-root-user", "--", "sh", "-c", "id -u; exec \"$0\" \"$@\""]);
    command.arg(tools::named_server()?).args(["--name", "of-user", "--listen", "0.0.0.0:8080"]);
    let server = stage.host.start("of-user", &mut command)?;
    wait::until("it to listen", || server.stdout().contains("listening").then_some(()))?;
    ensure!(server.stdout().starts_with("0\n"), "it believes to be root: {}", server.stdout());
    served_by(&stage, &["of-root"])
}

#[test]
fn a_registered_process_of_another_user_is_refused() -> Result<()> {
    require!(tools::root_and(&["ip", "setpriv"]));
    let stage = Stage::configured(ROOT_ONLY)?;
    let mut command = stage.host.command("setpriv")?;
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups", "--"]).arg(tools::named_server()?);
    let server = stage.host.start("server", command.args(["--name", "of-user", "--listen", "0.0.0.0:8080"]))?;
    wait::until("it to listen", || server.stdout().contains("listening").then_some(()))?;
    let register = |stage: &Stage| -> Result<_> {
        let mut register = stage.daemon.cli()?;
        register.args(["register", "--service", "web", "--ports", "80:8080", "--name", "of-user", "--pid"]);
        register.arg(server.pid().to_string());
        Ok(register)
    };
    let refused = output(&mut register(&stage)?)?;
    let said = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(2) && said.contains("user 1000, which is not allowed"), "{refused:?}");
    reload(&stage, USER_ONLY)?;
    run(&mut register(&stage)?)?;
    served_by(&stage, &["of-user"])
}

#[test]
fn a_container_that_runs_as_another_user() -> Result<()> {
    require!(tools::docker());
    let mut stage = Stage::with_docker_configured(ROOT_ONLY)?;
    let engine = stage.engine();
    engine.import(Image::NamedAsUser)?;
    let of_web = |spec: pod_steer_tests::container::Spec| spec.service("web", "80:8080").version("v1");
    let _root = engine.start_container(&of_web(server::named("of-root", "0.0.0.0:8080")))?;
    let _user = engine.start_container(&of_web(server::named_as_user("of-user", "0.0.0.0:8080")))?;
    stage.daemon.wait_state("web", "of-user", "not-steered")?;
    served_by(&stage, &["of-root"])?;
    reload(&stage, USER_ONLY)?;
    served_by(&stage, &["of-user"])?;
    stage.daemon.terminate()?;
    write(&stage, ROOT_ONLY)?;
    stage.daemon.restart()?;
    served_by(&stage, &["of-root"])
}
