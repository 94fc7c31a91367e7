//! What has to be seen in the demo, and whether it was.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_checkpoint::manifest::Kind;
use serde::Serialize;
use serde_json::Value;

use crate::cast::Cast;
use crate::cast::NODE;
use crate::cast::Trainer;
use crate::chronicle::Event;
use crate::chronicle::OURS;
use crate::chronicle::What;
use crate::demo::LEAD;
use crate::demo::SLOW;
use crate::demo::STATE_BYTES;
use crate::demo::TRAINERS;
use crate::world::World;
use crate::world::cluster::object;
use crate::world::cluster::resource::INTERRUPTION;
use crate::world::cluster::resource::NODE_CLAIM;

/// Those that share a GPU.
const SHARERS: [&str; 2] = ["train-a", "train-b"];

/// One thing that has to be seen.
#[derive(Debug, Serialize)]
pub(super) struct Observation {
    /// What.
    pub(super) what: String,
    /// Whether it was.
    pub(super) seen: bool,
    /// When, or by what.
    pub(super) detail: String,
}

/// One trainer's way through the interruption; times are seconds since the notice.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Row {
    /// Its Job.
    pub(super) workload: String,
    /// Size of its state.
    pub(super) bytes: Option<u64>,
    /// The step that was saved.
    pub(super) saved_step: Option<u64>,
    /// When its manifest was committed.
    pub(super) durable_at: Option<f64>,
    /// Time left then.
    pub(super) to_spare: Option<f64>,
    /// How it was told to end, and when.
    pub(super) ended: Option<String>,
    /// Its exit code.
    pub(super) exit_code: Option<i64>,
    /// What proved that it is over.
    pub(super) proof: Option<String>,
    /// The step at which its successor went on.
    pub(super) resumed_step: Option<u64>,
    /// When.
    pub(super) resumed_at: Option<f64>,
}

/// The demo's events, with questions about them.
struct Seen<'a> {
    events: &'a [Event],
    noticed: Timestamp,
}

/// Whether the first act has come to its end: all finished, and the record closed.
pub(super) fn is_over(events: &[Event], world: &World) -> bool {
    let finished = |job: &str| {
        events.iter().any(|event| said_by(event, job).is_some_and(|line| line.contains("finished")))
    };
    let closed = world.read(|state| {
        let mut records = state.cluster.list(INTERRUPTION);
        records.any(|record| !object::text(record, "/status/closedAt").is_empty())
    });
    closed && TRAINERS.iter().all(|trainer| finished(trainer.job))
}

/// How many trainers have a manifest.
pub(super) fn durable(events: &[Event]) -> usize {
    let saved = |trainer: &&Trainer| events.iter().any(|event| is_save(event, trainer.job));
    TRAINERS.iter().filter(saved).count()
}

/// What has to be seen in the first act.
pub(super) fn first(
    cast: &Cast,
    noticed: Timestamp,
    digests: &BTreeMap<String, String>,
) -> Vec<Observation> {
    let events = cast.events();
    let seen = Seen { events: &events, noticed };
    let instance = cast.instance_of(NODE);
    let record = cast.world.read(|state| {
        let record = state.cluster.find(INTERRUPTION, &instance);
        record.map_or(Value::Null, |record| Value::clone(record))
    });
    let mut all = vec![
        Seen::heard(&record),
        seen.fenced(),
        seen.held(),
        seen.message_after_record(),
        seen.claim_first(),
        seen.claim_avoids(&cast.world),
    ];
    for Trainer { job, .. } in TRAINERS {
        all.push(seen.saved(job));
    }
    all.push(seen.sharers_first());
    all.push(seen.drain_held());
    for Trainer { job, .. } in TRAINERS {
        all.push(seen.ended(job));
        all.push(seen.exited(job));
        all.push(seen.released(job));
        all.push(seen.resumed(job));
        all.push(seen.exact(job, digests));
    }
    all.push(seen.waited());
    all.push(seen.nothing_on_the_node());
    all.push(seen.agent_last(&instance));
    all.push(closed(&record));
    all
}

/// What has to be seen in the second act.
pub(super) fn second(cast: &Cast, noticed: Timestamp) -> Vec<Observation> {
    let events = cast.events();
    let seen = Seen { events: &events, noticed };
    let mut all: Vec<Observation> =
        TRAINERS.iter().map(|trainer| seen.saved(trainer.job)).collect();
    let silent = !events.iter().any(|event| {
        event.at >= noticed
            && matches!(event.what, What::Recorded { .. } | What::Taint { taint: "fence", .. })
    });
    all.push(observation("nobody could reach the API server: no record, no fence", silent, ""));
    all
}

