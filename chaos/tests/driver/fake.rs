//! A script in the simulation's place, and the reports it tells.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Command};

use andante::settings::Settings;
use andante_chaos::{
    markers,
    plan::{Injection, Load, Plan},
    report::{FaultCount, Report, Violation},
};
use serde_json::Value;
use tempfile::TempDir;

pub(super) fn plan() -> Plan {
    let load = Load {
        clients: 2,
        campaigns: 5,
        hold_ms: 10_000,
        pause_ms: 50,
        slots: 2,
        deliveries: 1_000,
        hot: 0.1,
        duplicated: 0.1,
        not_used: 0.1,
        late: 0.1,
        lost: 0.1,
        edit_pause_ms: 1_000,
    };
    let fault = |fault: &str, at_ms| Injection { fault: fault.to_owned(), at_ms, for_ms: 800, on: vec![0], amount: 1 };
    Plan {
        seed: 4_242,
        nodes: 3,
        shards: 4,
        settings: Settings::default(),
        latency_ms: (1, 10),
        sync_micros: (100, 1_000),
        blocking_micros: (100, 1_000),
        skews_ms: vec![0; 5],
        load,
        faults_ms: 60_000,
        beyond: false,
        schedule: (1..=12).map(|i| fault(["crash", "slow", "torn"][i as usize % 3], i * 1_000)).collect(),
    }
}

pub(super) fn report() -> Report {
    let counts = |count| FaultCount { begun: count + 1, seen: count };
    Report {
        seed: 4_242,
        violation: None,
        simulated_ms: 90_000,
        faults_ms: 60_000,
        settles: 1_500,
        faults: [("crash".to_owned(), counts(2)), ("slow".to_owned(), counts(1)), ("torn".to_owned(), counts(1))]
            .into(),
        markers: markers::ALL.iter().map(|(name, _)| ((*name).to_owned(), 2)).collect(),
        trace: "00ff".to_owned(),
        events: 1_000,
        mutant_hits: None,
        plan: plan(),
        timeline: (0..60).map(|i| format!("line {i}")).collect(),
    }
}

pub(super) fn broken() -> Report {
    let violation = Violation { oracle: "ledger".to_owned(), what: "billed twice".to_owned(), at_ms: 12_345 };
    Report { violation: Some(violation), ..report() }
}

/// A folder with a simulation that is a script: `$held` and `$broken` are files with reports of seed 4242, `say FILE`
/// prints one for the seed or the plan that is played, `$seed` is the seed, `$plan` the plan's file, `$mutant` the mutant.
pub(super) struct Fake {
    folder: TempDir,
}

impl Fake {
    pub(super) fn new(script: &str) -> Self {
        Self::with(script, &report())
    }

    pub(super) fn with(script: &str, held: &Report) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fake = Self { folder };
        fs::write(fake.path("held"), serde_json::to_string(held).unwrap()).unwrap();
        fs::write(fake.path("broken"), serde_json::to_string(&broken()).unwrap()).unwrap();
        fs::write(fake.path("plan.json"), serde_json::to_string(&plan()).unwrap()).unwrap();
        let prelude = r#"#!/bin/sh
here=$(dirname "$0"); held=$here/held; broken=$here/broken; seed=4242
while [ $# -gt 0 ]; do
    case $1 in
        --seed) seed=$2; shift;;
        --plan) plan=$2; shift;;
        --mutant) mutant=$2; shift;;
        --mutants) echo '[{"id":"a","what":"does a"},{"id":"b","what":"does b"}]'; exit 0;;
    esac
    shift
done
say() {
    if [ -n "$plan" ]; then
        # The report's plan is its one object that begins with a seed.
        sed "s|\"plan\":{.*},\"timeline\"|\"plan\":$(sed 's/[&|]/\\&/g' "$plan"),\"timeline\"|" "$1"
    else
        sed "s/4242/$seed/g" "$1"
    fi
}
"#;
        let program = fake.path("sim");
        fs::write(&program, format!("{prelude}{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        fake
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(super) fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_andante-chaos"));
        command.args(args.split_whitespace()).arg("--sim").arg(self.path("sim")).current_dir(self.folder.path());
        command
    }

    /// Exit code, standard output, standard error.
    pub(super) fn run(&self, args: &str) -> (i32, String, String) {
        let ended = self.command(args).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (ended.status.code().unwrap(), text(ended.stdout), text(ended.stderr))
    }

    pub(super) fn json(&self, args: &str) -> (i32, Value) {
        let (code, stdout, stderr) = self.run(&format!("{args} --json"));
        (code, serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}")))
    }
}
