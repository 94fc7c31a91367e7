//! The same interruption on real nodes: pods that kubelet runs, Lifeboat as its chart installs it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use serde_json::Value;
use tokio::time::Instant;

use crate::company::objects::INTERRUPTION;
use crate::company::objects::JOB;
use crate::company::objects::POD;
use crate::demo::screen;
use crate::installation;
use crate::installation::Installation;
use crate::installation::Means;
use crate::installation::Purpose;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::name;
use crate::world::cluster::object::number;
use crate::world::cluster::object::text;

/// The instance's end, counted from the notice; sooner than EC2's two minutes, as nobody waits for them.
const LEAD: Duration = Duration::from_mins(1);
/// Steps that each trainer takes in all, a step each tenth of a second.
const STEPS: &str = "120";
/// State of each trainer.
const BYTES: &str = "25165824";
/// Two that share a GPU.
const JOBS: [&str; 2] = ["train-a", "train-b"];
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(150);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// What trainers write that people want to see.
const TOLD: &[&str] = &["asked", "parked", "durable", "exiting", "training", "resumed", "finished"];

/// What came of it.
#[derive(Debug)]
pub struct Seen {
    /// Workloads that the record says are off the GPU.
    pub released: usize,
    /// Each Job.
    pub works: Vec<Work>,
}

/// A Job whose node was taken.
#[derive(Debug)]
pub struct Work {
    /// Its name.
    pub job: &'static str,
    /// At which step its state was saved.
    pub saved: Option<u64>,
    /// With which code the container ended that was saved.
    pub exit: Option<i64>,
    /// Whether the Job was done by then.
    pub done_early: bool,
    /// At which step it went on.
    pub resumed: Option<u64>,
    /// The digest of its state at the end.
    pub digest: String,
    /// The digest of a run that nothing interrupts.
    pub reference: String,
    /// Pods that the Job counts as failed.
    pub failed: i64,
}

impl Seen {
    /// Whether all of it is as it should be.
    pub fn is_well(&self) -> bool {
        let well = |work: &Work| {
            let steps = work.saved.is_some() && work.saved == work.resumed;
            let ends = work.exit == Some(143) && !work.done_early && work.failed == 0;
            steps && ends && work.digest == work.reference
        };
        self.released == self.works.len() && self.works.iter().all(well)
    }
}

/// Shows it; says whether everything was seen.
pub async fn run(programs: &Path) -> anyhow::Result<bool> {
    let means = match Means::here(programs) {
        Ok(means) => means,
        Err(missing) => bail!("{missing}"),
    };
    let folder = tempfile::Builder::new().prefix("lifeboat-demo-").tempdir()?;
    screen::say("A control plane, and `helm install lifeboat`");
    let mut site = Installation::new(means, folder.path()).await?;
    let seen = play(&mut site, &|line| screen::say(line)).await?;
    for work in &seen.works {
        let Work { job, saved, resumed, failed, .. } = work;
        let same = if work.digest == work.reference { "bit for bit" } else { "NOT THE SAME" };
        screen::say(&format!(
            "{job}: saved at step {}, resumed at step {}, {failed} pods failed, its end as that of a \
             run that nothing interrupted: {same}",
            shown(*saved),
            shown(*resumed)
        ));
    }
    screen::say(if seen.is_well() { "\nAll of it was seen." } else { "\nNot all of it was seen." });
    Ok(seen.is_well())
}

fn shown(step: Option<u64>) -> String {
    step.map_or_else(|| "none".to_owned(), |step| step.to_string())
}

/// Plays it on an installation without nodes, telling what happens as it does.
pub async fn play(site: &mut Installation, say: &dyn Fn(&str)) -> anyhow::Result<Seen> {
    site.add_node(Purpose::System).await?;
    let first = site.add_node(Purpose::Work(2)).await?;
    let teller = Teller::new(say);
    until(&format!("{first} is ready"), async || site.is_ready(&first).await.then_some(())).await?;
    say(&format!("{first} is ready: one GPU in two slices"));
    until("the agent", async || site.agent_on(&first).await).await?;
    say("the agent serves its volume");
    for job in JOBS {
        site.objects.create(installation::job(job, "sdk", &arguments(job))).await?;
    }
    let mut pods = BTreeMap::new();
    for job in JOBS {
        let look = async || {
            teller.tell(site);
            pod_that_said(site, job, &first, "step").await
        };
        pods.insert(job, until(&format!("{job} trains"), look).await?);
    }
    teller.starts_at_now();
    say("EC2 takes the instance in 60 s: a message in the queue, a notice in its metadata");
    site.warn(&first, LEAD);
    let mut works = Vec::new();
    for job in JOBS {
        works.push(saved(site, &teller, job, &pods[job]).await?);
    }
    let released = until("the GPU is free", async || {
        teller.tell(site);
        released(site, &first).await
    });
    let released = released.await?;
    teller.told(&format!("the record says that {released} workloads are off the GPU"));
    site.take(&first);
    teller.told(&format!("{first} is gone, and everything on it"));
    let second = site.add_node(Purpose::Work(2)).await?;
    let programs = site.programs().to_owned();
    for work in &mut works {
        finished(site, &teller, work, &second).await?;
        work.reference = reference(&programs, work.job)?;
    }
    Ok(Seen { released, works })
}

