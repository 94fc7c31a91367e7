//! What is bought in place of a node, and what is given back.

use std::collections::BTreeMap;

use lifeboat_chaos::company::Company;
use lifeboat_chaos::company::objects::JOB;
use lifeboat_chaos::company::objects::NODE_CLAIM;
use lifeboat_chaos::company::objects::NODE_POOL;
use lifeboat_chaos::control_plane::cloud::Behavior;
use lifeboat_chaos::control_plane::cloud::Pool;
use lifeboat_chaos::world::cluster::object::condition;
use lifeboat_chaos::world::cluster::object::items;
use lifeboat_chaos::world::cluster::object::label;
use serde_json::json;

use crate::story;
use crate::theater::Turn;
use crate::theater::eventually;
use crate::theater::on_stage;

/// Whether a node carries what a recommendation sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marks {
    There,
    Gone,
}

/// Slices of each GPU.
const SLICES: u32 = 4;
/// What a device plugin calls a GPU, or a slice of one.
const WHOLE: &str = "nvidia.com/gpu";
/// What it calls a slice where it is told to rename.
const RENAMED: &str = "nvidia.com/gpu.shared";
/// What it calls a MIG device in the mixed strategy.
const MIG: &str = "nvidia.com/mig-1g.5gb";

/// Karpenter deletes a claim for which there is no capacity: the next choice is made, and used.
#[test]
fn a_claim_that_is_refused_leads_to_the_next_choice() {
    on_stage(async |turn: Turn| {
        let mut company = turn.company(turn.settings("refused")).await;
        company.start_controller(0).unwrap();
        company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
        company.add_job("job train-r step 2s").await.unwrap();
        let old = story::until_it_trains(&company, "train-r").await;
        let (_, zone) = story::offering(&story::node(&company, &old.node).await.unwrap());
        let other = if zone == "us-east-2a" { "us-east-2b" } else { "us-east-2a" };
        let sold_out = Pool { zone: Some(other.to_owned()), ..Pool::default() };
        let refused = Behavior { refused: vec![sold_out], ..Behavior::default() };
        turn.plane().cloud().behave(&refused).unwrap();
        let instance = company.instance_of(&old.node);
        company.warn(&instance);

        let (new, _) = story::until_it_resumes(&company, "train-r").await;
        let asked = story::asked_for(&turn, &instance);
        let told: Vec<_> =
            asked.iter().map(|one| (one.what.as_str(), one.claim.as_str())).collect();
        let (first, second) = (format!("{instance}-1"), format!("{instance}-2"));
        assert_eq!(told, [("refuse", first.as_str()), ("launch", second.as_str())]);
        let node = story::node(&company, &new.node).await.unwrap();
        assert_eq!(label(&node, "lifeboat.dev/replaces"), instance, "it went on elsewhere");
        assert_ne!(story::offering(&node), ("g5.xlarge".to_owned(), zone), "bought again");
        company.end().await;
    });
}

/// A claim whose pods never come is deleted, and with it the node that was bought for them; a
/// recommendation that no notice follows sets marks, saves, ends nothing, and takes its marks back.
#[test]
fn what_is_no_longer_wanted_is_taken_back() {
    on_stage(async |turn: Turn| {
        let settings = turn.settings("unwanted").with("replacement.unused", "1m");
        let mut company = turn.company(settings.with("rebalance.lapse", "2m")).await;
        company.start_controller(0).unwrap();
        company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
        company.add_job("job advised").await.unwrap();
        company.add_job("job ended").await.unwrap();
        let advised = story::until_it_trains(&company, "advised").await;
        company.recommend(&company.instance_of(&advised.node));
        let ended = story::until_it_trains(&company, "ended").await;
        let instance = company.instance_of(&ended.node);
        company.warn(&instance);
        let claim = format!("{instance}-1");
        eventually("the claim", async || company.objects.find(NODE_CLAIM, ("", &claim)).await)
            .await;
        company.objects.delete(JOB, ("default", "ended")).await.unwrap();

        marked(&company, &advised.node, Marks::There).await;
        eventually("the save", async || story::saved(&company.events(), &advised.pod)).await;
        eventually("the end of the unused claim", async || {
            company.objects.find(NODE_CLAIM, ("", &claim)).await.is_none().then_some(())
        })
        .await;
        marked(&company, &advised.node, Marks::Gone).await;
        assert!(story::ended_by(&turn, &advised.pod).is_empty(), "advice ended a pod");
        assert_eq!(story::pods_of(&company, "advised").await.len(), 1);
        company.end().await;
    });
}

/// Four pods that share a GPU in slices, with an overlay that states them: one node for all four.
#[test]
fn four_sharers_get_one_node() {
    on_stage(async |turn: Turn| {
        let company = sliced(&turn, "sliced", WHOLE).await;
        company.add_overlay(WHOLE, SLICES).await.unwrap();
        let instance = sharers_are_warned_of(&company, WHOLE).await;
        all_go_on(&company).await;
        assert_eq!(launched_after(&turn, &instance), 1, "nodes bought for four sharers");
        assert_eq!(story::asked_for(&turn, &instance).len(), 1, "and it is ours");
        company.end().await;
    });
}

/// The same with slices under a name of their own: a claim that asks for it is initialized.
#[test]
fn sharers_of_a_renamed_resource_get_one_node() {
    on_stage(async |turn: Turn| {
        let company = sliced(&turn, "renamed", RENAMED).await;
        company.add_overlay(RENAMED, SLICES).await.unwrap();
        let instance = sharers_are_warned_of(&company, RENAMED).await;
        all_go_on(&company).await;
        assert_eq!(launched_after(&turn, &instance), 1, "nodes bought for four sharers");
        let claim = format!("{instance}-1");
        let claim = company.objects.find(NODE_CLAIM, ("", &claim)).await.unwrap();
        assert_eq!(condition(&claim, "Initialized"), "True", "{claim:#}");
        company.end().await;
    });
}

