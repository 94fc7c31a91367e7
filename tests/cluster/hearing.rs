//! Hearing first: whether a protected pod is held before Karpenter's drain reaches it.
//!
//! `LIFEBOAT_CLUSTER_INTERRUPTIONS` says how many interruptions each way is tried with.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_chaos::company::Company;
use lifeboat_chaos::company::Where;
use lifeboat_chaos::company::objects::NODE_CLAIM;
use lifeboat_chaos::company::objects::POD;
use lifeboat_chaos::control_plane::audit::Entry;
use lifeboat_chaos::world::cluster::object::annotation;
use lifeboat_chaos::world::cluster::object::condition;
use lifeboat_chaos::world::cluster::object::is_deleting;
use lifeboat_chaos::world::cluster::object::name;
use lifeboat_chaos::world::cluster::object::text;
use serde_json::Value;

use crate::story;
use crate::theater::Turn;
use crate::theater::eventually;
use crate::theater::on_stage;

/// The delay that Karpenter's own queue should have where pods are held on the signal.
const DELAY: Duration = Duration::from_secs(5);
/// Our mark beside a hold.
const HELD: &str = "lifeboat.dev/held";

/// Held since its admission: Karpenter has nothing to evict, however fast it is.
#[test]
fn a_pod_held_always_is_never_evicted_by_karpenter() {
    let (early, all) = in_rounds(20, &async |turn, round| {
        hollow_interrupted(turn, ("always", Duration::ZERO), round).await
    });
    assert_eq!(early, 0, "evicted by Karpenter, of {all}");
}

/// Held on the signal, and Karpenter's queue is delayed: we were there first.
#[test]
fn a_pod_held_on_the_signal_is_held_before_a_delayed_drain() {
    let (early, all) = in_rounds(20, &async |turn, round| {
        hollow_interrupted(turn, ("on-signal", DELAY), round).await
    });
    assert_eq!(early, 0, "evicted by Karpenter before they were held, of {all}");
}

/// Without the delay it is a race. Whoever loses it is saved within its own grace all the same.
#[test]
fn a_pod_that_was_not_held_in_time_is_saved_all_the_same() {
    let (early, all) = in_rounds(5, &async |turn, round| trainers_interrupted(turn, round).await);
    eprintln!("without a delay, {early} of {all} were evicted before they were held, all saved");
}

/// One round of interruptions: its number, and how many.
#[derive(Clone, Copy, Debug)]
struct Round {
    number: usize,
    count: usize,
}

/// Plays as many interruptions as are asked for, so many at once; sums up how many pods Karpenter
/// evicted before they were held, of how many.
fn in_rounds(at_once: usize, play: &impl AsyncFn(&Turn, Round) -> usize) -> (usize, usize) {
    let asked = std::env::var("LIFEBOAT_CLUSTER_INTERRUPTIONS").ok();
    let all = asked.and_then(|text| text.parse().ok()).unwrap_or(at_once);
    let (mut early, mut played) = (0, 0);
    for number in 0.. {
        let count = at_once.min(all - played);
        if count == 0 {
            break;
        }
        played += count;
        on_stage(async |turn: Turn| early += play(&turn, Round { number, count }).await);
    }
    (early, played)
}

/// Interrupts nodes with trainers under real agents, at once; each is saved before it ends.
async fn trainers_interrupted(turn: &Turn, round: Round) -> usize {
    let mut company = turn.company(turn.settings(&format!("race-{}", round.number))).await;
    company.start_controller(0).unwrap();
    company.add_pool(&["g5.xlarge"]).await.unwrap();
    let jobs: Vec<String> = (0..round.count).map(|number| format!("race-{number}")).collect();
    for job in &jobs {
        let line = format!("job {job} hold on-signal grace 60s step 1s");
        company.add_job(&line).await.unwrap();
    }
    let mut places = Vec::new();
    for job in &jobs {
        places.push(story::until_it_trains(&company, job).await);
    }
    for place in &places {
        company.warn(&company.instance_of(&place.node));
    }
    for old in &places {
        let exited = eventually("the end", async || story::exited(&company.events(), &old.pod));
        let (exited_at, code) = exited.await;
        let (saved_at, _) = story::saved(&company.events(), &old.pod).expect("saved");
        assert!(saved_at <= exited_at && code == 143, "{old:?} ended with {code}");
    }
    let pods: Vec<String> = places.into_iter().map(|old| old.pod).collect();
    let early = evicted_early(turn, &pods);
    company.end().await;
    early
}

