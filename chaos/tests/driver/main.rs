//! The driver with a script in the simulation's place: what it plays, tells and writes, and its exit codes.

mod fake;

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use andante_chaos::{plan::Plan, report::Report};

use self::fake::{Fake, report};

/// Something that should happen soon takes no longer than this.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_sweep_sums_up_what_its_seeds_say() {
    let fake = Fake::new("say $held");
    let (code, sums) = fake.json("sim --seeds 1..6 --jobs 3 --need-markers --need-counting 5");
    assert_eq!(code, 0, "{sums}");
    assert_eq!((sums["run"].clone(), sums["held"].clone(), sums["counting"].clone()), (5.into(), 5.into(), 5.into()));
    assert_eq!((sums["simulated_ms"].clone(), sums["settles"].clone()), (450_000.into(), 7_500.into()));
    assert_eq!(sums["faults"]["crash"], serde_json::json!({"begun": 15, "seen": 10}));
    assert_eq!(sums["markers"]["torn-tail-cut"], 10);
    let (code, text, _) = fake.run("sim --seeds 1..6");
    assert_eq!(code, 0);
    assert!(text.contains("runs       5, of which 5 held, of which 5 count"), "{text}");
    assert!(text.ends_with("verdict    all held\n"), "{text}");
}

#[test]
fn a_sweep_fails_if_a_situation_never_came_up_or_too_few_seeds_count() {
    let mut held = report();
    held.markers.insert("torn-tail-cut".to_owned(), 0);
    held.settles = 999;
    let fake = Fake::with("say $held", &held);
    let (code, sums) = fake.json("sim --seeds 1..3");
    assert_eq!(code, 0, "{sums}");
    assert_eq!(sums["never_seen"], serde_json::json!(["torn-tail-cut"]));
    assert_eq!(sums["not_counting"][1]["why"], "999 acknowledged settles, not 1000");
    let (code, text, _) = fake.run("sim --seeds 1..3 --need-markers --need-counting 2");
    assert_eq!(code, 1);
    assert!(text.ends_with("verdict    never seen: torn-tail-cut; 0 seeds count, 2 are needed\n"), "{text}");
}

#[test]
fn the_first_seed_that_breaks_a_promise_ends_a_sweep_and_is_written_down() {
    // Seed 3 takes longer than 4, which breaks the promise too.
    let fake = Fake::new("[ $seed = 3 ] && sleep 0.5; [ $seed -ge 3 ] && { say $broken; exit 1; }; say $held");
    let (code, text, told) = fake.run("sim --seeds 1..100 --jobs 4");
    assert_eq!(code, 1);
    assert!(text.contains("a promise was broken by seed 3"), "{text}");
    for line in ["seed      3", "broken    billed twice", "oracle    ledger, at 12.345 s", "line 59", "commit    "] {
        assert!(told.contains(line), "{line} in {told}");
    }
    assert!(!told.contains("line 19\n") && told.contains("line 20\n"), "the last 40 lines: {told}");
    assert!(told.contains("replay --plan chaos-failures/seed-3/plan.json"), "{told}");
    let folder = fake.path("chaos-failures/seed-3");
    let read = |name| fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(Plan::read(&folder.join("plan.json")).unwrap().seed, 3);
    assert_eq!(serde_json::from_str::<Report>(&read("report.json")).unwrap().seed, 3);
    assert_eq!(read("timeline.txt").lines().count(), 60);
    assert!(!fake.path("chaos-failures/seed-4").exists());

    let (code, sums) = fake.json("sim --seeds 1..6 --keep-going --out elsewhere");
    assert_eq!((code, sums["violations"].as_array().unwrap().len()), (1, 3));
    assert!(fake.path("elsewhere/seed-5/plan.json").exists());
}

#[test]
fn a_harness_that_breaks_is_told_apart_from_a_broken_promise() {
    let scripts = [
        ("echo 'panicked at oh' >&2; exit 101", "panicked at oh", "the simulation broke"),
        ("kill -9 $$", "", "the simulation broke (signal: 9"),
        ("echo nonsense", "", "the simulation printed no report that"),
        ("say $broken", "", "contradicts its exit"),
        ("say $held; sleep 60", "", "hang: no end after 1 s"),
    ];
    for (script, said, why) in scripts {
        let fake = Fake::new(script);
        let (code, sums) = fake.json("sim --seeds 7..9 --wall-limit-s 1");
        assert_eq!((code, sums["run"].clone()), (3, 0.into()), "{script}: {sums}");
        assert!(sums["harness_failures"][0]["why"].as_str().unwrap().contains(why), "{script}: {sums}");
        let stderr = fs::read_to_string(fake.path("chaos-failures/seed-7/stderr.txt")).unwrap();
        assert!(stderr.contains(said), "{script}: {stderr}");
    }
}

