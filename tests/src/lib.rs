//! Fixtures of pod-steer's integration tests.
//!
//! Everything here is real: engines, containers, servers, clients, kernels. Nothing here knows how pod-steer works; the
//! tests see it as its users do, by its commands, its status and what clients are answered.
//!
//! - [`netns`], [`host`]: network namespaces, and whole hosts (with cgroup v2 and bpffs of their own) to run things in
//! - [`process`]: processes that end with their owner
//! - [`systemd`]: a real systemd in a test host
//! - [`accounts`], [`ssh`], [`remote`]: users of a test host, a real sshd, and a server that is deployed to by both; [`mod@workflow`]: a
//!   workflow of GitHub Actions that does so; [`yaml`]: how it is read
//! - [`engine`], [`podman`], [`container`], [`image`], [`server`]: container engines and what runs in them; [`fake_engine`]: one
//!   that answers as a test wants
//! - [`daemon`], [`orders`], [`status`], [`exec`]: pod-steer itself, and what is ordered of it
//! - [`handover`]: servers that pass their listener on
//! - [`load`], [`clients`], [`stats`]: clients that account for every connection, programs that people use, and how
//!   their counts are judged
//! - [`compose`]: a Compose project, and the programs of that name
//! - [`bridged`]: backends behind a bridge; [`fixed_ports`], [`flood`]: clients with few ports, and senders that never answer; [`tunnel`]:
//!   devices without Ethernet headers
//! - [`listeners`]: servers that tell by which of their listeners they answer
//! - [`asked`]: connections of backends
//! - [`check`], [`rollouts`]: what many tests assert, and what those of rollouts share
//! - [`bpf`], [`cgroup2`]: what the kernel has of a daemon; [`programs`]: BPF programs of the tests; [`sk_lookup`]: another program
//!   like ours; [`neighbour`]: another user of BPF on the machine; [`mod@unit`]: a cgroup with a limit
//! - [`roles`]: unprivileged users of the API
//! - [`upgrades`]: releases that take over from each other
//! - [`mod@pty`], [`screenshot`]: programs on a terminal of their own, and pictures of it
//! - [`mod@page`], [`http`], [`browser`]: the web page, requests to it, and a real Chromium
//! - [`refusals`]: system calls that fail for one process
//! - [`scale`]: how much long tests do
//! - [`report`], [`wait`], [`tools`]: skips and figures, waiting, what must be installed; [`say`]: the output of xtask and bench

pub mod accounts;
pub mod asked;
pub mod bpf;
pub mod bridged;
pub mod browser;
pub mod cgroup2;
pub mod check;
pub mod clients;
pub mod compose;
pub mod container;
pub mod daemon;
pub mod engine;
pub mod exec;
pub mod fake_engine;
pub mod fixed_ports;
pub mod flood;
pub mod handover;
pub mod held;
pub mod host;
pub mod http;
pub mod image;
pub mod journal;
pub mod listeners;
pub mod load;
pub mod neighbour;
pub mod netns;
pub mod orders;
pub mod page;
pub mod podman;
pub mod process;
pub mod programs;
pub mod pty;
pub mod refusals;
pub mod remote;
pub mod report;
pub mod roles;
pub mod rollouts;
pub mod say;
pub mod scale;
pub mod screenshot;
pub mod segments;
pub mod server;
pub mod settings;
pub mod sk_lookup;
pub mod ssh;
pub mod stats;
pub mod status;
pub mod systemd;
pub mod tools;
pub mod trace;
pub mod tunnel;
pub mod unit;
pub mod upgrades;
pub mod wait;
pub mod workflow;
pub mod yaml;
