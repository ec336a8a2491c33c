//! The `andante` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    andante::cli::main()
}
