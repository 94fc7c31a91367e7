//! What is saved before it ends, beside the real Karpenter: whatever the grace, and with the
//! instance kept for as long as the agent works.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_chaos::chronicle::What;
use lifeboat_chaos::company::Company;
use lifeboat_chaos::wire::Wire;
use lifeboat_chaos::wire::call;
use lifeboat_chaos::wire::wire;
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::story;
use crate::theater::Turn;
use crate::theater::eventually;
use crate::theater::on_stage;

/// Own graces of pods, in seconds.
const GRACES: [u32; 5] = [30, 115, 120, 600, 3600];
/// How long a write to the slow store takes, one at a time.
const SLOW: Duration = Duration::from_millis(2_500);

/// Whatever its own grace, a pod's state is durable before we end it, nobody else ends it before,
/// and it is given no more than what a saved pod needs.
#[test]
fn each_grace_is_saved_before_any_end() {
    on_stage(async |turn: Turn| {
        let mut settings = turn.settings("graces");
        settings.karpenter_hears = Some(Duration::from_secs(5));
        let mut company = turn.company(settings).await;
        company.start_controller(0).unwrap();
        company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
        for grace in GRACES {
            let hold = if grace % 40 == 0 { "always" } else { "on-signal" };
            let line = format!("job train-{grace} grace {grace}s hold {hold} step 2s");
            company.add_job(&line).await.unwrap();
        }
        let mut places = Vec::new();
        for grace in GRACES {
            places.push(story::until_it_trains(&company, &format!("train-{grace}")).await);
        }
        for place in &places {
            company.warn(&company.instance_of(&place.node));
        }
        for (grace, old) in GRACES.iter().zip(&places) {
            let (_, step) = story::until_it_resumes(&company, &format!("train-{grace}")).await;
            let (saved_at, saved_step) = story::saved(&company.events(), &old.pod).unwrap();
            assert_eq!(step, saved_step, "grace {grace}");
            let ends = story::ended_by(&turn, &old.pod);
            let [end] = &ends[..] else { panic!("grace {grace}: ended by {ends:?}") };
            assert!(end.user.contains(":graces:"), "grace {grace}: ended by {}", end.user);
            assert!(end.received >= saved_at, "grace {grace}: ended before it was saved");
            let given = end.sent.as_ref().unwrap().pointer("/deleteOptions/gracePeriodSeconds");
            assert!(given.and_then(Value::as_i64).unwrap() <= 15, "grace {grace}: {given:?}");
            assert_eq!(story::exited(&company.events(), &old.pod).unwrap().1, 143);
        }
        company.end().await;
    });
}

/// A trainer that dies after its hand-over leaves its state to the agent, which has some twenty
/// seconds of upload left. Karpenter drains the node meanwhile, and asks for the instance's end only
/// when the manifest is written and the agent has ended.
#[test]
fn the_agent_keeps_the_instance_while_it_stores() {
    on_stage(async |turn: Turn| {
        let slow = Arc::new(AtomicBool::new(false));
        let mut settings = turn.settings("keeper");
        let lit = Arc::clone(&slow);
        settings.before_store = Box::new(move |store| slowed(store, &lit));
        let mut company = turn.company(settings).await;
        company.start_controller(0).unwrap();
        company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
        company.add_job("job train-d grace 60s files dies given state 8MiB").await.unwrap();
        let old = story::until_it_trains(&company, "train-d").await;
        let instance = company.instance_of(&old.node);
        slow.store(true, Ordering::SeqCst);
        company.warn(&instance);

        let (died_at, _) = eventually("the trainer's death", async || {
            story::said(&company.events(), &old.pod, "dies after the hand-over")
        })
        .await;
        let terminated_at = termination(&turn, &instance).await;
        slow.store(false, Ordering::SeqCst);
        let events = company.events();
        let (saved_at, _) = story::saved(&events, &old.pod).expect("stored before the end");
        assert!(saved_at > died_at, "it was stored before the trainer died");
        assert!(saved_at <= terminated_at, "Karpenter asked for the end before it was stored");
        let agent_ended = agent_ended(&company, &old.node).expect("the agent ended first");
        assert!(saved_at <= agent_ended, "the agent ended before it had stored");
        assert!(agent_ended <= terminated_at, "Karpenter did not wait for the agent");
        company.end().await;
    });
}

/// Waits until Karpenter asks the cloud for the end of an instance, and says when it did.
async fn termination(turn: &Turn, instance: &str) -> Timestamp {
    eventually("the termination of the instance", async || {
        let asked = turn.plane().cloud().asked().unwrap();
        let mut ends = asked.iter().filter(|one| one.what == "terminate");
        ends.find(|one| one.instance == instance).map(|one| one.time)
    })
    .await
}

/// When the agent of a node ended.
fn agent_ended(company: &Company, node: &str) -> Option<Timestamp> {
    let events = company.events();
    let agent = events.iter().find_map(|event| match &event.what {
        What::Bound { pod, node: on } if on == node && pod.starts_with("lifeboat-agent") => {
            Some(pod.clone())
        }
        _ => None,
    });
    story::exited(&events, &agent?).map(|(at, _)| at)
}

/// A store that takes one write at a time, slowly, for as long as it is told to.
fn slowed(store: Wire, slow: &Arc<AtomicBool>) -> Wire {
    let slow = Arc::clone(slow);
    let one = Arc::new(Semaphore::new(1));
    wire(move |request| {
        let (store, one) = (store.clone(), Arc::clone(&one));
        let slow = request.method() == http::Method::PUT && slow.load(Ordering::SeqCst);
        async move {
            if slow {
                let _turn = one.acquire().await;
                tokio::time::sleep(SLOW).await;
            }
            call(&store, request).await
        }
    })
}
