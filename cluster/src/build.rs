//! Compiles the .proto files with protox: no protoc, no system library.

use std::{env, error::Error};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src/proto");
    // Seeded bugs. By way of the environment, only what has them is built anew.
    println!("cargo:rerun-if-env-changed=ANDANTE_MUTANTS");
    if env::var_os("ANDANTE_MUTANTS").is_some_and(|value| value == "1") {
        println!("cargo:rustc-cfg=andante_mutants");
    }
    let files = protox::compile(
        [
            "andante/cluster/v1/directory.proto",
            "andante/cluster/v1/node.proto",
            "andante/cluster/v1/peer.proto",
            "andante/cluster/v1/raft.proto",
            "andante/cluster/v1/security.proto",
        ],
        ["src/proto"],
    )?;
    // `Bytes`: commands are shared with the log, never copied.
    // What may hold a key or a join secret is formatted by hand, in proto.rs.
    let secret = [
        "AppendCall",
        "AuthorityRecord",
        "Entry",
        "Entry.payload",
        "InstallSnapshotRequest",
        "JoinRequest",
        "NodeCertificateRecord",
        "ProposeRequest",
        "PutSetting",
        "SettingRecord",
    ];
    let secret = secret.map(|name| format!(".andante.cluster.v1.{name}"));
    tonic_prost_build::configure().bytes(".").btree_map(".").skip_debug(secret).compile_fds(files)?;
    Ok(())
}
