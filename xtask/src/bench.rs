//! `cargo xtask bench`: builds and installs the requirements of the crate `bench`, and runs it. That crate has the options, measures and
//! judges.

use std::env;
use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cmd::command;
use crate::{build, debian, privilege, say, setup};

/// The `bench` task.
pub fn bench(options: &[OsString]) -> Result<ExitCode> {
    run(options, true)
}

fn run(options: &[OsString], release: bool) -> Result<ExitCode> {
    let (program, dir) = (build::bench(release)?, env::current_dir()?);
    // Relative paths in the options are relative to the caller's directory.
    let with_options = || {
        let mut bench = command(&program);
        bench.current_dir(&dir).args(options);
        bench
    };
    // Report a wrong option before building for minutes.
    let needs = with_options().arg("--needs").stderr(Stdio::inherit()).output().context("cannot start bench")?;
    let text = String::from_utf8_lossy(&needs.stdout);
    let mut bench = with_options();
    match text.trim() {
        _ if !needs.status.success() => return Ok(exit_code(needs.status.code())),
        "nothing" => {}
        needed @ ("program" | "everything") => {
            if let Some(remedy) = privilege::root_or_remedy() {
                return remedy;
            }
            set_up(&mut bench, needed, release)?;
        }
        help => {
            println!("{help}");
            return Ok(ExitCode::SUCCESS);
        }
    }
    Ok(exit_code(bench.status().context("cannot start bench")?.code()))
}

/// The part of a quick run without further requirements than the tests, so that `test` notices if measuring fails. The figures are not
/// judged, so development builds do.
pub fn try_out() -> Result<()> {
    let done = run(&["--quick", "--only", "program"].map(OsString::from), false)?;
    ensure!(done == ExitCode::SUCCESS, "it failed (see above)");
    Ok(())
}

fn set_up(bench: &mut Command, needed: &str, release: bool) -> Result<()> {
    say::heading("setting up and building");
    setup::ensure()?;
    match needed {
        "program" => debian::ensure_for_program_bench()?,
        "everything" => debian::ensure_for_bench()?,
        other => bail!("bench needs `{other}`, which xtask does not know"),
    }
    bench.env("POD_STEER_BIN", build::pod_steer(release)?).env("POD_STEER_TESTS_LOG_LEVEL", "info");
    bench
        .env("POD_STEER_NAMED_SERVER", build::named_server()?)
        .env("POD_STEER_PROGRAM_BENCH", build::program_bench(release)?);
    Ok(())
}

/// A process that was ended by a signal has no exit code.
fn exit_code(code: Option<i32>) -> ExitCode {
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
