//! Compiles the .proto files with protox: no protoc, no system library.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=src/campaign/proto");
    println!("cargo:rerun-if-changed=src/api/proto");
    println!("cargo:rerun-if-changed=src/access/proto");
    println!("cargo:rerun-if-changed=src/node/proto");
    println!("cargo:rerun-if-changed=src/peer/proto");
    // Seeded bugs. By way of the environment, only what has them is built anew.
    println!("cargo:rerun-if-env-changed=ANDANTE_MUTANTS");
    if env::var_os("ANDANTE_MUTANTS").is_some_and(|value| value == "1") {
        println!("cargo:rustc-cfg=andante_mutants");
    }

    let book = protox::compile(["andante/book/v1/book.proto", "andante/book/v1/pacing.proto"], ["src/campaign/proto"])?;
    tonic_prost_build::configure().btree_map(".").build_client(false).build_server(false).compile_fds(book)?;

    // What the directory's settings hold.
    let settings = protox::compile(
        ["andante/access/v1/access.proto", "andante/node/v1/keys.proto", "andante/node/v1/settings.proto"],
        ["src/access/proto", "src/node/proto"],
    )?;
    // Messages with secrets write their own Debug.
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug([".andante.node.v1.TokenKey"])
        .build_client(false)
        .build_server(false)
        .compile_fds(settings)?;

    let api = protox::compile(
        [
            "andante/v1/access.proto",
            "andante/v1/campaign.proto",
            "andante/v1/cluster.proto",
            "andante/v1/outcome.proto",
            "andante/v1/score.proto",
            "andante/v1/server.proto",
        ],
        ["src/api/proto"],
    )?;
    let peer = protox::compile(["andante/peer/v1/peer.proto"], ["src/peer/proto", "src/campaign/proto"])?;
    tonic_prost_build::configure().extern_path(".andante.book.v1", "crate::campaign::proto").compile_fds(peer)?;

    fs::write(out.join("andante_v1.fds"), prost_encode(&api))?;
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug([".andante.v1.CreateTokenResponse", ".andante.v1.CreateJoinTokenResponse"])
        .compile_fds(api)?;
    Ok(())
}

/// The descriptor set for gRPC reflection.
fn prost_encode(fds: &impl protox::prost::Message) -> Vec<u8> {
    fds.encode_to_vec()
}
