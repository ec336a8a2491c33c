//! The `andante` binary.

fn main() {}
