//! What a script does to the world while it runs.

use std::time::Duration;

use jiff::SignedDuration;
use serde_json::Value;
use serde_json::json;

use super::KARPENTER_QUEUE;
use super::RETURN;
use super::Scenario;
use crate::faults::Fault;
use crate::programs::AGENT;
use crate::programs::QUEUE;
use crate::script::Line;
use crate::script::ScriptError;
use crate::world::State;
use crate::world::cluster::Caller;
use crate::world::cluster::Target;
use crate::world::cluster::delete::DeleteOptions;
use crate::world::cluster::object;
use crate::world::cluster::resource::INTERRUPTION;
use crate::world::cluster::resource::NAMESPACE;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::NODE_CLAIM;
use crate::world::cluster::resource::POD;
use crate::world::cluster::write::Door;
use crate::world::instances::Notice;
use crate::world::instances::NoticeAction;
use crate::world::instances::events::EventKind;

impl Scenario {
    /// Does what a line says.
    pub(super) fn act(&mut self, line: &Line) -> Result<(), ScriptError> {
        self.chronicle().act(&format!("* {}", line.words.join(" ")));
        match line.word(0)? {
            "announce" => self.announce(line),
            "recommend" => self.tell(line, |_| EventKind::RebalanceRecommendation),
            "retire" => self.tell(line, |now| EventKind::ScheduledChange {
                start: now + SignedDuration::from_mins(30),
            }),
            "take" => self.take(line),
            "fault" => self.fault(line),
            "crash" => self.crash(line),
            "newer-record" | "older-record" => self.record(line),
            "kill" => self.kill(line),
            "drain" => self.drain(line),
            "delete-claim" => self.delete_claim(line),
            "message" => self.message(line),
            "annotate" => self.annotate(line),
            "sold-out" => crate::stage::put(&self.world, std::path::Path::new(""), line),
            _ => Err(line.fault("nobody does this")),
        }
    }

    /// `announce NODE [by queue|imds|both] [in D] [queue-after D] [imds-after D] [twice]`
    fn announce(&mut self, line: &Line) -> Result<(), ScriptError> {
        let instance = self.instance(line)?;
        let ahead = line.duration("in")?.unwrap_or(Duration::from_mins(2));
        let by = line.option("by").unwrap_or("both");
        let imds_after = line.duration("imds-after")?.unwrap_or_default();
        let now = self.world.now();
        let kind = EventKind::SpotInterruption(NoticeAction::Terminate);
        let event = self.world.update(|state| {
            let notice = Notice {
                action: NoticeAction::Terminate,
                at: now,
                time: now + ahead,
                imds_from: (by != "queue").then_some(now + imds_after),
            };
            state.instances.announce(&instance, notice);
            state.instances.event(&instance, kind, now).to_string()
        });
        self.send(KARPENTER_QUEUE, &event);
        if by != "imds" {
            let after = line.duration("queue-after")?.unwrap_or_default();
            let times = if line.says("twice") { 2 } else { 1 };
            let world = self.world.clone();
            self.tasks.spawn(async move {
                tokio::time::sleep(after).await;
                for _ in 0..times {
                    world.update(|state| state.queues.send(QUEUE, &event, world_now(state))).ok();
                }
            });
        }
        Ok(())
    }

    /// `recommend NODE`, `retire NODE`
    fn tell(
        &mut self,
        line: &Line,
        kind: impl Fn(jiff::Timestamp) -> EventKind,
    ) -> Result<(), ScriptError> {
        let instance = self.instance(line)?;
        let now = self.world.now();
        let event = self.world.update(|state| {
            if line.words[0] == "recommend" && !line.says("queue-only") {
                state.instances.recommend(&instance, now);
            }
            state.instances.event(&instance, kind(now), now).to_string()
        });
        self.send(QUEUE, &event);
        Ok(())
    }

    /// `take NODE`: EC2 takes the instance at once.
    fn take(&mut self, line: &Line) -> Result<(), ScriptError> {
        let (instance, now) = (self.instance(line)?, self.world.now());
        self.world.update(|state| state.instances.take(&instance, now));
        Ok(())
    }

    /// `fault kube away until 120s`; times count from now.
    fn fault(&mut self, line: &Line) -> Result<(), ScriptError> {
        let text = line.words[1..].join(" ");
        let fault: Fault = text.parse().map_err(|error| line.fault(&format!("{error}")))?;
        self.faults.add_from_now(fault);
        Ok(())
    }

