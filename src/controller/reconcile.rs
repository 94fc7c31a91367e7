//! The task of one interruption: look, plan, act, record, and wait for a change or the next due
//! time. It never waits for the world to change within a pass.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_domain::cluster;
use lifeboat_domain::cluster::facts::ClusterFacts;
use lifeboat_domain::cluster::plan::Action;
use lifeboat_domain::cluster::plan::Next;
use lifeboat_domain::cluster::plan::Plan;
use lifeboat_domain::deadline::elapsed;
use lifeboat_domain::deadline::later;
use lifeboat_domain::ids::InstanceId;
use lifeboat_domain::replacement::NoClaim;
use serde::Serialize;
use tracing::Instrument;

use crate::adapters::cluster::interruptions::InterruptionRow;
use crate::controller::Deps;
use crate::controller::act;
use crate::controller::act::Hand;
use crate::controller::act::Outcome;
use crate::controller::close;
use crate::controller::first_aid;
use crate::controller::memory::Memory;
use crate::controller::observe;
use crate::controller::record;
use crate::controller::replace;
use crate::metrics;

/// First pause after a step failed; doubled up to [`WORRY_MAX`].
const WORRY_MIN: Duration = Duration::from_millis(500);
/// Longest pause after a step failed.
const WORRY_MAX: Duration = Duration::from_secs(4);
/// How soon a step that just went well is looked at again.
const SETTLE: Duration = Duration::from_secs(1);
/// In a storm, how long changes of one interruption are gathered: a look at each of them would take
/// the processor from the fences of all others.
const CALM: Duration = Duration::from_millis(200);
/// How often an interruption with a deadline is looked at, whatever the planner expects.
const PATROL: Duration = Duration::from_secs(5);
/// How often one without is.
const PATROL_IDLE: Duration = Duration::from_mins(1);

/// When a task looks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    /// At this moment at the latest.
    At(Timestamp),
    /// Never: there is nothing left to do.
    Never,
}

/// One pass as it is kept: enough to plan it again.
#[derive(Serialize)]
struct Pass<'a> {
    facts: &'a ClusterFacts,
    plan: &'a Plan,
}

/// Follows one interruption until there is nothing left to do.
pub async fn follow(deps: Arc<Deps>, instance: InstanceId) {
    let node = deps.caches.interruptions.row(&instance).map(|row| row.node);
    let span = tracing::info_span!("interruption", %instance, node = node.unwrap_or_default());
    run(&deps, &instance).instrument(span).await;
    deps.wakes.forget(&instance);
}

async fn run(deps: &Deps, instance: &InstanceId) {
    let mut bell = deps.wakes.task(instance);
    let mut memory = Memory::default();
    let mut worry = WORRY_MIN;
    loop {
        // Boxed, for thousands of tasks wait at once, and each would keep the room for a pass.
        let (due, failed) = Box::pin(pass(deps, instance, &mut memory)).await;
        let Due::At(mut due) = due else { return };
        let now = deps.clock.now();
        if failed {
            due = due.min(later(now, worry));
            worry = (worry * 2).min(WORRY_MAX);
        } else {
            worry = WORRY_MIN;
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(elapsed(now, due)) => (),
            () = bell.rung() => (),
        }
        if deps.wakes.is_crowded() {
            tokio::time::sleep(CALM).await;
        }
    }
}

