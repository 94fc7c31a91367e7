//! What is left alone: in observe mode everything, and without Karpenter whatever is Karpenter's.

use std::time::Duration;

use lifeboat_chaos::company::Company;
use lifeboat_chaos::company::objects::INTERRUPTION;
use lifeboat_chaos::company::objects::POD;
use lifeboat_chaos::control_plane::audit::Entry;
use lifeboat_chaos::world::cluster::object::annotation;
use lifeboat_chaos::world::cluster::object::text;

use crate::story;
use crate::theater::Turn;
use crate::theater::eventually;
use crate::theater::on_stage;

/// What our programs write that is theirs.
const OURS: [&str; 4] = ["nodeinterruptions", "workloadcheckpoints", "leases", "events"];
/// Near, so that the record closes soon.
const LEAD: Duration = Duration::from_secs(20);

/// From the first look to the closed record, the API server's own log shows no write of ours to
/// anything of anybody else's.
#[test]
fn observe_writes_nothing_but_our_own_objects() {
    on_stage(async |turn: Turn| {
        let mut settings = turn.settings("observe").with("mode", "observe");
        settings.karpenter_hears = None;
        let mut company = turn.company(settings).await;
        company.start_controller(0).unwrap();
        company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
        company.add_job("job train-o hold on-signal").await.unwrap();
        let place = story::until_it_trains(&company, "train-o").await;
        let instance = company.instance_of(&place.node);
        company.warn_within(&instance, LEAD);
        until_closed(&company, &instance).await;
        let written = turn.asked_by(":observe:").into_iter().filter(Entry::writes);
        let mut kinds: Vec<String> = written.map(|entry| entry.resource).collect();
        kinds.sort();
        kinds.dedup();
        let others: Vec<_> = kinds.iter().filter(|kind| !OURS.contains(&kind.as_str())).collect();
        assert!(others.is_empty(), "written in observe mode: {others:?}");
        assert!(kinds.iter().any(|kind| kind == "nodeinterruptions"), "nothing was recorded");
        company.end().await;
    });
}

/// On nodes of a managed group: no hold, no claim; what is protected is evicted when it is durable,
/// and with `drain.others` the rest of the node at once.
#[test]
fn without_karpenter_the_node_is_drained_by_us_alone() {
    on_stage(async |turn: Turn| {
        let settings = turn.settings("managed").with("karpenter.mode", "none");
        let mut company = turn.company(settings.with("drain.others", "true")).await;
        company.start_controller(0).unwrap();
        company.add_managed_node("managed-1", "i-0aaaaaaaaaaaaaaa1").await.unwrap();
        company.add_job("job train-m hold on-signal grace 120s step 2s").await.unwrap();
        let old = story::until_it_trains(&company, "train-m").await;
        company.add_job("job plain unprotected no-gpu").await.unwrap();
        let plain = running(&company, "plain").await;
        company.add_managed_node("managed-2", "i-0aaaaaaaaaaaaaaa2").await.unwrap();
        company.warn(&company.instance_of(&old.node));

        let (new, step) = story::until_it_resumes(&company, "train-m").await;
        assert_eq!(new.node, "managed-2");
        let (saved_at, saved_step) = story::saved(&company.events(), &old.pod).unwrap();
        assert_eq!(step, saved_step);
        let ends = story::ended_by(&turn, &old.pod);
        assert!(ends.len() == 1 && ends[0].received >= saved_at, "{ends:?}");
        let cleared = story::ended_by(&turn, &plain);
        assert!(cleared.len() == 1 && cleared[0].user.contains(":managed:"), "{cleared:?}");
        let written = turn.asked_by(":managed:").into_iter().filter(Entry::writes);
        let foreign = ["pods", "nodeclaims"];
        let foreign: Vec<_> = written
            .filter(|entry| foreign.contains(&entry.resource.as_str()))
            .filter(|entry| entry.subresource != "eviction")
            .collect();
        assert!(foreign.is_empty(), "held or replaced without Karpenter: {foreign:?}");
        let pods = company.objects.list(POD, &company.selector()).await;
        assert!(pods.iter().all(|pod| annotation(pod, "lifeboat.dev/held").is_empty()));
        company.end().await;
    });
}

/// Waits until a job's pod runs, and names it.
async fn running(company: &Company, job: &str) -> String {
    eventually("a pod that runs", async || {
        let pods = story::pods_of(company, job).await;
        let pod = pods.iter().find(|pod| text(pod, "/status/phase") == "Running")?;
        Some(text(pod, "/metadata/name").to_owned())
    })
    .await
}

async fn until_closed(company: &Company, instance: &str) {
    eventually("the closed record", async || {
        let record = company.objects.find(INTERRUPTION, ("", instance)).await?;
        let phase = text(&record, "/status/phase");
        ["Released", "Saved", "Lost"].contains(&phase).then_some(())
    })
    .await;
}
