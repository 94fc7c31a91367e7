//! The controller beside the real Karpenter: a Spot notice on a node that Karpenter bought.

use lifeboat_chaos::company::Company;
use lifeboat_chaos::company::objects::NODE;
use lifeboat_chaos::company::objects::NODE_CLAIM;
use lifeboat_chaos::control_plane::Part;
use lifeboat_chaos::control_plane::audit::Entry;
use lifeboat_chaos::world::cluster::object::annotation;
use lifeboat_chaos::world::cluster::object::is_deleting;
use lifeboat_chaos::world::cluster::object::items;
use lifeboat_chaos::world::cluster::object::name;
use lifeboat_chaos::world::cluster::object::text;
use serde_json::Value;
use serde_json::json;

use crate::story;
use crate::story::Place;
use crate::theater::Turn;
use crate::theater::eventually;
use crate::theater::on_stage;

const TERMINATION: &str = "karpenter.sh/nodeclaim-termination-timestamp";
const HELD: &str = "karpenter.sh/do-not-disrupt";

/// The whole of it on one node: fenced in one patch that keeps others' taints, held against
/// Karpenter's drain and over its restart, replaced before the first eviction and only once, saved
/// before its end, and gone on elsewhere at the same step.
#[test]
fn a_node_that_karpenter_drains_is_fenced_held_saved_and_replaced() {
    on_stage(async |mut turn: Turn| {
        let mut company = turn.company(turn.settings("spot")).await;
        company.start_controller(0).unwrap();
        company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
        // Its next safe point is some ten seconds away: so long Karpenter's drain has to wait.
        company.add_job("job train-a grace 600s step 15s").await.unwrap();
        let old = story::until_it_trains(&company, "train-a").await;
        taint(&company, &old.node).await;
        let bought = story::offering(&story::node(&company, &old.node).await.unwrap());
        let instance = company.instance_of(&old.node);
        company.warn(&instance);

        let dying = claim_being_deleted(&company).await;
        fenced(&company, &old.node, "karpenter.sh/disrupted").await;
        turn.plane_mut().restart(Part::Karpenter).await.unwrap();
        fenced(&company, &old.node, "karpenter.sh/disrupted").await;
        assert!(story::saved(&company.events(), &old.pod).is_none(), "saved before all was seen");
        assert_eq!(story::pods_of(&company, "train-a").await.len(), 1, "not held");

        let (new, step) = story::until_it_resumes(&company, "train-a").await;
        saved_first(&turn, &company, &old, step);
        replaced_once(&turn, &instance);
        let node = story::node(&company, &new.node).await.unwrap();
        assert_eq!(text(&node, "/metadata/labels/lifeboat.dev~1replaces"), instance);
        assert_ne!(story::offering(&node), bought, "the reclaimed pool was bought again");
        free_of_hold(&company, &instance).await;
        gone(&company, &dying, &old.node).await;
        nobody_set_a_time(&turn);
        company.end().await;
    });
}

/// Somebody else's taint, and cordon-like annotation, come before ours.
async fn taint(company: &Company, node: &str) {
    let mut taints = items(&story::node(company, node).await.unwrap(), "/spec/taints").to_vec();
    taints.push(json!({ "key": "dedicated", "value": "team-a", "effect": "NoSchedule" }));
    let patch = json!({ "spec": { "taints": taints } });
    company.objects.merge(NODE, ("", node), patch).await.unwrap();
}

/// Waits until Karpenter's interruption controller has deleted the claim, and names it.
async fn claim_being_deleted(company: &Company) -> String {
    eventually("a claim being deleted", async || {
        let claims = story::claims(company).await;
        claims.iter().find(|claim| is_deleting(claim)).map(|claim| name(claim).to_owned())
    })
    .await
}

/// Waits until a node has our taint, this one and everybody else's, and is cordoned.
async fn fenced(company: &Company, node: &str, other: &str) {
    eventually("the fence", async || {
        let node = story::node(company, node).await?;
        let has = |key: &str| items(&node, "/spec/taints").iter().any(|one| one["key"] == key);
        let all = ["lifeboat.dev/interrupted", "dedicated", "nvidia.com/gpu", other];
        (all.into_iter().all(has) && node["spec"]["unschedulable"] == true).then_some(())
    })
    .await;
}

/// Nobody but us ended the pod, once, after its state was durable, with a short grace.
fn saved_first(turn: &Turn, company: &Company, old: &Place, step: u64) {
    let (saved_at, saved_step) = story::saved(&company.events(), &old.pod).unwrap();
    assert_eq!(step, saved_step, "it went on at another step");
    let ends = story::ended_by(turn, &old.pod);
    let [end] = &ends[..] else { panic!("ended {} times: {ends:?}", ends.len()) };
    assert!(end.user.ends_with(":controller-0"), "ended by {}", end.user);
    assert!(end.received >= saved_at, "ended before it was saved");
    let grace = end.sent.as_ref().unwrap().pointer("/deleteOptions/gracePeriodSeconds");
    assert!(grace.and_then(Value::as_i64).unwrap() <= 15, "its own grace was copied");
    assert_eq!(story::exited(&company.events(), &old.pod).unwrap().1, 143);
}

/// One claim of ours, made before the first eviction, and none of Karpenter's own.
fn replaced_once(turn: &Turn, instance: &str) {
    let made: Vec<Entry> = turn
        .asked_by("")
        .into_iter()
        .filter(|entry| entry.resource == "nodeclaims" && entry.verb == "create")
        .collect();
    let ours = made.iter().filter(|entry| entry.user.contains(":spot:")).count();
    assert_eq!((made.len(), ours), (2, 1), "the first node's, and ours: {made:?}");
    let claim = made.iter().find(|entry| entry.user.contains(":spot:")).unwrap();
    assert_eq!(text(claim.sent.as_ref().unwrap(), "/metadata/name"), format!("{instance}-1"));
    let evicted = turn.asked_by(":spot:").into_iter().find(|one| one.subresource == "eviction");
    assert!(claim.answered <= evicted.unwrap().received, "evicted before the claim was made");
}

/// Waits until our claim is no longer kept from disruption: its pods are bound.
async fn free_of_hold(company: &Company, instance: &str) {
    eventually("our claim without its hold", async || {
        let claim = company.objects.find(NODE_CLAIM, ("", &format!("{instance}-1"))).await?;
        annotation(&claim, HELD).is_empty().then_some(())
    })
    .await;
}

/// Waits until Karpenter has ended what it drained.
async fn gone(company: &Company, claim: &str, node: &str) {
    eventually("the end of the drained node", async || {
        let claim = company.objects.find(NODE_CLAIM, ("", claim)).await;
        let node = story::node(company, node).await;
        (claim.is_none() && node.is_none()).then_some(())
    })
    .await;
}

fn nobody_set_a_time(turn: &Turn) {
    let entries = turn.asked_by(":spot:").into_iter();
    let set = entries.filter_map(|one| one.sent).any(|sent| sent.to_string().contains(TERMINATION));
    assert!(!set, "a termination timestamp was set on a Spot notice");
}
