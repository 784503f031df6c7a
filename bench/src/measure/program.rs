//! The section `program`: what one run of the kernel program costs, by the number of services and of backends. The program
//! `pod-steer/benches/program.rs` measures, with one process for each size. All run at the same time and are queried in turn.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use pod_steer_tests::{host::Host, netns::NetNs, say::thousands};

use crate::report::{Better, Column, Figure, Row, Section};

use crate::options::Options;

/// What is measured here.
pub const SECTIONS: &[&str] = &["program"];

/// Variable in which `cargo xtask bench` passes the program's path.
const PROGRAM: &str = "POD_STEER_PROGRAM_BENCH";

/// Services, and backends of each.
const SIZES: [(&str, u32, u32, &str); 6] = [
    ("services-1", 1, 2, "services-1"),
    ("services-100", 100, 2, "services-1"),
    ("services-10000", 10_000, 2, "services-1"),
    ("backends-2", 1, 2, "backends-2"),
    ("backends-1000", 1, 1_000, "backends-2"),
    ("backends-10000", 1, 10_000, "backends-2"),
];

const COLUMNS: [(&str, &str); 4] = [
    ("run_ns", "ns/run, repeated"),
    ("other_ns", "ns/run, an unclaimed port"),
    ("load_ns", "ns/run, under load"),
    ("publish_ms", "ms to publish one change"),
];

const ABOUT: &str = "What one run of the kernel program takes, and how long one change of a service's table takes to be in \
    effect. Every service has its port, every backend its listening socket (where the limit on open files is too low for \
    all, some serve two services). \"Repeated\" is BPF_PROG_TEST_RUN: the median of 15 packets of different clients and \
    services, each looked up 100,000 times. An unclaimed port shows the cost for connections that pod-steer does not \
    steer. Both include the cost of the test itself. \"Under load\" is the mean of the \
    kernel's run-time statistics while 10,000 connections come to services chosen at random: nothing is in the caches, and \
    reading the clock twice is part of it.";

/// The process of one size.
struct Size {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    _net: NetNs,
}

impl Size {
    fn start(host: &Host, name: &str, services: u32, backends: u32) -> Result<Self> {
        let program = env::var_os(PROGRAM).with_context(|| format!("{PROGRAM} does not say where the program is"))?;
        let net = NetNs::new()?;
        let mut command = host.command_in(&net, program)?;
        command.arg(format!("/sys/fs/bpf/{name}")).args([services.to_string(), backends.to_string()]);
        command.current_dir(host.dir()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("starting the program of the section")?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            bail!("the program of the section has no pipes");
        };
        let mut size = Self { process, input, output: BufReader::new(output), _net: net };
        ensure!(size.line()? == "ready", "with {services} services of {backends} backends it does not get ready");
        Ok(size)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the program of the section ended without an answer; it says why above");
        Ok(line.trim_end().to_owned())
    }

    fn ask(&mut self) -> Result<BTreeMap<String, f64>> {
        writeln!(self.input)?;
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("reading {line}"))
    }
}

impl Drop for Size {
    fn drop(&mut self) {
        // It uses nothing outside the host, which ends with the section.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Measures it.
pub fn measure(options: &Options) -> Result<Vec<Section>> {
    let rounds = if options.quick { 6 } else { 9 };
    let host = Host::new()?;
    let mut sizes = Vec::new();
    for (name, services, backends, _) in SIZES {
        eprintln!("   program: {services} services, {backends} backends each");
        sizes.push(Size::start(&host, name, services, backends)?);
    }
    let mut found: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for round in 1..=rounds {
        eprintln!("   program: round {round} of {rounds}");
        for (size, (name, ..)) in sizes.iter_mut().zip(SIZES) {
            let answer = size.ask()?;
            for (key, _) in COLUMNS {
                let value = answer.get(key).with_context(|| format!("{name}: no {key}"))?;
                found.entry((name, key)).or_default().push(*value);
            }
        }
    }
    let row = |(name, services, backends, base): (&str, u32, u32, &str)| {
        let figure = |key| Figure::of(found.get(&(name, key))?, found.get(&(base, key)).map(Vec::as_slice));
        let values = COLUMNS.iter().filter_map(|(key, _)| Some(((*key).to_owned(), figure(key)?))).collect();
        let rounds = COLUMNS.iter().filter_map(|(key, _)| Some(((*key).to_owned(), found.get(&(name, *key))?.clone())));
        let rounds = rounds.collect();
        let [of_services, of_backends] = [services, backends].map(|number| thousands(number.into()));
        let title = match services {
            1 => format!("1 service, {of_backends} backends"),
            _ => format!("{of_services} services, {of_backends} backends each"),
        };
        Row { name: name.to_owned(), title, base: Some(base.to_owned()), values, rounds, note: None }
    };
    let column = |(key, title): (&str, &str)| Column { key: key.into(), title: title.into(), better: Better::Lower };
    Ok(vec![Section {
        name: SECTIONS[0].to_owned(),
        title: "The kernel program alone".to_owned(),
        about: ABOUT.to_owned(),
        columns: COLUMNS.map(column).into(),
        rows: SIZES.map(row).into(),
        skipped: Vec::new(),
    }])
}