    /// `crash controller N [for D] [after K]`, `crash agent NODE [if-there]`; `after`: with its K-th write from now.
    fn crash(&mut self, line: &Line) -> Result<(), ScriptError> {
        if line.word(1)? == "controller" {
            return self.crash_controller(line);
        }
        let node = line.word(2)?;
        let pod = self.world.read(|state| {
            let mut pods = state.cluster.list(POD);
            let agent = pods.find(|pod| {
                object::text(pod, "/spec/nodeName") == node
                    && object::namespace(pod) == "lifeboat-system"
            });
            agent.map(|pod| object::name(pod).to_owned())
        });
        let killed = pod.is_some_and(|pod| self.programs.kill(&format!("{pod}/{AGENT}")));
        if killed || line.says("if-there") {
            return Ok(());
        }
        Err(line.fault("no agent runs on that node"))
    }

    fn crash_controller(&mut self, line: &Line) -> Result<(), ScriptError> {
        let away = line.duration("for")?.unwrap_or(RETURN);
        let number: usize =
            line.word(2)?.parse().map_err(|_| line.fault("a controller has a number"))?;
        let kill = self.controllers.get(&number).cloned();
        let kill = kill.ok_or_else(|| line.fault("there is no such controller"))?;
        let Some(writes) = line.number("after")? else {
            kill.send_replace(away);
            return Ok(());
        };
        let (world, name) = (self.world.clone(), format!("lifeboat-controller-{number}"));
        let made = |state: &State| writes_of(state, &name);
        let due = world.read(made) + usize::try_from(writes).unwrap_or(usize::MAX);
        self.tasks.spawn(async move {
            world.until(|state| (writes_of(state, &name) >= due).then_some(())).await;
            kill.send_replace(away);
        });
        Ok(())
    }

    /// `newer-record NODE`, `older-record NODE`: as another minor version writes it.
    fn record(&mut self, line: &Line) -> Result<(), ScriptError> {
        let target = Target::in_cluster(INTERRUPTION, &self.instance(line)?);
        let other = Caller::named("another-version");
        let newer = line.word(0)? == "newer-record";
        self.world.update(|state| {
            let edited = state.cluster.edit(&other, (&target, Door::Back), |record| {
                if newer { add_unknown(record) } else { take_optional(record) }
            });
            edited.map(drop).map_err(|refusal| line.fault(&refusal.message))
        })
    }

    /// `kill JOB`: its container dies, as of a fault of its own.
    fn kill(&mut self, line: &Line) -> Result<(), ScriptError> {
        let name = format!("{}-", line.word(1)?);
        if self.programs.kill(&name) { Ok(()) } else { Err(line.fault("nothing of it runs")) }
    }

