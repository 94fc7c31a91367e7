//! What the real controllers of Jobs and StatefulSets make of pods that were saved and ended.

use std::time::Duration;

use lifeboat_chaos::company::Company;
use lifeboat_chaos::company::objects::JOB;
use lifeboat_chaos::world::cluster::object::condition;
use lifeboat_chaos::world::cluster::object::number;
use serde_json::Value;

use crate::story;
use crate::theater::Turn;
use crate::theater::eventually;
use crate::theater::on_stage;

/// The instance's end, counted from the notice: near, so that a budget is overruled soon.
const LEAD: Duration = Duration::from_mins(1);

/// With a failure policy on `DisruptionTarget`, neither our eviction nor, behind a budget that
/// allows nothing, our delete counts against a backoff limit of zero, and the work is done once it is
/// done. A StatefulSet's pod comes back under its own name and goes on.
#[test]
fn a_saved_pod_costs_its_job_nothing_and_its_successor_goes_on() {
    on_stage(async |turn: Turn| {
        let mut company = turn.company(turn.settings("jobs")).await;
        company.start_controller(0).unwrap();
        company.add_pool(&["g5.xlarge", "g6.xlarge"]).await.unwrap();
        company.add_job("job evicted backoff 0 steps 90").await.unwrap();
        company.add_job("job deleted backoff 0 pdb 0").await.unwrap();
        company.add_stateful_set("job set grace 120s").await.unwrap();
        let jobs = ["evicted", "deleted", "set"];
        let mut places = Vec::new();
        for job in jobs {
            places.push(story::until_it_trains(&company, job).await);
        }
        for place in &places {
            company.warn_within(&company.instance_of(&place.node), LEAD);
        }
        let how = ["create", "delete", "create"];
        for ((job, old), verb) in jobs.iter().zip(&places).zip(how) {
            eventually(&format!("the end of {job}"), async || {
                let ends = story::ended_by(&turn, &old.pod);
                ends.iter().any(|end| end.verb == verb).then_some(())
            })
            .await;
        }
        for (job, old) in jobs.iter().zip(&places) {
            let saved = eventually("the save", async || story::saved(&company.events(), &old.pod));
            let (_, saved) = saved.await;
            assert_eq!(resumed(&company, job, &old.node).await, saved, "{job} went on elsewhere");
        }
        unharmed(&company, "deleted").await;
        let done = eventually("the end of the work", async || {
            let job = company.objects.find(JOB, ("default", "evicted")).await?;
            (condition(&job, "Complete") == "True").then_some(job)
        });
        assert_eq!(failed(&done.await), 0, "an eviction was counted as a failure");
        company.end().await;
    });
}

/// Waits until a job's program has gone on on another node, and says at which step.
async fn resumed(company: &Company, job: &str, old: &str) -> u64 {
    let (place, step) = story::until_it_resumes(company, job).await;
    assert_ne!(place.node, old, "{job} was started on the dying node");
    step
}

async fn unharmed(company: &Company, job: &str) {
    let job = company.objects.find(JOB, ("default", job)).await.unwrap();
    let over = ["Failed", "FailureTarget", "Complete", "SuccessCriteriaMet"];
    assert!(over.iter().all(|end| condition(&job, end) != "True"), "the job is over: {job:#}");
    assert_eq!(failed(&job), 0, "our delete was counted as a failure: {job:#}");
}

fn failed(job: &Value) -> i64 {
    number(job, "/status/failed").unwrap_or_default()
}
