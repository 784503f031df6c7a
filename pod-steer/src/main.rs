//! The one binary: the daemon and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    pod_steer::cli::main()
}
