//! The developers' commands: `cargo xtask setup`, `build`, `demo`, `lint`, `test`, `soak`, `fuzz`, `bench`, `kernels`,
//! `newer-docker`, `quadlet`, `package` and `vm`. Each does its own set-up.
#![forbid(unsafe_code)]

mod arch;
mod archive;
mod bench;
mod build;
mod cmd;
mod compose;
mod debian;
mod debootstrap;
mod demo;
mod fuzz;
mod kernels;
mod newer_docker;
mod package;
mod paths;
mod privilege;
mod qemu;
mod quadlet;
mod schemathesis;
mod setup;
mod test;
mod vm;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
// `bench` has the same output.
pub(crate) use pod_steer_tests::say;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "The commands for developing pod-steer")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the requirements of the build: rust-src, and bpf-linker into target/tools
    Setup,
    /// Set up, then build pod-steer with its kernel programs
    Build {
        /// With optimisations
        #[arg(long)]
        release: bool,
    },
    /// Show several servers on one port, one of them killed and a new version deployed, under load (needs root)
    Demo {
        /// With real containers, in a Docker engine of the demo's own
        #[arg(long)]
        docker: bool,
    },
    /// Check format, lints, documentation, licences and the project's own rules
    Lint,
    /// Check and test everything (needs root)
    Test {
        /// Run the integration tests beside another user of BPF, whose programs, maps and links come and go meanwhile
        #[arg(long)]
        beside_others: bool,
        /// Only tests whose name contains one of these; the checks of `lint` are then left out
        filters: Vec<String>,
    },
    /// Run the long tests at their full size, one after the other: some minutes (needs root)
    Soak {
        /// Only tests whose name contains one of these
        filters: Vec<String>,
    },
    /// Run the fuzz targets: arbitrary labels, configurations, requests, files, answers of engines, kernel events
    Fuzz(fuzz::Options),
    /// Compare with the alternatives: tables, aims, and docs/benchmarks.md (needs root)
    #[command(disable_help_flag = true)]
    Bench {
        /// See `cargo xtask bench --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Run the demo on other Linux kernels, each in a virtual machine; fetches them and QEMU with apt-get
    Kernels {
        /// Kernels and programs of this architecture
        #[arg(long, value_enum, default_value = "x86_64")]
        arch: arch::Arch,
        /// Only these: 5.10, 6.1, 6.12, newest
        kernels: Vec<String>,
    },
    /// Test forwarding with the newest Docker of Debian, which is fetched with apt-get and not installed (needs root)
    NewerDocker,
    /// Write the units that Podman's generator makes of examples/quadlet, for the tests; the generator is fetched with apt-get
    Quadlet,
    /// Make what is installed, below target/package
    #[command(subcommand)]
    Package(package::Package),
    /// Boot a Debian in QEMU with its own kernel, systemd, Docker and this build, and play the demo there (needs root)
    ///
    /// Afterwards its console is a shell to try things in. The disk is as before at the next boot.
    Vm {
        /// Switch off after the demo. Fails if something there has failed
        #[arg(long)]
        check: bool,
        /// Have this machine's processor run it, ten times faster than it is emulated. Where guests of KVM do not start, nothing is printed
        #[arg(long)]
        kvm: bool,
    },
    /// The demo with programs that are built already
    #[command(hide = true)]
    DemoWith(demo::With),
    /// The part of `demo` inside its namespaces
    #[command(hide = true)]
    DemoInside(demo::Inside),
    /// The first process of each machine of `kernels`
    #[command(hide = true)]
    KernelsGuest(kernels::Guest),
    /// What `test` begins early with
    #[command(hide = true)]
    TestAhead,
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup => setup::setup().map(|()| ExitCode::SUCCESS),
        Task::Build { release } => build::pod_steer(release).map(|_| ExitCode::SUCCESS),
        Task::Demo { docker } => privilege::root_or_remedy().unwrap_or_else(|| demo::demo(docker)),
        Task::Lint => test::lint(),
        Task::Test { beside_others, filters } => {
            privilege::root_or_remedy().unwrap_or_else(|| test::test(&filters, beside_others))
        }
        Task::Soak { filters } => privilege::root_or_remedy().unwrap_or_else(|| test::soak(&filters)),
        Task::Fuzz(options) => fuzz::fuzz(&options),
        Task::Bench { options } => bench::bench(&options),
        Task::Kernels { arch, kernels } => kernels::kernels(arch, &kernels),
        Task::NewerDocker => privilege::root_or_remedy().unwrap_or_else(newer_docker::newer_docker),
        Task::Quadlet => quadlet::quadlet(),
        Task::Package(package) => package::package(&package),
        Task::Vm { check, kvm } => privilege::root_or_remedy().unwrap_or_else(|| vm::vm(check, kvm)),
        Task::DemoWith(with) => demo::play_with(&with),
        Task::DemoInside(inside) => demo::inside(&inside),
        Task::KernelsGuest(guest) => kernels::guest(&guest),
        Task::TestAhead => test::ahead(),
    };
    done.unwrap_or_else(|error| {
        eprintln!("{} {error:#}", say::red("error:"));
        ExitCode::FAILURE
    })
}
