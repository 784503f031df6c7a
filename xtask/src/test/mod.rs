//! `cargo xtask test`: every check, then every test. After a failed step the next ones still run, unless they need its result. The last
//! line has the counts.

mod ahead;
mod checks;
mod house;
mod lines;
mod modules;
mod named;
mod pool;
mod runner;
mod tally;
mod tidy;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use pod_steer_tests::neighbour::Neighbour;

use ahead::Ahead;
pub use ahead::work as ahead;

use crate::{bench, build, compose, debian, say, schemathesis, setup};
use tally::Tally;

/// The `lint` task.
pub fn lint() -> Result<ExitCode> {
    setup::ensure()?;
    let mut tally = Tally::from_environment();
    run_checks(&mut tally);
    Ok(tally.close())
}

/// The `test` task.
pub fn test(filters: &[String], beside_others: bool) -> Result<ExitCode> {
    let mut tally = Tally::from_environment();
    if let Err(error) = set_up_and_test(filters, beside_others, &mut tally) {
        println!("{} {error:#}", say::red("error:"));
        tally.fail(&format!("{error}"));
    }
    Ok(tally.close())
}

/// The `soak` task.
pub fn soak(filters: &[String]) -> Result<ExitCode> {
    let mut tally = Tally::from_environment();
    set_up()?;
    let programs = build_programs(true)?;
    timed("long tests", || runner::long_tests(&programs, filters, &mut tally))?;
    Ok(tally.close())
}

fn set_up() -> Result<()> {
    timed("what the build and the tests need", || {
        setup::ensure()?;
        debian::ensure_for_tests()?;
        schemathesis::ensure();
        compose::ensure();
        Ok(())
    })
}

fn build_programs(release: bool) -> Result<runner::Programs> {
    let kind = if release { "release" } else { "development" };
    let pod_steer = timed(&format!("{kind} build of pod-steer"), || build::pod_steer(release))?;
    let named_server = timed("static build of the named test server", build::named_server)?;
    Ok(runner::Programs { pod_steer, named_server, later: None })
}

fn set_up_and_test(filters: &[String], beside_others: bool, tally: &mut Tally) -> Result<()> {
    timed("what every build needs", setup::ensure)?;
    let ahead = filters.is_empty().then(Ahead::start).transpose()?;
    set_up()?;
    if filters.is_empty() {
        run_checks(tally);
    }
    if let Err(error) = timed("unit tests", || runner::unit_tests(filters, tally)) {
        println!("{} {error:#}", say::red("failed:"));
        tally.fail("unit tests");
    }
    // It checks more than a release does, as assertions and overflows, and the unit tests have built what it needs.
    let mut programs = build_programs(false)?;
    drop(ahead);
    programs.later = Some(timed("later releases of pod-steer, to upgrade to", build::later_releases)?);
    let others = beside_others.then(start_others).transpose()?;
    timed("integration tests", || runner::integration_tests(&programs, filters, tally))?;
    if let Some(others) = others {
        say::note(&format!("another user of BPF made and removed its objects {} times meanwhile", others.stop()?));
    }
    if filters.is_empty() {
        run_step("benchmarks: that they run", bench::try_out, tally);
    }
    Ok(())
}

fn start_others() -> Result<Neighbour> {
    build::test_programs()?;
    Neighbour::start()
}

fn run_checks(tally: &mut Tally) {
    for check in checks::ALL {
        run_step(check.name, check.run, tally);
    }
}

fn run_step(name: &str, step: fn() -> Result<()>, tally: &mut Tally) {
    match timed(name, step) {
        Ok(()) => tally.pass(),
        Err(error) => {
            println!("{} {error:#}", say::red("failed:"));
            tally.fail(name);
        }
    }
}

fn timed<T>(name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
    say::heading(name);
    let start = Instant::now();
    let done = step();
    say::note(&format!("took {}", say::elapsed(start.elapsed())));
    done
}
