//! Puts a configuration together: defaults, file, environment, flags.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use config::{Environment, File, FileFormat, Source};
use serde_json::Value;

use super::{Config, ConfigError};

/// Environment variables start with it; below it, `__` separates a section from its field.
const PREFIX: &str = "ANDANTE";
/// Variables that belong to the command line, not to the configuration.
const OF_THE_COMMAND_LINE: [&str; 6] = ["addr", "config", "token", "token_file", "ca", "feature_level"];

/// A value given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// Key as in the file, e.g. `settings.tick_ms`.
    pub key: String,
    /// Value as typed.
    pub value: String,
    /// The flag, for the explanation.
    pub flag: String,
}

/// A configuration and where its values come from. Not validated yet.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Where each value that is no default came from.
    pub(super) origins: BTreeMap<String, String>,
    /// What was ignored, in words.
    pub warnings: Vec<String>,
}

impl Loaded {
    /// The keys that were set, even if to their defaults.
    pub fn set_keys(&self) -> BTreeSet<String> {
        self.origins.keys().cloned().collect()
    }
}

/// Loads a configuration: flags win over environment variables, these over the file, and that over the defaults.
///
/// An unknown key in the file or in a flag is an error. An unknown variable is a warning: container platforms make
/// variables of their own for a service named `andante`.
pub fn load(file: Option<&Path>, environment: HashMap<String, String>, flags: &[Flag]) -> Result<Loaded, ConfigError> {
    let known = keys_of(&Config::default());
    let mut origins = BTreeMap::new();
    let mut warnings = Vec::new();
    let mut builder = config::Config::builder();

    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError::Unreadable(format!("configuration file {}: {e}", path.display())))?;
        let source = File::from_str(&text, FileFormat::Toml);
        let values = source
            .collect()
            .map_err(|e| ConfigError::Unreadable(format!("configuration file {}: {e}", path.display())))?;
        for (key, value) in &values {
            let keys = match value.clone().into_table() {
                Ok(table) => table.keys().map(|field| format!("{key}.{field}")).collect(),
                Err(_) => vec![key.clone()],
            };
            for key in keys {
                if !known.contains_key(&key) {
                    return Err(unknown(&key, &format!("configuration file {}", path.display()), &known));
                }
                origins.insert(key, format!("file {}", path.display()));
            }
        }
        builder = builder.add_source(source);
    }

    let environment = Environment::with_prefix(PREFIX)
        .prefix_separator("_")
        .separator("__")
        .ignore_empty(true)
        .source(Some(environment.into_iter().collect()))
        .collect()
        .map_err(|e| ConfigError::Unreadable(format!("environment: {e}")))?;
    let mut sorted: Vec<_> = environment.into_iter().collect();
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (key, value) in sorted {
        let variable = format!("{PREFIX}_{}", key.replace('.', "__").to_uppercase());
        if OF_THE_COMMAND_LINE.contains(&key.as_str()) {
            continue;
        }
        if !known.contains_key(&key) {
            warnings.push(format!("the environment variable {variable} is no setting of Andante; ignored"));
            continue;
        }
        origins.insert(key.clone(), format!("environment {variable}"));
        builder = builder.set_override(&key, value).map_err(|e| unreadable(&variable, &e))?;
    }

    for Flag { key, value, flag } in flags {
        if !known.contains_key(key) {
            return Err(unknown(key, flag, &known));
        }
        origins.insert(key.clone(), format!("flag {flag}"));
        builder = builder.set_override(key, value.as_str()).map_err(|e| unreadable(flag, &e))?;
    }

    let config = builder.build().map_err(|e| ConfigError::Unreadable(e.to_string()))?;
    let config = config.try_deserialize::<Config>().map_err(|e| ConfigError::Unreadable(e.to_string()))?;
    Ok(Loaded { config, origins, warnings })
}

/// All keys of a configuration with their values, sections joined by dots.
pub(super) fn keys_of(config: &Config) -> BTreeMap<String, Value> {
    let mut keys = BTreeMap::new();
    // The struct has only plain fields: serialising it can't fail.
    let value = serde_json::to_value(config).expect("a configuration can't be serialised");
    if let Value::Object(fields) = value {
        for (key, value) in fields {
            match value {
                Value::Object(section) => keys.extend(section.into_iter().map(|(f, v)| (format!("{key}.{f}"), v))),
                value => drop(keys.insert(key, value)),
            }
        }
    }
    keys
}

fn unreadable(what: &str, error: &config::ConfigError) -> ConfigError {
    ConfigError::Unreadable(format!("{what}: {error}"))
}