#[test]
fn wrong_usage_has_a_code_of_its_own() {
    let fake = Fake::new("echo 'no such mutant' >&2; exit 2");
    let table = [
        ("sim --seeds 5", "seeds are a range"),
        ("sim --seeds 1..", "seeds without an end need --minutes"),
        ("sim --seeds 1..3 --mutant x", "no such mutant"),
        ("gate --seeds 1..", "the gate's seeds need an end"),
        ("replay", "required"),
        ("replay --seed 1 --plan p", "cannot be used with"),
        ("mutants --only a,x", "x is no mutant; there are a, b"),
        ("mutants --readme held", "there is no"),
    ];
    for (args, why) in table {
        let (code, _, told) = fake.run(args);
        assert_eq!(code, 2, "{args}: {told}");
        assert!(told.contains(why), "{args}: {told}");
    }
}

#[test]
fn the_gate_names_the_seed_and_what_differs() {
    let fake = Fake::new("say $held");
    let (code, gate) = fake.json("gate --seeds 1..4 --jobs 2");
    assert_eq!((code, gate["seeds"].clone(), gate["events"].clone()), (0, 3.into(), 3_000.into()));

    let once =
        "[ $seed = 2 ] && mkdir $here/once 2>/dev/null && { say $held | sed 's/00ff/00fe/'; exit 0; }; say $held";
    let (code, text, _) = Fake::new(once).run("gate --seeds 1..4");
    assert_eq!(code, 1);
    assert!(text.starts_with("seed 2 differs:\n  trace: \"00f"), "{text}");
    assert!(text.ends_with("2 of 3 seeds made the same run twice (3000 events)\n"), "{text}");
}

#[test]
fn a_replay_tells_its_timeline_its_faults_and_its_verdict() {
    let fake = Fake::new("echo 'a log line' >&2; [ -n \"$plan\" ] && { say $broken; exit 1; }; say $held");
    let (code, text, told) = fake.run("replay --seed 9");
    assert_eq!((code, told.as_str()), (0, "a log line\n"));
    assert!(text.starts_with("line 0\n") && text.ends_with("verdict    all held\n"), "{text}");
    let (code, text, _) = fake.run("replay --plan plan.json");
    assert_eq!(code, 1);
    assert!(text.ends_with("verdict    broken: billed twice (ledger, at 12.345 s)\n"), "{text}");
}

#[test]
fn shrinking_leaves_what_breaks_the_promise() {
    // Broken as long as there is a crash and a torn write; another promise is broken without any fault.
    let script = r#"
[ -z "$plan" ] && { say $broken; exit 1; }
grep -q '"schedule":\[\]' $plan && { say $broken | sed 's/"oracle":"ledger"/"oracle":"other"/'; exit 1; }
grep -q '"crash"' $plan && grep -q '"torn"' $plan && { say $broken; exit 1; }
say $held
"#;
    let fake = Fake::new(script);
    let (code, shrunk) = fake.json("shrink --seed 11 --jobs 4");
    assert_eq!(code, 0, "{shrunk}");
    assert_eq!(shrunk["before"]["faults"], 12);
    let after = serde_json::json!({
        "faults": 2, "faults_last_ms": 100, "faults_ms": shrunk["after"]["faults_ms"],
        "nodes": 1, "shards": 1, "clients": 1, "campaigns": 1
    });
    assert_eq!((&shrunk["after"], shrunk["smallest"].clone()), (&after, true.into()));
    let plan = Plan::read(&fake.path("chaos-failures/seed-4242-shrunk/plan.json"))
        .or_else(|_| Plan::read(&fake.path("chaos-failures/seed-11-shrunk/plan.json")));
    assert_eq!(plan.unwrap().schedule.len(), 2);

    let (code, text, _) = fake.run("shrink --plan plan.json --tries 5");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("5 plans played; the tries were used up"), "{text}");
    let (code, _, told) = Fake::new("say $held").run("shrink --seed 3");
    assert_eq!(code, 2);
    assert!(told.contains("seed 3 breaks no promise"), "{told}");
}