/// The table of the trainers.
pub(super) fn rows(events: &[Event], noticed: Timestamp) -> Vec<Row> {
    let seen = Seen { events, noticed };
    TRAINERS.iter().map(|trainer| seen.row(trainer.job)).collect()
}

fn observation(what: impl Into<String>, seen: bool, detail: impl Into<String>) -> Observation {
    Observation { what: what.into(), seen, detail: detail.into() }
}

fn closed(record: &Value) -> Observation {
    let phase = object::text(record, "/status/phase");
    let slack = object::text(record, "/status/slack");
    let bytes = object::number(record, "/status/bytes").unwrap_or(0);
    let whole = bytes >= i64::try_from(STATE_BYTES).unwrap_or(i64::MAX) * 3;
    observation(
        "the record closes as Released, with bytes and margin",
        phase == "Released" && !slack.is_empty() && whole,
        format!("{phase}, {bytes} bytes, slack {slack}"),
    )
}

impl Seen<'_> {
    fn heard(record: &Value) -> Observation {
        let signals = record.pointer("/spec/signals").and_then(Value::as_object);
        let sources: Vec<&str> =
            signals.into_iter().flatten().map(|(_, it)| object::text(it, "/source")).collect();
        let both = sources.contains(&"queue") && sources.contains(&"imds");
        observation(
            "the notice is heard by queue and IMDS; one record shows both",
            both,
            sources.join(", "),
        )
    }

    fn fenced(&self) -> Observation {
        let at = self.first(|event| {
            matches!(&event.what, What::Taint { node, taint: "fence", came: true, cordoned: true }
                if node == NODE)
        });
        self.timed("the node is tainted and cordoned in one write", at)
    }

    fn held(&self) -> Observation {
        let held = |job: &str| {
            self.first(
                |event| matches!(&event.what, What::Hold { pod, came: true, .. } if of(pod, job)),
            )
        };
        let all: Option<Vec<usize>> = TRAINERS.iter().map(|trainer| held(trainer.job)).collect();
        self.timed("the protected pods are held", all.and_then(|all| all.into_iter().max()))
    }

    fn message_after_record(&self) -> Observation {
        let record = self.first(|event| matches!(event.what, What::Recorded { .. }));
        let deleted = self.first(|event| {
            matches!(&event.what, What::Message { queue, fate: "deleted", .. }
                if queue == crate::programs::QUEUE)
        });
        let ordered =
            matches!((record, deleted), (Some(record), Some(deleted)) if record < deleted);
        self.timed_if("the message is gone only after the record", deleted, ordered)
    }

    fn claim_first(&self) -> Observation {
        let claim = self.claim();
        let ended = self
            .first(|event| matches!(&event.what, What::Ending { by, .. } if by.starts_with(OURS)));
        let before = match (claim, ended) {
            (Some(claim), Some(ended)) => claim < ended,
            (Some(_), None) => true,
            (None, _) => false,
        };
        self.timed_if("a replacement is asked for before any eviction", claim, before)
    }

    fn claim(&self) -> Option<usize> {
        self.first(|event| {
            matches!(&event.what, What::Claim { came: true, by, .. } if by.starts_with(OURS))
        })
    }

    fn claim_avoids(&self, world: &World) -> Observation {
        let name = self.claim().map(|index| &self.events[index].what);
        let Some(What::Claim { claim, .. }) = name else {
            return observation(
                "the claim leaves out the reclaimed type in its zone",
                false,
                "no claim",
            );
        };
        let values = world.read(|state| {
            let found = state.cluster.find(NODE_CLAIM, claim);
            let requirements =
                found.map(|found| object::items(found, "/spec/requirements").to_vec());
            requirements.unwrap_or_default()
        });
        let offers = |key: &str, value: &str| {
            let requirement = values.iter().find(|it| object::text(it, "/key") == key);
            requirement.is_none_or(|it| {
                let listed = object::items(it, "/values").iter().any(|listed| listed == value);
                listed != (object::text(it, "/operator") == "NotIn")
            })
        };
        let same = offers("node.kubernetes.io/instance-type", "g5.12xlarge")
            && offers("topology.kubernetes.io/zone", "us-east-2a");
        observation("the claim leaves out the reclaimed type in its zone", !same, claim.clone())
    }

    fn saved(&self, job: &str) -> Observation {
        let at = self.first(|event| is_save(event, job));
        let late = at.is_some_and(|at| self.events[at].at > self.noticed + LEAD);
        self.timed_if(&format!("{job} is durable, its manifest committed last"), at, !late)
    }

    fn sharers_first(&self) -> Observation {
        let durable: Option<Vec<usize>> =
            SHARERS.iter().map(|job| self.first(|event| is_save(event, job))).collect();
        let ended = SHARERS.iter().filter_map(|job| self.ending(job)).min();
        let both = durable.and_then(|all| all.into_iter().max());
        let ordered = matches!((both, ended), (Some(both), Some(ended)) if both < ended);
        self.timed_if("both sharers of the GPU are durable before either is ended", both, ordered)
    }

    fn drain_held(&self) -> Observation {
        let taint = self.first(|event| {
            matches!(&event.what, What::Taint { taint: "disrupted taint", came: true, node, .. }
                if node == NODE)
        });
        let theirs = self.first(|event| {
            matches!(&event.what, What::Ending { pod, by, .. }
                if by == "karpenter" && TRAINERS.iter().any(|trainer| of(pod, trainer.job)))
        });
        let held = taint.is_some() && theirs.is_none();
        self.timed_if("Karpenter's own drain begins, and finds the pods held", taint, held)
    }

    fn ending(&self, job: &str) -> Option<usize> {
        self.first(|event| {
            matches!(&event.what, What::Ending { pod, by, .. } if of(pod, job) && by.starts_with(OURS))
        })
    }

    fn ended(&self, job: &str) -> Observation {
        let at = self.ending(job);
        let verb = at.map(|at| self.events[at].what.to_string());
        if job == SLOW {
            let deleted = verb.as_deref().is_some_and(|verb| verb.starts_with("delete"));
            let left = at.map(|at| (self.noticed + LEAD).duration_since(self.events[at].at));
            // Its grace of 15 s and the margin of 5 s: the last moment at which it fits.
            let last = left.is_some_and(|left| (17.0..=21.0).contains(&left.as_secs_f64()));
            let what =
                format!("{job}, behind a budget, is deleted at the last moment its grace fits");
            return self.timed_if(&what, at, deleted && last);
        }
        let durable = self.first(|event| is_save(event, job));
        let evicted = verb.as_deref().is_some_and(|verb| verb.starts_with("evict"));
        let after = matches!((durable, at), (Some(durable), Some(at)) if durable < at);
        self.timed_if(&format!("{job} is evicted by us, once it is durable"), at, evicted && after)
    }

    fn exited(&self, job: &str) -> Observation {
        let at =
            self.first(|event| matches!(&event.what, What::Exited { pod, .. } if of(pod, job)));
        let code = at.and_then(|at| match &self.events[at].what {
            What::Exited { code, .. } => Some(*code),
            _ => None,
        });
        let complete =
            self.first(|event| matches!(&event.what, What::Job { job: done, .. } if done == job));
        let finished = self
            .first(|event| said_by(event, job).is_some_and(|line| line.contains(" finished at")));
        let early = match (complete, finished) {
            (Some(complete), Some(finished)) => complete < finished,
            (Some(_), None) => true,
            (None, _) => false,
        };
        self.timed_if(
            &format!("{job} exits with 143, and its Job is not complete"),
            at,
            code == Some(143) && !early,
        )
    }

    fn released(&self, job: &str) -> Observation {
        let at = self.first(|event| {
            matches!(&event.what, What::Released { pod, still_there: 0, .. } if of(pod, job))
        });
        self.timed(&format!("NVML shows the slice of {job} empty, twice in a row"), at)
    }

    fn resumed(&self, job: &str) -> Observation {
        let row = self.row(job);
        let same = row.resumed_step.is_some() && row.resumed_step == row.saved_step;
        let detail = match (row.resumed_step, row.resumed_at, &row.proof) {
            (Some(step), Some(at), proof) => {
                format!("T+{at:.1} s at step {step}, proof {}", proof.as_deref().unwrap_or("none"))
            }
            _ => "not seen".to_owned(),
        };
        observation(format!("{job} goes on at the step where it stopped"), same, detail)
    }

    fn exact(&self, job: &str, digests: &BTreeMap<String, String>) -> Observation {
        let finished = self.events.iter().find_map(|event| {
            let line = said_by(event, job)?;
            line.contains(" finished at").then(|| line.rsplit(' ').next().unwrap_or_default())
        });
        let expected = digests.get(job).map(String::as_str);
        let same = finished.is_some() && finished == expected;
        let detail: String = finished.unwrap_or("not finished").chars().take(16).collect();
        observation(
            format!("{job} ends bit for bit like a run that nothing interrupted"),
            same,
            detail,
        )
    }

    fn waited(&self) -> Observation {
        let at = self.first(|event| {
            said_by(event, SLOW).is_some_and(|line| line.contains(" waits to resume"))
        });
        self.timed(&format!("the successor of {SLOW} waits for the proof"), at)
    }

    fn nothing_on_the_node(&self) -> Observation {
        let fenced = self.first(|event| matches!(&event.what, What::Taint { taint: "fence", .. }));
        let bound =
            self.events.iter().skip(fenced.unwrap_or(0)).find_map(|event| match &event.what {
                What::Bound { pod, node } if node == NODE => Some(pod.clone()),
                _ => None,
            });
        let what = "nothing starts on the dying node";
        observation(what, fenced.is_some() && bound.is_none(), bound.unwrap_or_default())
    }

    fn agent_last(&self, instance: &str) -> Observation {
        let agent = self.first(|event| {
            matches!(&event.what, What::Exited { pod, .. } if pod.starts_with("lifeboat-agent"))
        });
        let going = self.first(|event| {
            matches!(&event.what, What::Instance { instance: going, .. } if going == instance)
        });
        let ordered = matches!((agent, going), (Some(agent), Some(going)) if agent < going);
        self.timed_if("the agent ends last, and the instance goes only then", going, ordered)
    }

    fn row(&self, job: &str) -> Row {
        let mut row = Row { workload: job.to_owned(), ..Row::default() };
        for event in self.events.iter().filter(|event| event.at >= self.noticed) {
            let after = self.after(event);
            match &event.what {
                What::Committed(commit) if commit.kind == Kind::Save && of(&commit.pod, job) => {
                    let first = row.durable_at.is_none();
                    if first {
                        (row.bytes, row.saved_step) = (Some(commit.bytes), Some(commit.step));
                        row.durable_at = Some(after);
                        row.to_spare = Some(LEAD.as_secs_f64() - after);
                    }
                }
                What::Ending { pod, verb, by, .. } if of(pod, job) && by.starts_with(OURS) => {
                    row.ended.get_or_insert(format!("{verb} T+{after:.1} s"));
                }
                What::Exited { pod, code, .. } if of(pod, job) => {
                    row.exit_code.get_or_insert(*code);
                }
                What::Said(_) => self.take_resumed(&mut row, event, job),
                _ => (),
            }
        }
        row
    }

    /// `train-a-x resumed at step 42 (Released)`
    fn take_resumed(&self, row: &mut Row, event: &Event, job: &str) {
        let Some(line) = said_by(event, job) else { return };
        let Some((_, rest)) = line.split_once(" resumed at step ") else { return };
        let (step, proof) = rest.split_once(" (").unwrap_or((rest, ")"));
        row.resumed_step = step.parse().ok();
        row.proof = Some(proof.trim_end_matches(')').to_owned());
        row.resumed_at = Some(self.after(event));
    }

    fn first(&self, is: impl Fn(&Event) -> bool) -> Option<usize> {
        self.events.iter().position(|event| event.at >= self.noticed && is(event))
    }

    fn timed(&self, what: &str, at: Option<usize>) -> Observation {
        self.timed_if(what, at, true)
    }

    fn timed_if(&self, what: &str, at: Option<usize>, holds: bool) -> Observation {
        let detail = match at {
            Some(at) => format!("T+{:.1} s", self.after(&self.events[at])),
            None => "not seen".to_owned(),
        };
        observation(what, at.is_some() && holds, detail)
    }

    fn after(&self, event: &Event) -> f64 {
        let after = event.at.duration_since(self.noticed);
        Duration::try_from(after).unwrap_or_default().as_secs_f64()
    }
}

/// Whether a pod is one of a Job's.
fn of(pod: &str, job: &str) -> bool {
    pod.strip_prefix(job).is_some_and(|rest| rest.starts_with('-'))
}

fn is_save(event: &Event, job: &str) -> bool {
    matches!(&event.what, What::Committed(commit) if commit.kind == Kind::Save && of(&commit.pod, job))
}

fn said_by<'a>(event: &'a Event, job: &str) -> Option<&'a str> {
    match &event.what {
        What::Said(line) if of(line.split(' ').next().unwrap_or_default(), job) => Some(line),
        _ => None,
    }
}