/// And with MIG devices by their own names.
#[test]
fn holders_of_mig_devices_get_one_node() {
    on_stage(async |turn: Turn| {
        let company = sliced(&turn, "mixed", MIG).await;
        company.add_overlay(MIG, SLICES).await.unwrap();
        let instance = sharers_are_warned_of(&company, MIG).await;
        all_go_on(&company).await;
        assert_eq!(launched_after(&turn, &instance), 1, "nodes bought for four holders");
        assert_eq!(story::asked_for(&turn, &instance).len(), 1, "and it is ours");
        company.end().await;
    });
}

/// Without an overlay Karpenter knows nothing of slices. We ask for nothing, and say so; what
/// Karpenter buys for the four pods by itself is counted.
#[test]
fn without_an_overlay_no_claim_is_ours() {
    on_stage(async |turn: Turn| {
        let company = sliced(&turn, "unstated", WHOLE).await;
        let instance = sharers_are_warned_of(&company, WHOLE).await;
        all_go_on(&company).await;
        assert!(story::asked_for(&turn, &instance).is_empty(), "a claim of ours");
        let bought = launched_after(&turn, &instance);
        eprintln!("without an overlay Karpenter bought {bought} nodes for four sharers");
        assert!(bought >= 1);
        company.end().await;
    });
}

/// Three nodes are taken at once from a pool whose limit leaves room for one more: it holds at every
/// moment, and all three go on in the end.
#[test]
fn a_pools_limit_holds_when_all_its_nodes_are_taken() {
    on_stage(async |turn: Turn| {
        let mut company = turn.company(turn.settings("limited")).await;
        company.start_controller(0).unwrap();
        company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
        let limit = json!({ "spec": { "limits": { "nvidia.com/gpu": "4" } } });
        company.objects.merge(NODE_POOL, ("", "limited"), limit).await.unwrap();
        let jobs = ["limited-0", "limited-1", "limited-2"];
        for job in jobs {
            company.add_job(&format!("job {job} step 1s")).await.unwrap();
        }
        let mut instances = Vec::new();
        for job in jobs {
            let place = story::until_it_trains(&company, job).await;
            instances.push(company.instance_of(&place.node));
        }
        for instance in &instances {
            company.warn(instance);
        }
        for job in jobs {
            story::until_it_resumes(&company, job).await;
        }
        let most = most_at_once(&turn, &instances);
        assert!(most <= 4, "{most} GPUs at once");
        company.end().await;
    });
}

/// The most instances that there were at once, counted from the first of these on.
fn most_at_once(turn: &Turn, first: &[String]) -> usize {
    let asked = turn.plane().cloud().asked().unwrap();
    let ours = asked.iter().skip_while(|one| !first.contains(&one.instance));
    let (mut there, mut most) = (0_usize, 0);
    for one in ours {
        match one.what.as_str() {
            "launch" => there += 1,
            "terminate" => there = there.saturating_sub(1),
            _ => (),
        }
        most = most.max(there);
    }
    most
}

async fn sliced(turn: &Turn, name: &str, resource: &str) -> Company {
    let mut settings = turn.settings(name);
    settings.slices = SLICES;
    let mut company = turn.company(settings).await;
    let mut slices = BTreeMap::from([(WHOLE.to_owned(), "0".to_owned())]);
    slices.insert(resource.to_owned(), SLICES.to_string());
    let types = ["g5.xlarge", "g6.xlarge"];
    let reports = types.iter().map(|one| ((*one).to_owned(), slices.clone())).collect();
    turn.plane().cloud().behave(&Behavior { reports, ..Behavior::default() }).unwrap();
    company.start_controller(0).unwrap();
    company.add_pool(&types).await.unwrap();
    company
}

/// Four sharers train on one node, whose instance is warned of; names it.
async fn sharers_are_warned_of(company: &Company, resource: &str) -> String {
    let mut nodes = Vec::new();
    for number in 0..SLICES {
        // One after the other: the first has a node bought, and the others find room there.
        let line = format!("job share-{number} step 1s gpu {resource}");
        company.add_job(&line).await.unwrap();
        nodes.push(story::until_it_trains(company, &format!("share-{number}")).await.node);
    }
    nodes.dedup();
    let [node] = &nodes[..] else { panic!("they share {nodes:?}") };
    let instance = company.instance_of(node);
    company.warn(&instance);
    instance
}

async fn all_go_on(company: &Company) {
    for number in 0..SLICES {
        story::until_it_resumes(company, &format!("share-{number}")).await;
    }
}

/// How many instances were bought after this one.
fn launched_after(turn: &Turn, instance: &str) -> usize {
    let asked = turn.plane().cloud().asked().unwrap();
    let mut launched = asked.iter().filter(|one| one.what == "launch");
    launched.find(|one| one.instance == instance).expect("it was bought");
    launched.count()
}

/// Waits until a node carries the marks of advice, or no longer does.
async fn marked(company: &Company, node: &str, wanted: Marks) {
    eventually(&format!("marks of advice: {wanted:?}"), async || {
        let node = story::node(company, node).await?;
        let mut taints = items(&node, "/spec/taints").iter();
        let tainted = taints.any(|taint| taint["key"] == "lifeboat.dev/at-risk");
        let blocked =
            node["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] == json!("true");
        let there = wanted == Marks::There;
        (tainted == there && blocked == there).then_some(())
    })
    .await;
}
