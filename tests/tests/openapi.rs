//! The API's own description against the API: Schemathesis makes requests from it, good ones and bad ones, and every answer is
//! one that the description has.

use anyhow::{Result, ensure};
use pod_steer_tests::{
    daemon::Stage,
    process::{Process, output},
    require,
    rollouts::web,
    tools, wait,
};

/// What must hold of every answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";

/// The daemon's socket as a TCP port of the host, by a process of its own: it is what `POST /v1/exec` makes a backend.
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
    // The one would end the daemon, the other never ends.
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