    /// `drain NODE`: what `kubectl drain` does, trying again every five seconds.
    fn drain(&mut self, line: &Line) -> Result<(), ScriptError> {
        let node = line.word(1)?.to_owned();
        let world = self.world.clone();
        let target = Target::in_cluster(NODE, &node);
        world.update(|state| {
            let kubectl = Caller::named("kubectl");
            let cordoned = state.cluster.edit(&kubectl, (&target, Door::Main), |node| {
                object::set(node, "/spec/unschedulable", json!(true));
            });
            drop(cordoned);
        });
        self.tasks.spawn(async move {
            loop {
                let left = world.update(|state| evict_all(state, &node));
                if left == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
        Ok(())
    }

    /// `delete-claim NODE`: what consolidation, drift and expiry do.
    fn delete_claim(&mut self, line: &Line) -> Result<(), ScriptError> {
        let node = line.word(1)?;
        let claim = self.world.read(|state| {
            let mut claims = state.cluster.list(NODE_CLAIM);
            let found = claims.find(|claim| object::text(claim, "/status/nodeName") == node);
            found.map(|claim| object::name(claim).to_owned())
        });
        let claim = claim.ok_or_else(|| line.fault("the node has no claim"))?;
        let target = Target::in_cluster(NODE_CLAIM, &claim);
        let karpenter = Caller::named("karpenter");
        self.world.update(|state| {
            let deleted = state.cluster.delete(&karpenter, &target, &DeleteOptions::default());
            deleted.map(drop).map_err(|refusal| line.fault(&refusal.message))
        })
    }

    /// `message unreadable|foreign|elsewhere NODE|stranger`
    fn message(&mut self, line: &Line) -> Result<(), ScriptError> {
        let now = self.world.now();
        let kind = EventKind::SpotInterruption(NoticeAction::Terminate);
        let event = |state: &mut State, id: &str| state.instances.event(id, kind, now);
        let body = match line.word(1)? {
            "unreadable" => "{ this is no JSON".to_owned(),
            "foreign" => {
                self.changed_event(line, |event| event["account"] = json!("999999999999"))?
            }
            "elsewhere" => {
                self.changed_event(line, |event| event["region"] = json!("eu-west-1"))?
            }
            "stranger" => {
                let stranger = "i-0000000000000dead";
                let known = self.world.read(|state| {
                    state.instances.iter().next().map(|instance| instance.id.clone())
                });
                let known = known.ok_or_else(|| line.fault("there is no instance at all"))?;
                let event = self.world.update(|state| event(state, &known));
                event.to_string().replace(&known, stranger)
            }
            _ => return Err(line.fault("no message is of that kind")),
        };
        self.send(QUEUE, &body);
        Ok(())
    }

    fn changed_event(
        &self,
        line: &Line,
        change: impl FnOnce(&mut Value),
    ) -> Result<String, ScriptError> {
        let name = line.word(2)?;
        let instance = self.instance_of(name).ok_or_else(|| line.fault("there is no such node"))?;
        let now = self.world.now();
        let kind = EventKind::SpotInterruption(NoticeAction::Terminate);
        let mut event = self.world.update(|state| state.instances.event(&instance, kind, now));
        change(&mut event);
        Ok(event.to_string())
    }

    /// `annotate node NAME key=value`, `annotate namespace NAME key=value`
    fn annotate(&mut self, line: &Line) -> Result<(), ScriptError> {
        let (key, value) =
            line.word(3)?.split_once('=').ok_or_else(|| line.fault("`key=value` is due"))?;
        let resource = if line.word(1)? == "node" { NODE } else { NAMESPACE };
        let target = Target::in_cluster(resource, line.word(2)?);
        let kubectl = Caller::named("kubectl");
        self.world.update(|state| {
            let edited = state.cluster.edit(&kubectl, (&target, Door::Main), |object| {
                object["metadata"]["annotations"][key] = json!(value);
            });
            edited.map(drop).map_err(|refusal| line.fault(&refusal.message))
        })
    }

    fn send(&self, queue: &str, body: &str) {
        let now = self.world.now();
        let sent = self.world.update(|state| state.queues.send(queue, body, now));
        sent.expect("the queues of a scenario exist");
    }

    fn instance(&self, line: &Line) -> Result<String, ScriptError> {
        self.instance_of(line.word(1)?).ok_or_else(|| line.fault("there is no such node"))
    }

    fn instance_of(&self, node: &str) -> Option<String> {
        self.world.read(|state| Some(state.machines.get(node)?.instance.clone()))
    }
}

/// Writes of a program that the API server took, its Lease and Events apart.
fn writes_of(state: &State, name: &str) -> usize {
    let own = state.cluster.audit.writes().iter().filter(|write| {
        let plural = write.target.resource.plural;
        write.caller.agent == name && plural != "leases" && plural != "events"
    });
    own.count()
}

/// Fields, and a signal of a kind and source, that nobody here knows. The signal itself has no unknown
/// field: the API server would prune it with the next write, and refuse that as a change.
fn add_unknown(record: &mut Value) {
    record["spec"]["weather"] = json!("fair");
    record["spec"]["signals"]["oracle-comet"] = json!({
        "source": "oracle", "kind": "comet", "time": "2026-01-01T00:00:20Z",
        "heardAt": "2026-01-01T00:00:20Z", "heardBy": "another-version",
    });
    let signals = record["spec"]["signals"].as_object_mut();
    for signal in signals.into_iter().flat_map(|signals| signals.values_mut()) {
        signal["confidence"] = json!({ "percent": 98, "by": ["oracle"] });
    }
    record["status"]["mood"] = json!("calm");
}

/// Fields that were not there before.
fn take_optional(record: &mut Value) {
    for path in ["/spec", "/status"] {
        let Some(part) = record.pointer_mut(path).and_then(Value::as_object_mut) else { continue };
        for field in ["instanceType", "conditions", "slack", "bytes", "holds"] {
            part.remove(field);
        }
    }
}

fn world_now(state: &State) -> jiff::Timestamp {
    state.cluster.now()
}

/// Evicts what `kubectl drain --ignore-daemonsets` would, and says how many pods are left.
fn evict_all(state: &mut State, node: &str) -> usize {
    let pods: Vec<Target> = state
        .cluster
        .list(POD)
        .filter(|pod| object::text(pod, "/spec/nodeName") == node)
        .filter(|pod| object::text(pod, "/metadata/ownerReferences/0/kind") != "DaemonSet")
        .map(|pod| Target::of(POD, pod))
        .collect();
    for pod in &pods {
        let ending = state.cluster.get(pod).is_some_and(|pod| object::is_deleting(pod));
        if !ending {
            let kubectl = Caller::named("kubectl");
            state.cluster.evict(&kubectl, pod, &DeleteOptions::default()).ok();
        }
    }
    pods.len()
}
