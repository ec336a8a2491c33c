//! The core is pure: each ban with what to use instead.

use std::{fs, path::Path};

/// Banned text and its replacement.
const BANS: &[(&str, &str)] = &[
    ("std::time", "take `now_ms` as an argument"),
    ("Instant", "take `now_ms` as an argument"),
    ("SystemTime", "take `now_ms` as an argument"),
    ("tokio", "decide in a plain function; let `actor/` or `node/` wait"),
    ("async ", "decide in a plain function; let `actor/` or `node/` wait"),
    (".await", "decide in a plain function; let `actor/` or `node/` wait"),
    ("rand::", "take the random number, or a seed, as an argument"),
    ("RandomState", "use BTreeMap, or a HashMap with a fixed hasher that is never walked"),
    ("HashSet", "use BTreeSet"),
    ("println!", "return a value; callers print"),
    ("eprintln!", "return a value; callers print"),
    ("tracing::", "return a value; callers log"),
    ("static ", "pass the state as an argument"),
    ("thread_local", "pass the state as an argument"),
    ("OnceLock", "pass the state as an argument"),
    ("LazyLock", "pass the state as an argument"),
    ("std::thread", "let the caller run it where it likes"),
    ("std::fs", "take bytes as an argument"),
    ("std::net", "take bytes as an argument"),
    ("std::env", "take the setting as an argument"),
    ("std::io", "take bytes as an argument"),
    ("std::process", "return an error, or panic on a broken invariant"),
];

/// A HashMap gives its entries in an order of its own: it may be asked, never walked.
const WALKS: &[&str] =
    &[".iter()", ".iter_mut()", ".keys()", ".values()", ".values_mut()", ".drain(", ".retain(", ".into_iter()"];

#[test]
fn the_core_uses_nothing_impure() {
    let mut sources = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/campaign"), &mut sources);
    assert!(sources.len() > 10, "the core has moved: {} files", sources.len());
    let mut found = Vec::new();
    for (path, text) in &sources {
        for (line, code) in code_of(text) {
            for (ban, instead) in BANS {
                if mentions(code, ban) {
                    found.push(format!("{path}:{line}: {ban}: {instead}"));
                }
            }
            if let Some(map) = hash_map_field(code) {
                for (at, walk) in
                    code_of(text).filter(|(_, c)| WALKS.iter().any(|walk| c.contains(&format!("{map}{walk}"))))
                {
                    found.push(format!("{path}:{at}: {}: walk a BTreeMap instead", walk.trim()));
                }
                for (at, walk) in code_of(text).filter(|(_, c)| c.contains("for ") && c.contains(&format!("{map} {{")))
                {
                    found.push(format!("{path}:{at}: {}: walk a BTreeMap instead", walk.trim()));
                }
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_search_finds_what_is_banned() {
    for (ban, _) in BANS {
        assert!(mentions(&format!("    let x = {ban} y;"), ban), "{ban}");
    }
    assert!(!mentions("    key: &'static str,", "static "));
    assert_eq!(hash_map_field("    by_key: HashMap<u64, u32>,"), Some("by_key"));
    assert_eq!(hash_map_field("use std::collections::{BTreeMap, HashMap};"), None);
    assert_eq!(code_of("// std::fs\nlet a;\n#[cfg(test)]\nmod tests { std::fs }").count(), 1);
}

/// Lines of code, without comments and unit tests (which stand last in a file).
fn code_of(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .map(|(at, line)| (at + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether code mentions the text as a word of its own.
fn mentions(code: &str, text: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '\'';
    code.match_indices(text).any(|(at, _)| !text.starts_with(is_word) || !code[..at].ends_with(is_word))
}

/// The name of the field or variable that a line declares as a HashMap.
fn hash_map_field(code: &str) -> Option<&str> {
    let (name, kind) = code.split_once(':')?;
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let name = name.trim().trim_start_matches("pub ").trim_start_matches("let ").trim_start_matches("mut ");
    (kind.contains("HashMap<") && !name.is_empty() && name.chars().all(is_name)).then_some(name)
}

fn read(folder: &Path, sources: &mut Vec<(String, String)>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            read(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}
