//! `examples/quadlet`: the units that Podman's generator makes of the files run under a real systemd, with a real Podman. Debian 12's has no
//! generator: `cargo xtask quadlet` runs that of Debian 13, and writes the units to `tests/quadlet`.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    host::Host,
    image::Image,
    load::Load,
    podman::Podman,
    process::{output, run},
    report, require,
    rollouts::none_lost,
    systemd::{Systemd, needed},
    tools, wait,
};

const DAEMON: &str = include_str!("../../examples/pod-steer.service");
/// The example and the unit of each version.
const VERSIONS: [(&str, &str, &str); 2] = [
    ("v1", include_str!("../../examples/quadlet/web-v1.container"), include_str!("../quadlet/web-v1.service")),
    ("v2", include_str!("../../examples/quadlet/web-v2.container"), include_str!("../quadlet/web-v2.service")),
];

const SOCKET: &str = "/run/podman/podman.sock";
const TARGET: &str = "127.0.0.1:80";

/// The entries of a section of a unit.
fn section<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    let lines = unit.lines().skip_while(move |line| *line != format!("[{name}]")).skip(1);
    let lines = lines.take_while(|line| !line.starts_with('['));
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[test]
fn the_units_are_those_of_the_examples() {
    for (version, example, unit) in VERSIONS {
        // The generator copies the section that it reads.
        assert_eq!(section(unit, "X-Container"), section(example, "Container"), "{version}: run `cargo xtask quadlet`");
        for name in ["Unit", "Service", "Install"] {
            let made = section(unit, name);
            let missing: Vec<_> = section(example, name).into_iter().filter(|line| !made.contains(line)).collect();
            assert!(missing.is_empty(), "{version}: {missing:?}: run `cargo xtask quadlet`");
        }
        assert!(section(unit, "Service").iter().any(|line| line.starts_with("ExecStart=/usr/bin/podman run ")));
    }
    let renamed = VERSIONS[0].1.replace("v1", "v2");
    assert_eq!(section(&renamed, "Container"), section(VERSIONS[1].1, "Container"), "the two differ by their version");
}

/// Podman 5 removes the file with a container's id together with the container (podman-run(1)). 4.3 leaves it there, and then refuses to
/// overwrite it.
const PODMAN: &str = r#"
[ "$1" = rm ] || exec ITSELF "$@"
ITSELF "$@"
code=$?
for argument; do
    case $argument in --cidfile=*) rm -f "${argument#*=}" ;; esac
done
exit $code
"#;

/// The machine's Podman, with storage and limits of the test's own, in the place where the units have it.
fn install(host: &Host, systemd: &Systemd) -> Result<()> {
    // systemd has another /tmp.
    let dir = Path::new("/run/podman-tests");
    fs::create_dir_all(host.path("/run/podman-tests"))?;
    let podman = Podman::command(host)?;
    let args: Vec<_> = podman.get_args().map(|arg| arg.to_string_lossy()).collect();
    let limits = "[containers]\ndefault_ulimits = ['nofile=1024:1024', 'nproc=1024:1024']\npids_limit = 0\n";
    fs::write(host.path("/run/podman-tests/containers.conf"), limits)?;
    let (conf, real) = (dir.join("containers.conf"), "/usr/local/bin/podman-itself");
    let itself = format!("{real} {}", args.join(" "));
    let script = format!("#!/bin/sh\nexport CONTAINERS_CONF={}\n{}", conf.display(), PODMAN.replace("ITSELF", &itself));
    let wrapper = host.path("/run/podman-tests/podman");
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let found = tools::find("podman").context("podman is not installed")?;
    let mount = format!(
        "touch {real} && mount --bind {} {real} && mount --bind {} /usr/bin/podman",
        found.display(),
        dir.join("podman").display()
    );
    run(systemd.command("sh")?.args(["-c", &mount])).map(drop)
}

fn wait_state(systemd: &Systemd, name: &str, wanted: Option<&str>) -> Result<()> {
    wait::until_ok(&format!("{name} to be {wanted:?}"), || {
        let status = systemd.status()?;
        let service = status.as_ref().and_then(|status| status.service("web"));
        let backend = service.and_then(|service| service.backends.iter().find(|backend| backend.name == name));
        Ok((backend.map(|backend| backend.state.as_str()) == wanted).then_some(()))
    })
    .with_context(|| systemd.journal(&[]).unwrap_or_default())
}

fn all_by(host: &Host, version: &str) -> Result<()> {
    let tally = Load::to(TARGET.parse()?).count(50).run(host.net())?;
    ensure!(tally.answered_by(version) == 50, "{version} serves all: {tally}");
    Ok(())
}

#[test]
fn quadlets_replace_versions() -> Result<()> {
    require!(needed());
    require!(tools::root_and(&["podman", "conmon", "docker", "busybox", "tar"]));
    let host = Host::new()?;
    let engine = format!("[Service]\nEnvironment=POD_STEER_ENGINE=unix://{SOCKET}\n");
    let podman = format!(
        "[Service]\nType=exec\nRuntimeDirectory=podman\nKillMode=process\nEnvironment=DISABLE_HC_SYSTEMD=true\n\
         ExecStart=/usr/bin/podman system service --time 0 unix://{SOCKET}\n"
    );
    let systemd = Systemd::start(
        &host,
        &[
            ("pod-steer.service", DAEMON),
            ("pod-steer.service.d/engine.conf", &engine),
            ("podman.service", &podman),
            ("web-v1.service", VERSIONS[0].2),
            ("web-v2.service", VERSIONS[1].2),
        ],
    )?;
    install(&host, &systemd)?;
    systemd.ctl(&["start", "podman.service", "pod-steer.service"])?;
    let docker = Podman::client(host.path(SOCKET));
    wait::until_ok("podman to answer", || Ok(output(docker.command().arg("version"))?.status.success().then_some(())))
        .with_context(|| systemd.journal(&[]).unwrap_or_default())?;
    for (version, listen) in [("v1", "0.0.0.0:8080"), ("v2", "0.0.0.0:8080")] {
        let tar = Image::Named.tar()?;
        let command = format!(r#"CMD ["/named-server", "--name", "{version}", "--listen", "{listen}"]"#);
        let image = format!("registry.example/web:{version}");
        docker.run(&["import", "--change", &command, path(&tar)?, &image])?;
    }
    systemd.ctl(&["start", "web-v1"])?;
    wait_state(&systemd, "systemd-web-v1", Some("ready"))?;
    let load = Load::to(TARGET.parse()?).threads(2).start(host.net())?;
    all_by(&host, "v1")?;

    // The commands of the example.
    systemd.ctl(&["start", "web-v2"])?;
    let deployed = output(systemd.command("pod-steer")?.args(["deploy", "web", "v2"]))?;
    ensure!(deployed.status.success(), "{deployed:?}\n{}", systemd.journal(&[])?);
    all_by(&host, "v2")?;
    systemd.ctl(&["stop", "web-v1"])?;
    wait_state(&systemd, "systemd-web-v1", None)?;
    all_by(&host, "v2")?;
    let tally = load.stop()?;
    report::figure("quadlets: v1 replaced by v2", &tally);
    none_lost(&tally)?;

    // A container that is killed is started again by its unit.
    docker.run(&["kill", "--signal", "KILL", "systemd-web-v2"])?;
    wait::until_ok("the server to be back", || {
        let tally = Load::to(TARGET.parse()?).count(1).run(host.net())?;
        Ok((tally.answered_by("v2") == 1).then_some(()))
    })
    .with_context(|| systemd.journal(&[]).unwrap_or_default())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not text")
}
