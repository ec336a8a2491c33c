//! The `andante-chaos` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    andante_chaos::driver::main()
}
