//! Lets the crate know whether the ones below it have their seeded bugs.

fn main() {
    println!("cargo:rerun-if-env-changed=ANDANTE_MUTANTS");
    if std::env::var_os("ANDANTE_MUTANTS").is_some_and(|on| on == "1") {
        println!("cargo:rustc-cfg=andante_mutants");
    }
}
