//! Compiles the .proto files with protox: no protoc, no system library.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/proto");
    let files = protox::compile(
        [
            "andante/cluster/v1/directory.proto",
            "andante/cluster/v1/node.proto",
            "andante/cluster/v1/peer.proto",
            "andante/cluster/v1/raft.proto",
        ],
        ["src/proto"],
    )?;
    // `Bytes`: commands are shared with the log, never copied.
    tonic_prost_build::configure().bytes(".").btree_map(".").compile_fds(files)?;
    Ok(())
}
