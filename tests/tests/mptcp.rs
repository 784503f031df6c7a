//! Servers that ask for MPTCP, as every Go server does since 1.24. The kernel cannot steer to an MPTCP listener, so managed servers get
//! TCP instead.

use anyhow::Result;
use pod_steer_tests::{check, daemon::Stage, exec::Exec, load::Load, require, server, tools, wait};

/// Does what Go's `net.Listen` does: MPTCP, and TCP on any error. It answers like the test server with `--raw`.
const GO_STYLE: &str = r#"
import socket, sys
def listen():
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262), "mptcp"
    except OSError:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM), "tcp"
listener, protocol = listen()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", 8080))
listener.listen(128)
print("listens by", protocol, flush=True)
while True:
    connection, peer = listener.accept()
    connection.recv(4096)
    connection.sendall(f"NAME {peer[0]}:{peer[1]}\n".encode())
    connection.close()
"#;

#[test]
fn go_style_servers_in_containers_are_steered() -> Result<()> {
    require!(tools::docker());
    require!(tools::root_and(&["python3", "ldd"]));
    let stage = Stage::with_docker()?;
    let python = server::python_program("python-1", &GO_STYLE.replace("NAME", "python-1"));
    let python = stage.engine().start_container(&python.service("web", "80:8080"))?;
    let named = server::named_with("named-1", &["--listen", "0.0.0.0:8080", "--mptcp"]);
    let named = stage.engine().start_container(&named.service("web", "80:8080"))?;
    stage.daemon.wait_ready("web", 2)?;
    python.said("its protocol to be TCP", |log| log.contains("listens by tcp").then_some(()))?;
    named.said("its protocol to be TCP", |log| log.trim_end().ends_with(" tcp").then_some(()))?;

    let tally = Load::to("127.0.0.1:80".parse()?).threads(2).count(2000).run(stage.host.net())?;
    check::kernel_agrees(&stage.daemon.wait_idle("web")?, &tally)?;
    check::shares_follow("Go-style servers", &tally, &[("python-1", 1), ("named-1", 1)])
}

#[test]
fn only_managed_servers_are_refused_mptcp() -> Result<()> {
    require!(tools::root_and(&["ip"]));
    require!(tools::mptcp());
    let stage = Stage::without_engine()?;
    let managed = Exec::new("web-1", "web", "80:8080", "0.0.0.0:8080").server(&["--mptcp"]).start(&stage)?;
    assert!(managed.process.stdout().trim_end().ends_with(" tcp"), "{}", managed.process.stdout());

    let mut command = stage.host.command(tools::named_server()?)?;
    command.args(["--name", "other-1", "--listen", "0.0.0.0:8090", "--mptcp"]);
    let other = stage.host.start("other-1", &mut command)?;
    wait::until("the other server", || other.stdout().contains("listening").then_some(()))?;
    assert!(other.stdout().trim_end().ends_with(" mptcp"), "{}", other.stdout());
    Ok(())
}