/// One pass; answers when the next is due, and whether a step failed that may go better.
async fn pass(deps: &Deps, instance: &InstanceId, memory: &mut Memory) -> (Due, bool) {
    let Some(row) = deps.caches.interruptions.row(instance) else { return (Due::Never, false) };
    tokio::join!(deps.caches.nodes.synced(), deps.caches.pods.synced());
    observe::remember(deps, memory, &row);
    observe::look(deps, memory, &row).await;
    let (facts, plan) = decide(deps, memory, &row);
    memory.no_claim = plan.no_claim.map(NoClaim::label);
    let withheld = withheld(&plan);
    let more_withheld = withheld.is_some() && withheld != memory.withheld;
    memory.withheld = withheld;
    let outcomes = act_on(deps, memory, &row, &plan).await;
    let took = outcomes.iter().any(|outcome| *outcome != Outcome::Settling);
    let first = !plan.steps.is_empty() && memory.passes.is_empty();
    if took || first || more_withheld {
        note_pass(memory, &facts, &plan);
    }
    let closed = close_if_planned(deps, memory, (&row, &facts), &plan).await;
    if !row.is_closed() && !closed {
        record::write(deps, memory, &row, &facts).await;
    }
    let failed = outcomes.contains(&Outcome::Failed);
    let settling =
        outcomes.iter().any(|outcome| !matches!(outcome, Outcome::Failed | Outcome::Hopeless));
    let now = deps.clock.now();
    let due = match plan.next {
        Next::Never if outcomes.is_empty() => return (Due::Never, false),
        Next::At(at) => at,
        Next::OnChange | Next::Never => patrol(&facts, now),
    };
    let soon = (settling && !outcomes.is_empty()) || memory.written.owed;
    let due = if soon { due.min(later(now, SETTLE)) } else { due };
    (Due::At(due.min(patrol(&facts, now))), failed)
}

/// Plans under the ledger's lock, so that what two tasks ask for at once is counted once each.
fn decide(deps: &Deps, memory: &Memory, row: &InterruptionRow) -> (ClusterFacts, Plan) {
    let now = deps.clock.now();
    let mut facts = observe::facts(deps, memory, row);
    let plan = deps.ledger.plan(&deps.caches.claims, now, |fleet| {
        replace::count(deps, memory, fleet, &mut facts.replacement);
        cluster::plan(&facts, &deps.settings.policy, now)
    });
    for refused in &plan.refused {
        metrics::step_refused(refused.rule.label());
        tracing::error!(step = %refused.step, rule = refused.rule.label(), "a plan broke a rule, step not taken");
    }
    (facts, plan)
}

async fn act_on(
    deps: &Deps,
    memory: &mut Memory,
    row: &InterruptionRow,
    plan: &Plan,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    let steps = plan.steps.iter().filter(|step| !matches!(step.action, Action::Close { .. }));
    for step in steps {
        if first_aid::is_first_aid(step) && deps.aided.covers(&row.instance) {
            outcomes.push(Outcome::Settling);
            continue;
        }
        let hand = Hand { deps, cluster: &deps.cluster, memory, row };
        let outcome = act::take(hand, step).await;
        act::note(deps, memory, step, outcome);
        outcomes.push(outcome);
    }
    outcomes
}

async fn close_if_planned(
    deps: &Deps,
    memory: &mut Memory,
    (row, facts): (&InterruptionRow, &ClusterFacts),
    plan: &Plan,
) -> bool {
    let phase = plan.steps.iter().find_map(|step| {
        if let Action::Close { phase } = step.action { Some(phase) } else { None }
    });
    match phase {
        Some(phase) if !row.is_closed() => close::close(deps, memory, (row, facts), phase).await,
        Some(_) | None => false,
    }
}

fn note_pass(memory: &mut Memory, facts: &ClusterFacts, plan: &Plan) {
    let pass = serde_json::to_string(&Pass { facts, plan });
    let pass = pass.expect("facts and plans are plain data with text for keys");
    tracing::debug!(%pass, "pass");
    memory.keep_pass(pass.into());
}

fn withheld(plan: &Plan) -> Option<String> {
    let steps: Vec<String> = plan.withheld.iter().map(ToString::to_string).collect();
    (!steps.is_empty()).then(|| steps.join("; ").chars().take(1024).collect())
}

fn patrol(facts: &ClusterFacts, now: Timestamp) -> Timestamp {
    let watched = facts.signals.deadline().is_some();
    later(now, if watched { PATROL } else { PATROL_IDLE })
}
