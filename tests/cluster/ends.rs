//! Ends that EC2 has nothing to do with: any of them is a signal, and what is protected is saved.

use lifeboat_chaos::company::Company;
use lifeboat_chaos::company::objects::INTERRUPTION;
use lifeboat_chaos::company::objects::JOB;
use lifeboat_chaos::company::objects::NODE;
use lifeboat_chaos::company::objects::NODE_POOL;
use lifeboat_chaos::world::cluster::object::items;
use serde_json::json;

use crate::story;
use crate::story::Place;
use crate::theater::Turn;
use crate::theater::eventually;
use crate::theater::on_stage;

/// `kubectl drain` evicts a pod with its own grace: it is saved within that, and goes on elsewhere.
#[test]
fn a_pod_that_somebody_drains_is_saved() {
    on_stage(async |turn: Turn| {
        let (company, old) = trains(&turn, "drained").await;
        let cordon = json!({ "spec": { "unschedulable": true } });
        company.objects.merge(NODE, ("", &old.node), cordon).await.unwrap();
        company.objects.evict(("default", &old.pod)).await.unwrap();
        saved_and_gone_on(&company, "train-e", &old).await;
        company.end().await;
    });
}

/// Karpenter replaces a node whose pool has changed, and drains it: the same.
#[test]
fn a_pod_on_a_node_that_drifted_is_saved() {
    on_stage(async |turn: Turn| {
        let (company, old) = trains(&turn, "drifted").await;
        let changed =
            json!({ "spec": { "template": { "metadata": { "labels": { "rev": "2" } } } } });
        company.objects.merge(NODE_POOL, ("", "drifted"), changed).await.unwrap();
        eventually("Karpenter's taint", async || {
            let Some(node) = story::node(&company, &old.node).await else { return Some(()) };
            let mut taints = items(&node, "/spec/taints").iter();
            taints.any(|taint| taint["key"] == "karpenter.sh/disrupted").then_some(())
        })
        .await;
        saved_and_gone_on(&company, "train-e", &old).await;
        company.end().await;
    });
}

/// Karpenter empties one of two nodes that the same work would fit on: who is moved is saved.
#[test]
fn a_pod_that_is_consolidated_away_is_saved() {
    on_stage(async |turn: Turn| {
        let mut company = turn.company(turn.settings("merged")).await;
        company.start_controller(0).unwrap();
        company.add_pool(&["g5.12xlarge"]).await.unwrap();
        let train = "job train-e hold on-signal grace 60s step 3s";
        company.add_job(train).await.unwrap();
        for filler in ["filler-0", "filler-1", "filler-2"] {
            let line = format!("job {filler} hold on-signal");
            company.add_hollow_job(&line).await.unwrap();
        }
        let first = story::until_it_trains(&company, "train-e").await;
        company.add_job("job train-f hold on-signal grace 60s step 3s").await.unwrap();
        let second = story::until_it_trains(&company, "train-f").await;
        assert_ne!(first.node, second.node, "the first node had room");
        for filler in ["filler-0", "filler-1", "filler-2"] {
            company.objects.delete(JOB, ("default", filler)).await.unwrap();
        }
        let merge = json!({ "spec": { "disruption": { "consolidateAfter": "0s" } } });
        company.objects.merge(NODE_POOL, ("", "merged"), merge).await.unwrap();
        let (job, old) = eventually("the end of one of them", async || {
            let events = company.events();
            let both = [("train-e", &first), ("train-f", &second)];
            both.into_iter().find(|(_, place)| story::exited(&events, &place.pod).is_some())
        })
        .await;
        saved_and_gone_on(&company, job, old).await;
        company.end().await;
    });
}

async fn trains(turn: &Turn, name: &str) -> (Company, Place) {
    let mut company = turn.company(turn.settings(name)).await;
    company.start_controller(0).unwrap();
    company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
    company.add_job("job train-e hold on-signal grace 60s step 3s").await.unwrap();
    let old = story::until_it_trains(&company, "train-e").await;
    (company, old)
}

async fn saved_and_gone_on(company: &Company, job: &str, old: &Place) {
    let (new, step) = story::until_it_resumes(company, job).await;
    let (saved_at, saved) = story::saved(&company.events(), &old.pod).unwrap();
    let (exited_at, code) = story::exited(&company.events(), &old.pod).unwrap();
    assert!(saved_at <= exited_at && code == 143, "it ended with {code} before it was saved");
    assert!(step == saved && new.node != old.node, "it went on at {step} on {}", new.node);
    let records = company.objects.list(INTERRUPTION, "").await;
    assert!(records.is_empty(), "an end without a notice was recorded as one: {records:?}");
}
