//! `pod-steer up` of a service with networks of its own: new containers are attached to all of them, and a changed network stops nothing.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use pod_steer_tests::{
    compose::{Compose, Project, said},
    image::Image,
    load::Load,
    require,
    rollouts::none_lost,
};

/// A version of the only service. `mtu` is that of one of its two networks, `more` is what the file has besides.
fn text(version: &str, mtu: u32, more: &str) -> String {
    let image = Image::Named.name();
    format!(
        "version: '3.8'\nservices:\n  web:\n    image: {image}\n    networks: {{ front: {{ aliases: [shop] }}, back: }}\n    \
         command: [/named-server, --name, {version}, --listen, '0.0.0.0:8080']\n    \
         labels: {{ pod-steer.service: web, pod-steer.version: {version}, pod-steer.ports: '80:8080' }}\n{more}\
         networks:\n  front: {{ driver_opts: {{ com.docker.network.driver.mtu: '{mtu}' }} }}\n  back:\n"
    )
}

/// Compose 2 from 2.31 on stops the containers that are attached to a network which it makes anew.
fn makes_networks_anew(project: &Project) -> Result<bool> {
    let version = project.compose(&["version", "--short"])?;
    let mut numbers =
        version.trim().trim_start_matches('v').split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let numbers = numbers.next().zip(numbers.next());
    Ok(numbers.with_context(|| format!("{version} is no version"))? >= (2, 31))
}

fn networks_are_kept(compose: Compose) -> Result<()> {
    let is_one = compose == Compose::One;
    let project = Project::bridged(compose)?;
    let client = project.stage.host.new_client()?;
    let clients = || Load::to(SocketAddr::from((client.host_ip4, 80))).threads(2);
    project.write_file("compose.yaml", &text("v1", 1_400, ""))?;
    project.up_done(&["web"])?;
    let load = clients().start(&client.ns)?;
    project.write_file("compose.yaml", &text("v2", 1_400, ""))?;
    project.up_done(&[])?;
    let attached = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
    let networks = project.docker(&["inspect", "--format", attached, &project.name("web", 2)])?;
    ensure!(networks.trim() == "shop_back shop_front", "{networks}");

    project.write_file("compose.yaml", &text("v3", 1_300, ""))?;
    let serving = if is_one {
        project.up_refused(&[], 1, "needs to be recreated")?;
        "v2"
    } else if makes_networks_anew(&project)? {
        project.up_refused(&[], 2, "the definition of the network shop_front has changed")?;
        "v2"
    } else {
        project.up_done(&[])?;
        "v3"
    };
    let after = clients().count(20).run(&client.ns)?;
    ensure!(after.answered_by(serving) == 20, "{after}");
    if !is_one {
        // A changed volume would be emptied.
        let with = |version, options: &str| {
            let volumes = format!("    volumes: ['data:/data']\nvolumes: {{ data: {{ {options} }} }}\n");
            project.write_file("compose.yaml", &text(version, 1_400, &volumes))
        };
        with("v4", "")?;
        project.up_done(&[])?;
        let volume = project.docker(&["volume", "inspect", "shop_data"])?;
        with("v5", "driver_opts: { type: tmpfs, device: tmpfs, o: size=1m }")?;
        let done = project.up(&[])?;
        ensure!(done.status.success(), "{done:?}");
        ensure!(!makes_networks_anew(&project)? || said(&done).contains("the volume shop_data is not as"), "{done:?}");
        ensure!(project.docker(&["volume", "inspect", "shop_data"])? == volume, "{volume}");
    }
    none_lost(&load.stop()?)
}

#[test]
fn networks_are_kept_with_compose_1() -> Result<()> {
    require!(Compose::One.is_there());
    networks_are_kept(Compose::One)
}

#[test]
fn networks_are_kept_with_compose_2() -> Result<()> {
    require!(Compose::two().is_there());
    networks_are_kept(Compose::two())
}
