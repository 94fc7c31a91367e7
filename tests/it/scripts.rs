//! Every script in `tests/scripts`: what it expects, the rules, and its recorded trace.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::sync::OnceLock;

use lifeboat_chaos::scenario;
use lifeboat_chaos::scenario::Outcome;
use lifeboat_chaos::script::Script;
use lifeboat_chaos::swarm;

/// The seed that traces are recorded with.
const SEED: u64 = 1;

#[test]
fn every_script_runs_as_it_says_and_as_it_was_recorded() {
    let mut wrong = Vec::new();
    for (path, outcome) in outcomes() {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        wrong.extend(outcome.unmet.iter().map(|unmet| format!("{name}: {unmet}")));
        wrong.extend(outcome.broken.iter().map(|broken| format!("{name}: {broken}")));
        wrong.extend(compare(&path.with_extension("trace"), &outcome.trace));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_controller_that_dies_after_any_of_its_writes_leaves_nothing_undone() {
    for writes in 1..=12 {
        let text = format!(
            "# Killed after its writes.\ncontrollers 1\nnode gpu-1\njob train-a\n\
             00:19  crash controller 0 for 5s after {writes}\n00:20  announce gpu-1 by both\n\
             expect 00:20 record gpu-1 is Released within 3m\n\
             order fence put on gpu-1, manifest train-a durable, evict train-a, resumed at step\n\
             end 03:20\n"
        );
        let outcome = scenario::run(&Script::parse(&text).unwrap(), SEED).unwrap();
        let (unmet, broken) = (&outcome.unmet, &outcome.broken);
        let trace = outcome.trace.join("\n");
        assert!(outcome.is_well(), "after {writes} writes: {unmet:?} {broken:?}\n{trace}");
    }
}

#[test]
fn a_script_runs_the_same_way_twice() {
    for name in ["notice-by-both", "api-server-away", "agent-killed-while-saving"] {
        let path = folder().join(name).with_extension("txt");
        let difference = scenario::difference(&run(&path).trace, &run(&path).trace);
        assert_eq!(difference, None, "{name}");
    }
}

#[test]
fn a_seed_runs_the_same_way_twice() {
    for seed in 1..4 {
        let script = Script::parse(&swarm::draw(seed)).unwrap();
        let (one, other) = (scenario::run(&script, seed), scenario::run(&script, seed));
        let difference = scenario::difference(&one.unwrap().trace, &other.unwrap().trace);
        assert_eq!(difference, None, "seed {seed}");
    }
}

/// How every script went: run once for all tests that look at them.
pub(crate) fn outcomes() -> &'static [(PathBuf, Outcome)] {
    static OUTCOMES: OnceLock<Vec<(PathBuf, Outcome)>> = OnceLock::new();
    OUTCOMES.get_or_init(|| scripts().into_iter().map(|path| (path.clone(), run(&path))).collect())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/scripts")
}

fn scripts() -> Vec<PathBuf> {
    let files = fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path());
    let mut scripts: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "txt")).collect();
    scripts.sort();
    scripts
}

fn run(path: &Path) -> Outcome {
    let text = fs::read_to_string(path).unwrap();
    let script = Script::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    scenario::run(&script, SEED).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What differs from the recorded trace; with `UPDATE_GOLDEN=1` it is recorded anew.
fn compare(path: &Path, trace: &[String]) -> Option<String> {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, trace.join("\n") + "\n").unwrap();
        return None;
    }
    let recorded = fs::read_to_string(path).unwrap_or_default();
    let recorded: Vec<String> = recorded.lines().map(str::to_owned).collect();
    let (recorded, now) = scenario::difference(&recorded, trace)?;
    Some(format!("{}:\n  recorded {recorded}\n  now      {now}", path.display()))
}
