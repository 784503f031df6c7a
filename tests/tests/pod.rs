//! Containers of one pod (`--network container:ID`) share a port inside its namespace, behind another port.

use anyhow::Result;
use pod_steer_tests::{
    bpf, check,
    container::{Container, Spec},
    daemon::Stage,
    image::Image,
    load::Load,
    netns::NetNs,
    require, server, tools,
};

/// A container that does nothing but hold a network namespace, as a pod's first container does.
fn pod(stage: &Stage, name: &str) -> Result<Container> {
    stage.engine().start_container(&Spec::new(Image::Busybox, name).network("bridge").args(&[
        "/bin/busybox",
        "sleep",
        "1000",
    ]))
}

#[test]
fn a_pod_serves_port_80_by_servers_on_8080() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let pod = pod(&stage, "pod-1")?;
    let weights = [("web-1", 3), ("web-2", 1), ("web-3", 1)];
    let containers = weights
        .iter()
        .map(|(name, weight)| {
            let spec = server::named(name, "0.0.0.0:8080").network(format!("container:{}", pod.id));
            stage.engine().start_container(&spec.service("web", "80:8080").weight(*weight))
        })
        .collect::<Result<Vec<_>>>()?;
    let service = stage.daemon.wait_ready("web", 3)?;
    assert_eq!(service.namespaces.len(), 1, "{:?}", service.namespaces);
    let inside = NetNs::of_pid(pod.pid()?)?;
    let (device, inode) = inside.id()?;
    assert_eq!(service.namespaces[0].id, format!("{device}:{inode}"));

    // From another network namespace, through the host's routing and the bridge. The servers report the peer address that they see.
    let client = stage.host.new_client()?;
    stage.host.net().sysctl("net.ipv4.ip_forward", "1")?;
    let load = Load::to((pod.ip()?, 80).into()).threads(4);
    check::measured_shares("a pod, port 80 to 8080", &stage.daemon, &client.ns, &load, &weights)?;

    // The host's own port 80 is not that of the pod.
    let outside = Load::to("127.0.0.1:80".parse()?).count(10).run(stage.host.net())?;
    assert_eq!(outside.refused(), 10, "{outside}");

    assert_eq!(bpf::attached_to(&inside)?, 1);
    drop(containers);
    stage.daemon.wait_for("the pod to be left with its last backend", |status| {
        let left = status.service("web").is_none_or(|web| web.namespaces.is_empty());
        (left && bpf::attached_to(&inside).ok()? == 0).then_some(())
    })
}

#[test]
fn pods_and_the_host_use_the_same_port_apart() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let pods = [pod(&stage, "pod-1")?, pod(&stage, "pod-2")?];
    let start = |name: &str, service: &str, network: String| {
        let spec = server::named(name, "0.0.0.0:8080").network(network).service(service, "80:8080");
        stage.engine().start_container(&spec)
    };
    let mut containers = vec![start("host-1", "host", "host".into())?, start("host-2", "host", "host".into())?];
    for (pod, service) in pods.iter().zip(["blue", "green"]) {
        for number in 1..=2 {
            containers.push(start(&format!("{service}-{number}"), service, format!("container:{}", pod.id))?);
        }
    }
    for (service, target) in [("host", "127.0.0.1".parse()?), ("blue", pods[0].ip()?), ("green", pods[1].ip()?)] {
        stage.daemon.wait_ready(service, 2)?;
        let tally = Load::to((target, 80).into()).threads(2).count(1000).run(stage.host.net())?;
        let names = [format!("{service}-1"), format!("{service}-2")];
        check::kernel_agrees(&stage.daemon.wait_idle(service)?, &tally)?;
        check::shares_follow(
            &format!("namespace of {service}"),
            &tally,
            &names.each_ref().map(|name| (name.as_str(), 1)),
        )?;
    }
    Ok(())
}

#[test]
fn one_service_in_a_pod_and_on_the_host() -> Result<()> {
    require!(tools::docker());
    let stage = Stage::with_docker()?;
    let pod = pod(&stage, "pod-1")?;
    let spec = |name: &str| server::named(name, "0.0.0.0:8080").service("web", "80:8080");
    let _host = stage.engine().start_container(&spec("web-host"))?;
    let _pod = stage.engine().start_container(&spec("web-pod").network(format!("container:{}", pod.id)))?;
    let service = stage.daemon.wait_ready("web", 2)?;
    assert_eq!(service.namespaces.len(), 2, "{:?}", service.namespaces);
    // A backend serves the namespace that its sockets live in, and no other.
    for (target, name) in [("127.0.0.1".parse()?, "web-host"), (pod.ip()?, "web-pod")] {
        let tally = Load::to((target, 80).into()).count(200).run(stage.host.net())?;
        assert_eq!(tally.answered_by(name), 200, "{tally}");
    }
    Ok(())
}
