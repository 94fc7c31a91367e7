//! What a pod's status says of each of its containers.

use jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use crate::world::cluster::object::items;
use crate::world::cluster::object::second;
use crate::world::cluster::object::set;
use crate::world::cluster::object::text;

/// One container in the status of its pod.
#[derive(Clone, Copy)]
pub(super) struct Entry<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// How often it was started before.
    pub(super) restarts: u32,
}

impl Entry<'_> {
    /// It runs.
    pub(super) fn running(&self, pod: &mut Value, now: Timestamp, id: &str) {
        let state = json!({ "running": { "startedAt": second(now) } });
        let mut entry = self.entry(&state);
        entry["ready"] = json!(true);
        entry["started"] = json!(true);
        entry["containerID"] = json!(format!("containerd://{id}"));
        self.put(pod, entry);
    }

    /// It ended.
    pub(super) fn terminated(&self, pod: &mut Value, now: Timestamp, code: i32) {
        let reason = if code == 0 { "Completed" } else { "Error" };
        let state = json!({ "terminated": {
            "exitCode": code, "reason": reason, "finishedAt": second(now),
        } });
        let entry = self.entry(&state);
        self.put(pod, entry);
    }

    fn entry(&self, state: &Value) -> Value {
        json!({
            "name": self.name, "restartCount": self.restarts, "ready": false, "started": false,
            "state": state, "image": "", "imageID": "",
        })
    }

    fn put(&self, pod: &mut Value, mut entry: Value) {
        let path = self.path(pod);
        let mut statuses = items(pod, path).to_vec();
        match statuses.iter_mut().find(|known| text(known, "/name") == self.name) {
            Some(known) => {
                if let Some(last) = known.pointer("/state/terminated") {
                    entry["lastState"] = json!({ "terminated": last });
                }
                *known = entry;
            }
            None => statuses.push(entry),
        }
        set(pod, path, Value::Array(statuses));
    }

    fn path(&self, pod: &Value) -> &'static str {
        let init = items(pod, "/spec/initContainers").iter();
        if init.into_iter().any(|container| text(container, "/name") == self.name) {
            return "/status/initContainerStatuses";
        }
        "/status/containerStatuses"
    }
}