fn unknown(key: &str, place: &str, known: &BTreeMap<String, Value>) -> ConfigError {
    let keys: Vec<&str> = known.keys().map(String::as_str).collect();
    ConfigError::Unreadable(format!("{place}: unknown key `{key}`; there are {}", keys.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn flag(key: &str, value: &str) -> Flag {
        Flag { key: key.to_owned(), value: value.to_owned(), flag: format!("--{key}") }
    }

    fn environment(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn without_anything_the_defaults_hold() {
        let loaded = load(None, HashMap::new(), &[]).unwrap();
        assert_eq!(loaded.config, Config::default());
        assert!(loaded.origins.is_empty());
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file =
            file("drain_ms = 1\nshards = 4\nmax_connections = 7\n[settings]\ntick_ms = 50\npromoted_share = 0.5\n");
        let environment = environment(&[("ANDANTE_DRAIN_MS", "2"), ("ANDANTE_SETTINGS__TICK_MS", "200")]);
        let loaded = load(Some(file.path()), environment, &[flag("drain_ms", "3")]).unwrap();
        assert_eq!(loaded.config.drain_ms, 3);
        assert_eq!(loaded.config.settings.tick_ms, 200);
        assert_eq!(loaded.config.settings.promoted_share, 0.5);
        assert_eq!(loaded.config.shards, Some(4));
        assert_eq!(loaded.config.max_connections, 7);
        assert_eq!(loaded.origins["drain_ms"], "flag --drain_ms");
        assert_eq!(loaded.origins["settings.tick_ms"], "environment ANDANTE_SETTINGS__TICK_MS");
        assert_eq!(loaded.origins["shards"], format!("file {}", file.path().display()));
        let set = ["drain_ms", "max_connections", "settings.promoted_share", "settings.tick_ms", "shards"];
        assert!(loaded.set_keys().iter().eq(&set), "{:?}", loaded.set_keys());
    }

    #[test]
    fn every_type_can_come_from_the_environment() {
        let loaded = load(
            None,
            environment(&[
                ("ANDANTE_GRPC", "127.0.0.1:9"),
                ("ANDANTE_DATA_DIR", "123"),
                ("ANDANTE_INSECURE", "true"),
                ("ANDANTE_SHARDS", "3"),
                ("ANDANTE_LOG_FORMAT", "json"),
                ("ANDANTE_OTLP_ENDPOINT", "http://h:1"),
                ("ANDANTE_SETTINGS__PROMOTED_SHARE", "0.25"),
            ]),
            &[],
        )
        .unwrap();
        assert_eq!(loaded.config.grpc.port(), 9);
        assert_eq!(loaded.config.data_dir, Path::new("123"));
        assert!(loaded.config.insecure);
        assert_eq!(loaded.config.shards, Some(3));
        assert_eq!(loaded.config.log_format, super::super::LogFormat::Json);
        assert_eq!(loaded.config.otlp_endpoint.as_deref(), Some("http://h:1"));
        assert_eq!(loaded.config.settings.promoted_share, 0.25);
    }

    #[test]
    fn an_unknown_key_in_the_file_is_an_error_that_names_it_and_the_known_ones() {
        for text in ["grcp = \"127.0.0.1:1\"\n", "[settings]\ntick = 3\n"] {
            let file = file(text);
            let error = load(Some(file.path()), HashMap::new(), &[]).unwrap_err().to_string();
            assert!(error.contains("unknown key `") && error.contains("settings.tick_ms"), "{error}");
        }
    }

    #[test]
    fn an_unknown_variable_is_ignored_with_a_warning() {
        let variables =
            environment(&[("ANDANTE_SERVICE_HOST", "10.0.0.1"), ("ANDANTE_ADDR", "http://x"), ("HOME", "/")]);
        let loaded = load(None, variables, &[]).unwrap();
        assert_eq!(
            loaded.warnings,
            ["the environment variable ANDANTE_SERVICE_HOST is no setting of Andante; ignored"]
        );
    }

    #[test]
    fn an_unreadable_value_names_its_key() {
        let error = load(None, environment(&[("ANDANTE_SHARDS", "many")]), &[]).unwrap_err().to_string();
        assert!(error.contains("shards"), "{error}");
        let error = load(None, HashMap::new(), &[flag("grpc", "localhost")]).unwrap_err().to_string();
        assert!(error.contains("grpc"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load(Some(Path::new("/nowhere.toml")), HashMap::new(), &[]).unwrap_err().to_string();
        assert!(error.contains("/nowhere.toml"), "{error}");
    }
}
