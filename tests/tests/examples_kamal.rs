//! `examples/kamal`: the hook, verbatim, over ssh to a server. Kamal itself is not here: the test gives the commands that Kamal 2 gives for a
//! role without its proxy, with the labels and options of the example's deploy.yml, in the same order.

use std::{fs, path::Path, process::Output};

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    image::Image,
    process::{output, run},
    remote::Remote,
    report, require,
    rollouts::none_lost,
    wait, yaml,
};
use serde_json::Value;

const CONFIG: &str = include_str!("../../examples/kamal/deploy.yml");
const HOOK: &str = include_str!("../../examples/kamal/post-app-boot");

/// Serves `/` and `/up`; a container's first process has to handle SIGTERM itself.
const SERVER: &str = "mkdir -p /www; echo NAME >/www/index.html; echo ok >/www/up; busybox httpd -f -p PORT -h /www & \
                      trap 'sleep 1; kill $!; sleep 1; exit 0' TERM; wait $!";

struct Kamal {
    remote: Remote,
    config: Value,
}

impl Kamal {
    fn new() -> Result<Self> {
        // OpenSSH's PATH has /usr/local/bin, where the test has pod-steer. Dropbear's has not.
        let path = "#!/bin/sh\nPATH=/usr/local/bin:/usr/bin:/bin exec sh -c \"$SSH_ORIGINAL_COMMAND\"\n";
        let remote = Remote::new(&[("with-path", path)], r#"restrict,command="/usr/local/bin/with-path""#)?;
        for (version, port) in [("v1", "8080"), ("v2", "8080"), ("deaf", "8081")] {
            let server = SERVER.replace("NAME", version).replace("PORT", port);
            let command = ["/bin/busybox", "sh", "-c", &server];
            remote.image(Image::Busybox, &format!("example/shop:{version}"), &command)?;
        }
        let home = remote.runner_home();
        remote.write(&home.join(".ssh/id_ed25519"), &fs::read_to_string(&remote.sshd.client_key)?)?;
        remote.write(&home.join(".ssh/known_hosts"), &remote.sshd.known_host)?;
        fs::set_permissions(home.join(".ssh/id_ed25519"), std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        remote.write(&home.join("app/.kamal/hooks/post-app-boot"), HOOK)?;
        let kamal = Self { remote, config: yaml::read(CONFIG)? };
        kamal.docker(&["network", "create", "kamal"])?;
        ensure!(kamal.role()["proxy"] == false, "Kamal's proxy is off");
        Ok(kamal)
    }

    fn docker(&self, args: &[&str]) -> Result<String> {
        self.remote.stage.engine().docker().run(args)
    }

    fn role(&self) -> &Value {
        &self.config["servers"]["web"]
    }

    /// What Kamal makes of a mapping: a flag for each entry.
    fn flags(of: &Value, flag: impl Fn(&str, &str) -> Vec<String>) -> Result<Vec<String>> {
        let entries = of.as_object().context("a mapping")?.iter();
        let flags = entries.map(|(key, value)| Ok(flag(key, value.as_str().context("text")?)));
        Ok(flags.collect::<Result<Vec<_>>>()?.concat())
    }

    /// `kamal app boot` on one server, up to the end of the old container. False if the new one did not become healthy: Kamal stops it.
    fn boot(&self, version: &str, old: Option<&str>) -> Result<bool> {
        let (service, image) = (self.config["service"].as_str(), self.config["image"].as_str());
        let (service, image) = (service.context("a service")?, format!("{}:{version}", image.context("an image")?));
        let name = format!("{service}-web-{version}");
        let mut args = ["run", "--detach", "--restart", "unless-stopped", "--name", &name, "--network", "kamal"]
            .map(str::to_owned)
            .to_vec();
        for label in [&format!("service={service}"), "role=web", "destination="] {
            args.extend(["--label".to_owned(), label.to_owned()]);
        }
        args.extend(Self::flags(&self.role()["labels"], |key, value| {
            vec!["--label".into(), format!("{key}={value}")]
        })?);
        args.extend(Self::flags(&self.role()["options"], |key, value| vec![format!("--{key}"), value.to_owned()])?);
        args.push(image);
        run(self.remote.stage.engine().docker().command().args(&args))?;
        let status = "{{if .State.Health}}{{.State.Health.Status}}{{else}}{{.State.Status}}{{end}}";
        let health = || self.docker(&["inspect", "--format", status, &name]);
        // A container that never passes: shorter than Kamal's deploy_timeout.
        let is_healthy = match version {
            "deaf" => {
                wait::until_ok("a failed check", || Ok((self.checks_failed(&name)? > 0).then_some(())))?;
                false
            }
            _ => wait::until_ok("the container to be healthy", || Ok((health()? == "healthy").then_some(true)))?,
        };
        let stop_s = self.config["drain_timeout"].as_u64().context("a time")?.to_string();
        let stops = if is_healthy { old.map(|old| format!("{service}-web-{old}")) } else { Some(name) };
        if let Some(stops) = stops {
            self.docker(&["stop", "-t", &stop_s, &stops])?;
        }
        Ok(is_healthy)
    }

    fn checks_failed(&self, name: &str) -> Result<u64> {
        let count = self.docker(&["inspect", "--format", "{{.State.Health.FailingStreak}}", name])?;
        count.parse().with_context(|| format!("{count:?}"))
    }

    /// Kamal's hook, with its variables.
    fn hook(&self, version: &str, hosts: &str) -> Result<Output> {
        let root = self.remote.runner_home().join("app");
        let service_version = format!("shop@{version}");
        let variables = [
            ("KAMAL_RECORDED_AT", "2026-01-01T00:00:00Z"),
            ("KAMAL_PERFORMER", "runner"),
            ("KAMAL_VERSION", version),
            ("KAMAL_SERVICE_VERSION", &service_version),
            ("KAMAL_SERVICE", "shop"),
            ("KAMAL_HOSTS", hosts),
            ("KAMAL_COMMAND", "deploy"),
        ];
        let shell = format!("cd '{}' && exec .kamal/hooks/post-app-boot", root.display());
        output(self.remote.runner(Path::new("/bin/sh"), &variables)?.args(["-c", &shell]))
    }
}

#[test]
fn a_hook_makes_sure_that_kamals_new_version_serves() -> Result<()> {
    require!(Remote::needed());
    let kamal = Kamal::new()?;
    let remote = &kamal.remote;
    assert!(kamal.boot("v1", None)?);
    let done = kamal.hook("v1", "127.0.0.1")?;
    ensure!(done.status.success(), "{done:?}");
    let load = remote.load()?;
    wait::until("clients", || (load.answered() > 50).then_some(()))?;

    // Kamal stops the old container in the moment in which the new one is healthy.
    assert!(kamal.boot("v2", Some("v1"))?);
    let done = kamal.hook("v2", "127.0.0.1")?;
    ensure!(done.status.success(), "{done:?}\n{}", remote.stage.daemon.log_tail());
    ensure!(String::from_utf8_lossy(&done.stdout).contains("127.0.0.1: pod-steer deploy shop v2"), "{done:?}");
    remote.all_by("v2")?;
    assert_eq!(remote.running()?, ["shop-web-v2"]);

    // A version that does not become healthy: Kamal stops it, and the old one serves.
    assert!(!kamal.boot("deaf", Some("v2"))?);
    remote.all_by("v2")?;
    // The hook fails for a version that does not serve, and for a server that it cannot reach: Kamal goes no further.
    for (version, hosts, code, part) in [
        ("v9", "127.0.0.1", 2, "v9"),
        ("v2", "127.0.0.1,127.0.0.9", 255, "127.0.0.9"),
        ("v2;id", "127.0.0.1", 2, "not a version"),
    ] {
        let done = kamal.hook(version, hosts)?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.code() == Some(code) && said.contains(part), "{version} on {hosts}: {done:?}");
        remote.all_by("v2")?;
    }
    let tally = load.stop()?;
    report::figure("Kamal's commands with the hook: v1 replaced by v2, a broken version put back", &tally);
    none_lost(&tally)
}