/// Waits until a pod was saved and has ended.
async fn saved(
    site: &Installation,
    teller: &Teller<'_>,
    job: &'static str,
    pod: &str,
) -> anyhow::Result<Work> {
    let look = async || {
        teller.tell(site);
        said(site, pod, "durable")
    };
    let line = until(&format!("{job} is saved"), look).await?;
    let ended = async || {
        teller.tell(site);
        // A pod that has ended is soon gone.
        match site.objects.find(POD, ("default", pod)).await {
            Some(pod) => number(&pod, "/status/containerStatuses/0/state/terminated/exitCode"),
            None => said(site, pod, "exiting")?["code"].as_i64(),
        }
    };
    let exit = until(&format!("{job} has ended"), ended).await?;
    let found = site.objects.find(JOB, ("default", job)).await.unwrap_or_default();
    Ok(Work {
        job,
        saved: line["step"].as_u64(),
        exit: Some(exit),
        done_early: condition(&found, "Complete") == "True",
        resumed: None,
        digest: String::new(),
        reference: String::new(),
        failed: 0,
    })
}

/// Waits until the successor is done.
async fn finished(
    site: &Installation,
    teller: &Teller<'_>,
    work: &mut Work,
    node: &str,
) -> anyhow::Result<()> {
    let job = work.job;
    let look = async || {
        teller.tell(site);
        pod_that_said(site, job, node, "finished").await
    };
    let pod = until(&format!("{job} is done on {node}"), look).await?;
    work.resumed = said(site, &pod, "resumed").and_then(|line| line["step"].as_u64());
    let line = said(site, &pod, "finished").unwrap_or_default();
    line["digest"].as_str().unwrap_or_default().clone_into(&mut work.digest);
    let complete = async || {
        let job = site.objects.find(JOB, ("default", job)).await?;
        (condition(&job, "Complete") == "True").then_some(job)
    };
    let done = until(&format!("the Job {job} is complete"), complete).await?;
    work.failed = number(&done, "/status/failed").unwrap_or_default();
    Ok(())
}

fn arguments(job: &str) -> [&str; 8] {
    ["--name", job, "--steps", STEPS, "--bytes", BYTES, "--log", "/dev/stdout"]
}

/// The digest of a run that nothing interrupts.
fn reference(programs: &Path, job: &str) -> anyhow::Result<String> {
    let words = ["--name", job, "--steps", STEPS, "--bytes", BYTES, "--reference"];
    let output = Command::new(programs.join("examples/trainer")).args(words).output()?;
    Ok(String::from_utf8(output.stdout).context("no digest")?.trim().to_owned())
}

/// How many workloads of a node's record left the GPU, once all of them have.
async fn released(site: &Installation, node: &str) -> Option<usize> {
    let record = site.objects.find(INTERRUPTION, ("", &site.instance_of(node))).await?;
    let workloads = record.pointer("/status/workloads")?.as_object()?;
    let all = workloads.values().all(|one| !text(one, "/release/releasedAt").is_empty());
    all.then_some(workloads.len())
}

/// The pod of a Job on a node, once its program has said this.
async fn pod_that_said(site: &Installation, job: &str, node: &str, event: &str) -> Option<String> {
    let pods = site.objects.list(POD, &format!("job={job}")).await;
    let there = pods.iter().filter(|pod| text(pod, "/spec/nodeName") == node);
    let mut names = there.map(|pod| name(pod).to_owned());
    names.find(|pod| said(site, pod, event).is_some())
}

/// What the program in a pod wrote first under this name.
pub fn said(site: &Installation, pod: &str, event: &str) -> Option<Value> {
    let lines = site.said_by(pod);
    let mut parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.find(|line| line["event"] == event)
}

/// Waits until `look` finds something.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("not seen in {} s: {what}", PATIENCE.as_secs());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Tells each thing once that a trainer wrote, and when, counted from the notice.
struct Teller<'a> {
    say: &'a dyn Fn(&str),
    notice: RefCell<Option<Instant>>,
    told: RefCell<BTreeMap<String, usize>>,
}

impl<'a> Teller<'a> {
    fn new(say: &'a dyn Fn(&str)) -> Self {
        Self { say, notice: RefCell::default(), told: RefCell::default() }
    }

    fn starts_at_now(&self) {
        self.notice.replace(Some(Instant::now()));
    }

    fn told(&self, line: &str) {
        let since = self.notice.borrow().map(|notice| notice.elapsed().as_secs_f64());
        match since {
            Some(since) => (self.say)(&format!("T+{since:5.1} s  {line}")),
            None => (self.say)(&format!("           {line}")),
        }
    }

    fn tell(&self, site: &Installation) {
        for (pod, lines) in site.said() {
            let known = self.told.borrow_mut().insert(pod.clone(), lines.len()).unwrap_or(0);
            for line in lines.iter().skip(known) {
                if let Some(line) = worth_telling(line) {
                    self.told(&format!("{pod}: {line}"));
                }
            }
        }
    }
}

/// `durable at step 41`, of a line that people want to see.
fn worth_telling(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).ok()?;
    let event = line["event"].as_str().filter(|event| TOLD.contains(event))?;
    let step = line["step"].as_u64().or_else(|| line["from"].as_u64());
    let code = line["code"].as_i64().map(|code| format!(" with {code}")).unwrap_or_default();
    let step = step.map(|step| format!(" at step {step}")).unwrap_or_default();
    Some(format!("{event}{step}{code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_a_line_is_its_event_and_its_step() {
        let told = worth_telling(r#"{"event":"durable","step":41,"unix_ms":1}"#);
        assert_eq!(told.as_deref(), Some("durable at step 41"));
        assert_eq!(worth_telling(r#"{"event":"step","step":41}"#), None);
        assert_eq!(worth_telling("lifeboat: note"), None);
    }
}
