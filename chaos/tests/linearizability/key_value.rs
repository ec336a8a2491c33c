//! Histories of a key-value store whose values grow by appending.

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use andante_chaos::linearizability::wgl::{Call, Specification};

/// One key's value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Value(Rc<str>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    Get(String),
    Put(String),
    Append(String),
}

impl Specification for Value {
    type Operation = Access;
    type Age = ();

    fn apply(&self, access: &Access) -> Option<Self> {
        match access {
            Access::Get(seen) => (**seen == *self.0).then(|| self.clone()),
            Access::Put(text) => Some(Self(text.as_str().into())),
            Access::Append(text) => Some(Self([&*self.0, text].concat().into())),
        }
    }

    fn age(&self) {}

    fn age_max(_: &Access) -> Option<()> {
        None
    }

    fn only_tells(access: &Access) -> bool {
        matches!(access, Access::Get(_))
    }
}

/// Parses a log into the calls of each key; times are the numbers of its lines. A line is `{:process PROCESS, :type
/// :TYPE, :f :FUNCTION, :key "KEY", :value "VALUE"}`, or `:value nil`.
pub(crate) fn parse(log: &str) -> BTreeMap<String, Vec<Call<Access>>> {
    let mut keys: BTreeMap<String, Vec<Call<Access>>> = BTreeMap::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    for (time, line) in (1..).zip(log.lines()) {
        let field = |name: &str| {
            let (_, rest) = line.split_once(name).unwrap_or_else(|| panic!("{name} in {line}"));
            rest.trim_end_matches('}').split(", :").next().unwrap_or_default().trim_matches('"')
        };
        let (process, key, value) = (field(":process "), field(":key "), field(":value ").to_owned());
        let calls = keys.entry(key.to_owned()).or_default();
        if field(":type ") == ":invoke" {
            let operation = match field(":f ") {
                ":get" => Access::Get(value),
                ":put" => Access::Put(value),
                ":append" => Access::Append(value),
                _ => panic!("{line}"),
            };
            open.insert(process, calls.len());
            calls.push(Call { called: time, returned: None, after: None, operation });
        } else {
            let call = &mut calls[open.remove(process).expect("what ends was begun")];
            call.returned = Some(time);
            if let Access::Get(seen) = &mut call.operation {
                *seen = value;
            }
        }
    }
    keys
}
