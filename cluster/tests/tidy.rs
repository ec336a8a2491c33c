//! The seams hold: time, threads, sockets and randomness come from `cluster/src/env/` alone.
//!
//! A simulated node must not notice that it is simulated. One forgotten call would make runs differ, and be found
//! weeks later. This reads the sources; test code is free to do what it likes.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Something that only `cluster/src/env/` may do.
struct Ban {
    name: &'static str,
    /// Paths that may not be imported, with all below them.
    imports: &'static [&'static str],
    /// What may not stand in code.
    code: &'static [&'static str],
    instead: &'static str,
}

const BANS: &[Ban] = &[
    Ban {
        name: "monotonic time",
        imports: &["std::time::Instant"],
        code: &["std::time::Instant"],
        instead: "measure with `Env::clock.monotonic_micros()`, wait and set deadlines with `tokio::time` \
                  (`tokio::time::Instant` is the simulation's own)",
    },
    Ban {
        name: "wall clock",
        imports: &["std::time::SystemTime", "jiff::Zoned", "tokio::time::SystemTime"],
        code: &["SystemTime::now", "Timestamp::now", "Zoned::now"],
        instead: "ask `Env::clock.now_ms()`",
    },
    Ban {
        name: "threads",
        imports: &["std::thread::spawn", "std::thread::Builder", "std::thread::scope", "tokio::task::spawn_blocking"],
        code: &["thread::spawn(", "thread::Builder", "thread::scope(", "thread::sleep(", "spawn_blocking("],
        instead: "use `Env::blocking`",
    },
    Ban {
        name: "sockets",
        imports: &["std::net::TcpStream", "std::net::TcpListener", "std::net::UdpSocket", "tokio::net"],
        code: &["TcpStream::", "TcpListener::", "UdpSocket::", "tokio::net::"],
        instead: "use `Env::network`",
    },
    Ban {
        name: "randomness",
        imports: &["rand", "getrandom"],
        code: &["rand::", "getrandom::", "SysRng", "RandomState::new("],
        instead: "ask `Env::rng`",
    },
];

/// Who may nevertheless, and why.
const ALLOWED: &[(&str, &str, &str)] = &[
    ("cluster/src/env/", "monotonic time", "the seam"),
    ("cluster/src/env/", "wall clock", "the seam"),
    ("cluster/src/env/", "threads", "the seam"),
    ("cluster/src/env/", "sockets", "the seam"),
    ("cluster/src/env/", "randomness", "the seam"),
    (
        "cluster/src/storage/state_sled/",
        "threads",
        "sled lets go of its file on a thread of its own; on a blocking thread, and never in the simulation, this waits",
    ),
    ("src/cli/", "threads", "the command line is no node"),
    ("src/replay/", "threads", "a client"),
    ("src/demo/", "threads", "a client"),
    ("src/demo/", "randomness", "a client: its listening traffic is synthetic, from a seeded generator"),
];

#[test]
fn only_the_environment_touches_time_threads_sockets_and_randomness() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let mut files = Vec::new();
    for folder in ["cluster/src", "src"] {
        sources(&root.join(folder), &mut files);
    }
    assert!(files.len() > 20, "the sources moved: {files:?}");
    let mut found = Vec::new();
    let mut used = vec![false; ALLOWED.len()];
    for file in files {
        let name = file.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
        let code = without_tests_and_comments(&fs::read_to_string(&file).expect("a source is readable"));
        for (ban, what) in offences(&code) {
            match ALLOWED.iter().position(|(place, name_of_ban, _)| name.starts_with(place) && *name_of_ban == ban.name)
            {
                Some(allowed) => used[allowed] = true,
                None => found.push(format!("{name}: `{what}` ({}): {}", ban.name, ban.instead)),
            }
        }
    }
    for ((place, ban, _), used) in ALLOWED.iter().zip(used) {
        if !used {
            found.push(format!("{place} no longer needs leave for {ban}: strike it from the list"));
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn imports_are_found_however_they_are_written() {
    let code = "use std::{\n    io,\n    time::{Duration, Instant as Now},\n};\nuse tokio::time::Instant;\n";
    let mut paths = Vec::new();
    imports(code, &mut paths);
    assert_eq!(paths, ["std::io", "std::time::Duration", "std::time::Instant as Now", "tokio::time::Instant"]);
    assert_eq!(offences(code).iter().map(|(ban, _)| ban.name).collect::<Vec<_>>(), ["monotonic time"]);
    assert!(offences("// thread::spawn(\n").len() == 1, "comments are taken out before");
    let code = "fn f() {} // thread::spawn(\n/// rand::\n#[cfg(test)]\nmod tests { use rand; }";
    assert!(offences(&without_tests_and_comments(code)).is_empty());
    assert_eq!(offences("use operand::x; let y = std::thread::spawn(f);").len(), 1);
}

fn sources(folder: &Path, to: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() {
            if name != "tests" {
                sources(&path, to);
            }
        } else if path.extension().is_some_and(|ext| ext == "rs")
            && !matches!(name, "tests" | "build")
            && !name.ends_with("_tests")
        {
            to.push(path);
        }
    }
}

/// Test modules stand at the end of a file here.
fn without_tests_and_comments(code: &str) -> String {
    let end = code.find("#[cfg(test)]\nmod ").unwrap_or(code.len());
    code[..end].lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn offences(code: &str) -> Vec<(&'static Ban, String)> {
    let mut paths = Vec::new();
    imports(code, &mut paths);
    let mut found = Vec::new();
    for ban in BANS {
        let import = paths.iter().find(|path| ban.imports.iter().any(|banned| below(path, banned)));
        let text = ban.code.iter().find(|banned| stands_in(code, banned));
        if let Some(what) = import.cloned().or(text.map(|text| (*text).to_owned())) {
            found.push((ban, what));
        }
    }
    found
}

fn below(path: &str, banned: &str) -> bool {
    path.strip_prefix(banned).is_some_and(|rest| rest.is_empty() || rest.starts_with("::") || rest.starts_with(" as "))
}

/// Whether `what` stands in the code as words of its own.
fn stands_in(code: &str, what: &str) -> bool {
    code.match_indices(what).any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

/// The full paths of all imports.
fn imports(code: &str, to: &mut Vec<String>) {
    let mut statement: Option<String> = None;
    for line in code.lines() {
        let line = line.trim();
        let begun =
            ["use ", "pub use ", "pub(crate) use ", "pub(super) use "].iter().find_map(|u| line.strip_prefix(u));
        match (&mut statement, begun) {
            (None, Some(rest)) => statement = Some(rest.to_owned()),
            (Some(so_far), _) => {
                so_far.push(' ');
                so_far.push_str(line);
            }
            (None, None) => continue,
        }
        if let Some((tree, _)) = statement.as_deref().and_then(|s| s.split_once(';')) {
            expand("", tree.trim(), to);
            statement = None;
        }
    }
}

fn expand(prefix: &str, tree: &str, to: &mut Vec<String>) {
    let Some((head, rest)) = tree.split_once('{') else {
        to.push(format!("{prefix}{tree}"));
        return;
    };
    let prefix = format!("{prefix}{}", head.trim());
    let (mut depth, mut start) = (0, 0);
    let inner = rest.strip_suffix('}').unwrap_or(rest);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&prefix, inner[start..at].trim(), to);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        expand(&prefix, inner[start..].trim(), to);
    }
}
