//! The eviction subresource: deletion that asks the PodDisruptionBudgets first.

use std::sync::Arc;

use serde_json::Value;
use serde_json::json;

use crate::world::cluster::Caller;
use crate::world::cluster::Cluster;
use crate::world::cluster::Target;
use crate::world::cluster::delete::DeleteOptions;
use crate::world::cluster::object::Condition;
use crate::world::cluster::object::condition;
use crate::world::cluster::object::is_deleting;
use crate::world::cluster::object::namespace;
use crate::world::cluster::object::number;
use crate::world::cluster::object::second;
use crate::world::cluster::object::set;
use crate::world::cluster::object::set_condition;
use crate::world::cluster::object::text;
use crate::world::cluster::refusal::Cause;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::BUDGET;
use crate::world::cluster::selector::selects;
use crate::world::cluster::write::Door;

impl Cluster {
    /// Evicts a pod.
    ///
    /// # Errors
    /// 404; 409 where a precondition does not hold; 429 where a budget does not allow it, or where
    /// its status is older than itself; 500 where more than one budget covers the pod.
    pub fn evict(
        &mut self,
        caller: &Caller,
        target: &Target,
        options: &DeleteOptions,
    ) -> Result<(), Refusal> {
        let pod = self.expect(target)?;
        options.check(target, &pod)?;
        if !passes_budgets(&pod) {
            self.charge(&pod)?;
        }
        self.mark(caller, target)?;
        // What was checked above has a newer version by now.
        let options = DeleteOptions { version: None, ..options.clone() };
        self.delete(caller, target, &options).map(drop)
    }

    /// Sets the condition by which a Job's failure policy knows an eviction. The fields are the
    /// caller's, but the request is the server's own.
    fn mark(&mut self, caller: &Caller, target: &Target) -> Result<(), Refusal> {
        let now = self.now();
        let own = Caller { agent: "kube-apiserver".to_owned(), manager: caller.manager.clone() };
        let marked = self.edit(&own, (target, Door::Status), |pod| {
            let (kind, status) = ("DisruptionTarget", "True");
            let (reason, message) = ("EvictionByEvictionAPI", "Eviction API: evicting");
            set_condition(pod, Condition { kind, status, reason, message }, now);
        });
        marked.map(drop)
    }

    /// Takes one disruption from the budget that covers a pod.
    fn charge(&mut self, pod: &Value) -> Result<(), Refusal> {
        let covering: Vec<Arc<Value>> = self
            .list(BUDGET)
            .filter(|budget| namespace(budget) == namespace(pod))
            .filter(|budget| selects(budget.pointer("/spec/selector"), pod))
            .cloned()
            .collect();
        let budget = match covering.as_slice() {
            [] => return Ok(()),
            [budget] => budget,
            [_, _, ..] => {
                let why = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
                return Err(Refusal::internal(why));
            }
        };
        if condition(pod, "Ready") != "True" && may_lose_unready(budget) {
            return Ok(());
        }
        let allowed = allowed(budget)?;
        let target = Target::of(BUDGET, budget);
        let (name, now) = (text(pod, "/metadata/name").to_owned(), second(self.now()));
        self.edit(&Caller::named("kube-apiserver"), (&target, Door::Back), |budget| {
            budget["status"]["disruptionsAllowed"] = json!(allowed - 1);
            set(budget, &format!("/status/disruptedPods/{name}"), json!(now));
        })?;
        Ok(())
    }
}

/// Pods that no budget counts: not yet started, ended, or on their way already.
fn passes_budgets(pod: &Value) -> bool {
    let phase = text(pod, "/status/phase");
    ["Pending", "Succeeded", "Failed"].contains(&phase) || is_deleting(pod)
}

fn may_lose_unready(budget: &Value) -> bool {
    let (have, want) = (
        number(budget, "/status/currentHealthy").unwrap_or_default(),
        number(budget, "/status/desiredHealthy").unwrap_or_default(),
    );
    let always = text(budget, "/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow";
    always || (have >= want && want > 0)
}

/// How many disruptions a budget allows; at least one.
fn allowed(budget: &Value) -> Result<i64, Refusal> {
    let name = text(budget, "/metadata/name");
    let observed = number(budget, "/status/observedGeneration").unwrap_or_default();
    if observed < number(budget, "/metadata/generation").unwrap_or_default() {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Err(too_many(cause, Some(10)));
    }
    let allowed = number(budget, "/status/disruptionsAllowed").unwrap_or_default();
    if allowed > 0 {
        return Ok(allowed);
    }
    let want = number(budget, "/status/desiredHealthy").unwrap_or_default();
    let have = number(budget, "/status/currentHealthy").unwrap_or_default();
    let cause =
        format!("The disruption budget {name} needs {want} healthy pods and has {have} currently");
    Err(too_many(cause, None))
}

fn too_many(cause: String, retry_after_seconds: Option<u32>) -> Refusal {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut refusal = Refusal::new(429, "TooManyRequests", message);
    refusal.retry_after_seconds = retry_after_seconds;
    let reason = "DisruptionBudget".to_owned();
    refusal.causes.push(Cause { reason, message: cause, field: None });
    refusal
}
