//! The `quelea` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    quelea::cli::run()
}