/// Interrupts nodes without agents, at once, whose pods nobody saves.
async fn hollow_interrupted(turn: &Turn, (hold, delay): (&str, Duration), round: Round) -> usize {
    let mut settings = turn.settings(&format!("hearing-{hold}-{}", round.number));
    (settings.karpenter_hears, settings.agents) = (Some(delay), Where::Nowhere);
    let mut company = turn.company(settings).await;
    company.start_controller(0).unwrap();
    company.start_controller(1).unwrap();
    company.add_pool(&["g5.xlarge"]).await.unwrap();
    for number in 0..round.count {
        let line = format!("job {hold}-{number} hold {hold} grace 30s");
        company.add_hollow_job(&line).await.unwrap();
    }
    let pods = running(&company, round.count).await;
    for node in pods.values() {
        let instance = eventually("the machine", async || {
            Some(company.instance_of(node)).filter(|instance| !instance.is_empty())
        });
        company.warn(&instance.await);
    }
    drained(&company, pods.values()).await;
    let names: Vec<String> = pods.into_keys().collect();
    let early = evicted_early(turn, &names);
    let stay = still_held(&company, &names).await;
    let all = round.count;
    eprintln!("hold {hold}, delay {delay:?}: of {all}, {early} evicted early, {stay} held");
    company.end().await;
    early
}

/// Waits until so many pods run, and tells the node of each.
async fn running(company: &Company, all: usize) -> BTreeMap<String, String> {
    eventually("pods that run", async || {
        let pods = company.objects.list(POD, &company.selector()).await;
        let running = pods.iter().filter(|pod| text(pod, "/status/phase") == "Running");
        let running: BTreeMap<String, String> = running
            .map(|pod| (name(pod).to_owned(), text(pod, "/spec/nodeName").to_owned()))
            .collect();
        (running.len() == all).then_some(running)
    })
    .await
}

/// Waits until Karpenter's drain has looked at each of these nodes.
async fn drained(company: &Company, nodes: impl Iterator<Item = &String> + Clone) {
    eventually("Karpenter's drain of all nodes", async || {
        let claims = company.objects.list(NODE_CLAIM, &company.selector()).await;
        let claim_of =
            |node: &str| claims.iter().find(|claim| text(claim, "/status/nodeName") == node);
        let looked_at = |claim: &Value| !condition(claim, "Drained").is_empty();
        let all = nodes.clone().all(|node| claim_of(node).is_none_or(looked_at));
        all.then_some(())
    })
    .await;
}

/// How many pods Karpenter evicted before we held them.
fn evicted_early(turn: &Turn, pods: &[String]) -> usize {
    let entries = turn.asked_by("");
    let first = |pod: &str, is_it: &dyn Fn(&Entry) -> bool| -> Option<Timestamp> {
        let mut about = entries.iter().filter(|one| one.resource == "pods" && one.name == pod);
        about.find(|one| is_it(one)).map(|one| one.received)
    };
    let evicts = |one: &Entry| one.subresource == "eviction" && one.user.ends_with(":karpenter");
    let holds = |one: &Entry| {
        let sent = one.sent.as_ref().map(Value::to_string).unwrap_or_default();
        one.verb == "patch" && sent.contains(HELD)
    };
    let early = |pod: &&String| {
        let held = first(pod, &holds);
        first(pod, &evicts).is_some_and(|evicted| held.is_none_or(|held| evicted < held))
    };
    pods.iter().filter(early).count()
}

async fn still_held(company: &Company, pods: &[String]) -> usize {
    let all = company.objects.list(POD, &company.selector()).await;
    let held = |pod: &&Value| {
        let known = pods.iter().any(|known| known == name(pod));
        known && !is_deleting(pod) && !annotation(pod, "karpenter.sh/do-not-disrupt").is_empty()
    };
    all.iter().filter(held).count()
}
