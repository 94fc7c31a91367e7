//! Scenarios drawn from seeds, one after another: what no one thought of writing down.
//!
//! A scenario is drawn as the text of a script, so that one that fails can be read, kept and made
//! smaller by hand.

use std::fmt::Write;
use std::time::Duration;

use fastrand::Rng;
use lifeboat::clock::Clock;

use crate::faults::Plan;
use crate::faults::WireName;
use crate::scenario;
use crate::scenario::Outcome;
use crate::scenario::ScenarioError;
use crate::script::Script;

/// When the notice comes: late enough for the work to be under way.
const NOTICE: u64 = 30;
/// From the notice to the end of the run: the deadline, the gate's last proof, and some room.
const AFTER: u64 = 300;
/// Wires that faults are drawn for.
const WIRES: [WireName; 4] = [WireName::Kube, WireName::Sqs, WireName::S3, WireName::Imds];
/// Faults begin within this time.
const FAULTY: Duration = Duration::from_secs(150);

/// What a swarm found.
#[derive(Debug)]
pub struct Found {
    /// Its first seed.
    pub first: u64,
    /// How many were run.
    pub runs: u64,
    /// The first that failed.
    pub failed: Option<Failed>,
}

/// A seed whose run broke a rule.
#[derive(Debug)]
pub struct Failed {
    /// The seed.
    pub seed: u64,
    /// The script that was drawn from it.
    pub text: String,
    /// How it went.
    pub outcome: Outcome,
}

/// Runs one seed after another until `length` has passed on this machine's clock, or one fails.
pub fn run(first: u64, length: Duration) -> Result<Found, ScenarioError> {
    let clock = Clock::system();
    let started = clock.now();
    let mut found = Found { first, runs: 0, failed: None };
    for seed in first.. {
        if started.duration_until(clock.now()).unsigned_abs() >= length {
            break;
        }
        let text = draw(seed);
        let outcome = scenario::run(&Script::parse(&text)?, seed)?;
        found.runs += 1;
        if !outcome.is_well() {
            found.failed = Some(Failed { seed, text, outcome });
            break;
        }
    }
    Ok(found)
}

/// The text of a script drawn from a seed; the same seed gives the same text.
pub fn draw(seed: u64) -> String {
    let mut random = Rng::with_seed(seed);
    let mut text = format!("# Drawn from seed {seed}.\n");
    stage(&mut random, &mut text);
    acts(&mut random, &mut text);
    let end = NOTICE + AFTER;
    line(&mut text, format_args!("end {:02}:{:02}", end / 60, end % 60));
    text
}

fn stage(random: &mut Rng, text: &mut String) {
    let slices = random.u32(1..=2);
    line(text, format_args!("node gpu-1 gpus {} slices {slices}", random.u32(1..=2)));
    for name in ["train-a", "train-b"].iter().take(random.usize(1..=2)) {
        let grace = pick(random, &[10, 30, 60, 120, 600]);
        let step = pick(random, &[250, 500, 2000, 8000]);
        let state = pick(random, &[1, 4, 16, 40]);
        let mut job = format!("job {name} grace {grace}s step {step}ms state {state}MiB");
        for (option, chance) in [
            (" pdb 0", 15),
            (" files", 25),
            (" restart OnFailure", 20),
            (" no-failure-policy", 20),
            (" ranks 2", 15),
            (" safe-point", 20),
            (" kind refuses", 7),
            (" kind deaf", 7),
            (" mode sigterm", 10),
        ] {
            // A program is of one kind.
            let taken = option.contains("kind") && job.contains("kind");
            if random.u32(0..100) < chance && !taken {
                job.push_str(option);
            }
        }
        line(text, format_args!("{job}"));
    }
}

fn acts(random: &mut Rng, text: &mut String) {
    let by = pick(random, &["both", "both", "queue", "imds"]);
    let late = pick(random, &["", "", " queue-after 3s", " imds-after 4s", " twice"]);
    at(text, NOTICE, format_args!("announce gpu-1 by {by}{late}"));
    for fault in Plan::draw(random, &WIRES, FAULTY).faults {
        at(text, 0, format_args!("fault {fault}"));
    }
    for _ in 0..random.usize(0..=2) {
        let when = random.u64(NOTICE - 5..NOTICE + 60);
        if random.bool() {
            let number = random.usize(0..2);
            at(text, when, format_args!("crash controller {number} for {}s", random.u64(1..20)));
        } else {
            at(text, when, format_args!("crash agent gpu-1 if-there"));
        }
    }
    if random.u8(0..10) == 0 {
        at(text, NOTICE + random.u64(1..110), format_args!("take gpu-1"));
    }
}

fn pick<T: Copy>(random: &mut Rng, choices: &[T]) -> T {
    choices[random.usize(0..choices.len())]
}

fn at(text: &mut String, seconds: u64, what: std::fmt::Arguments<'_>) {
    line(text, format_args!("{:02}:{:02}  {what}", seconds / 60, seconds % 60));
}

fn line(text: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(text, "{what}").expect("a string takes every line");
}
