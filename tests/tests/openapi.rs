//! Checks the API against its own description: Schemathesis generates valid and invalid requests, and every answer must match the
//! description.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    process::{Process, output},
    require,
    rollouts::web,
    tools, wait,
};

/// The checks that every answer must pass.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";

/// Offers the daemon's socket on a TCP port of the host. A process of its own does that, since `POST /v1/exec` makes it a backend.
fn relay(stage: &Stage) -> Result<(Process, u16)> {
    let process = stage.host.start("relay", stage.host.command(tools::relay()?)?.arg(stage.daemon.socket()))?;
    let port = wait::until_ok("the relay to listen", || Ok(process.stdout().trim_end().parse().ok()))?;
    Ok((process, port))
}

#[test]
fn every_answer_is_as_described() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    require!(tools::schemathesis().map_err(|error| error.to_string()));
    let stage = Stage::without_engine()?;
    let _servers = [web(&stage, "v1-1").start(&stage)?, web(&stage, "v2-1").start(&stage)?];
    stage.daemon.wait_ready("web", 2)?;
    let (_relay, port) = relay(&stage)?;
    let pid = stage.daemon.pid();

    let url = format!("http://127.0.0.1:{port}");
    let mut command = stage.host.command(tools::schemathesis()?)?;
    command.current_dir(stage.host.dir()).env("NO_PROXY", "*").env("NO_COLOR", "1");
    command.arg("--config-file").arg(tools::openapi_settings());
    command.args(["run", &format!("{url}/v1/openapi.json"), "--url", &url, "--checks", CHECKS]);
    // The first one would end the daemon, and the second one never ends.
    command.args(["--exclude-path", "/v1/unload", "--exclude-path", "/v1/events"]);
    let answer = output(&mut command)?;
    let said = String::from_utf8_lossy(&answer.stdout);
    ensure!(answer.status.success(), "{said}\n{}", String::from_utf8_lossy(&answer.stderr));

    ensure!(stage.daemon.pid() == pid && stage.daemon.status().is_ok(), "{}", stage.daemon.log_tail());
    ensure!(!stage.daemon.log().contains("panicked"), "{}", stage.daemon.log_tail());
    let orders = stage.daemon.history("web")?.len();
    ensure!(orders > 0, "no request was a good order, so little was tested:\n{said}");
    Ok(())
}