#[test]
fn a_mutant_is_caught_only_if_its_line_ran() {
    // a: from the third seed of each start on. b: broken, but its line never ran.
    let script = r#"
hits() { sed "s/\"mutant_hits\":null/\"mutant_hits\":$1/"; }
[ $mutant = a ] && [ $((seed % 10)) -ge 2 ] && { say $broken | hits 7; exit 1; }
[ $mutant = b ] && [ $seed = 10001 ] && { say $broken | hits 0; exit 1; }
say $held | hits 1
"#;
    let fake = Fake::new(script);
    fs::write(fake.path("README.md"), "x\n<!-- mutants: begin -->\n<!-- mutants: end -->\n").unwrap();
    let (code, tried) = fake.json("mutants --starts 2 --seeds-max 4 --jobs 4 --readme README.md");
    assert_eq!(code, 1);
    assert_eq!((&tried[0]["id"], &tried[0]["seeds_needed"]), (&"a".into(), &serde_json::json!([3, 3])));
    assert_eq!(
        (&tried[1]["seeds_needed"], &tried[1]["unrelated"]),
        (&serde_json::json!([null, null]), &vec![10_001].into())
    );
    let readme = fs::read_to_string(fake.path("README.md")).unwrap();
    assert!(
        readme.contains("| `a` | does a | ledger | 3, 3 | 3 |\n| `b` | does b |  | not caught, not caught |"),
        "{readme}"
    );
    let (code, text, _) = fake.run("mutants --only a --starts 1");
    assert_eq!(code, 0, "{text}");
    assert!(text.ends_with("1 of 1 caught from every start\n"), "{text}");
}

#[test]
fn ci_plays_fixed_seeds_and_those_of_the_tree() {
    let fake = Fake::new("echo $seed >> $here/seeds; sleep 0.1; say $held");
    let args = "ci --minutes 0.05 --jobs 1 --tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904";
    let (code, sums) = fake.json(args);
    assert_eq!(code, 0, "{sums}");
    let played = |file: &str| -> Vec<u64> {
        fs::read_to_string(fake.path(file)).unwrap().lines().map(|seed| seed.parse().unwrap()).collect()
    };
    let first = played("seeds");
    let fixed = first.iter().take_while(|seed| **seed < 1_000).count();
    assert!(fixed >= 2 && first.len() >= fixed + 2, "{first:?}");
    assert!(first[..fixed].iter().copied().eq(1..=fixed as u64), "{first:?}");
    let told = format!("1..{}, and the first {} of tree", fixed + 1, first.len() - fixed);
    assert!(sums["seeds"].as_str().unwrap().starts_with(&told), "{sums}");
    // The very same ones again; how many depends on the machine.
    fs::rename(fake.path("seeds"), fake.path("first")).unwrap();
    assert_eq!(fake.run(args).0, 0);
    let again = played("seeds");
    let of_tree = again.iter().skip_while(|seed| **seed < 1_000);
    assert!(of_tree.zip(&first[fixed..]).all(|(again, first)| again == first), "{again:?} {first:?}");
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < SOON, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_interrupt_ends_the_runs_too_and_leaves_nothing_behind() {
    let fake = Fake::new(
        "touch $TMPDIR/file; echo $$ $TMPDIR > $here/new-$seed; mv $here/new-$seed $here/started-$seed; exec sleep 1000",
    );
    let mut driver = fake.command("sim --seeds 1..100 --jobs 2").stderr(Stdio::piped()).spawn().unwrap();
    wait_for("two runs", || fake.path("started-1").exists() && fake.path("started-2").exists());
    let run = fs::read_to_string(fake.path("started-1")).unwrap();
    let (id, scratch) = run.trim().split_once(' ').unwrap();
    assert!(Path::new(scratch).join("file").exists());
    let kill = Command::new("kill").args(["-INT", &driver.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(driver.wait().unwrap().code(), Some(130));
    wait_for("the end of the run", || is_gone(id));
    assert!(!Path::new(scratch).exists(), "{scratch}");
}

/// No such process, or one that is dead already and that nobody has asked after yet.
fn is_gone(id: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

#[test]
fn a_missing_simulation_is_told_with_how_to_build_it() {
    // A copy of the driver alone in a folder.
    let folder = tempfile::tempdir().unwrap();
    let driver = folder.path().join("andante-chaos");
    fs::copy(env!("CARGO_BIN_EXE_andante-chaos"), &driver).unwrap();
    let ended = Command::new(&driver).args(["replay", "--seed", "1"]).output().unwrap();
    assert_eq!(ended.status.code(), Some(2));
    let told = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(told.contains("cargo build --profile sim -p andante-chaos"), "{told}");
}
