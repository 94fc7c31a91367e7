//! What is added to a pod at its admission: pod in, pod out, and whatever could not be added.

use std::collections::BTreeMap;

use lifeboat_domain::ids::JobKey;
use lifeboat_domain::workload::Hold;
use lifeboat_domain::workload::Mode;
use lifeboat_domain::workload::Wishes;
use serde_json::Value;
use serde_json::json;

use crate::crd::DRIVER;
use crate::crd::marks;

/// What our volume is called, where the pod has none of ours.
const VOLUME: &str = "lifeboat";
/// Where the socket's folder is mounted.
const SOCKET_FOLDER: &str = "/run/lifeboat";
/// The socket in that folder.
const SOCKET: &str = "agent.sock";
/// Annotations that the agent reads from the volume, too: kubelet hands them over before the API
/// server has told anything.
const ATTRIBUTES: [&str; 6] = [
    marks::CHECKPOINT,
    marks::CHECKPOINT_PATH,
    marks::CHECKPOINT_HTTP,
    marks::JOB_KEY,
    marks::RESTORE,
    marks::PRIORITY,
];
/// Longest text of what could not be done.
const TEXT_MAX: usize = 1024;

/// What a pod is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    /// The pod as it should be.
    pub pod: Value,
    /// What it asked for and cannot have, each a sentence for a person.
    pub faults: Vec<String>,
}

/// Gives a pod what it needs to be saved: volume, environment, job key and hold.
///
/// `key` is what stands above the pod makes of a job key; `hold` is for pods that do not say.
/// Whatever the pod has already is left as it is, so the same again changes nothing.
pub fn inject(pod: &Value, key: &Result<JobKey, String>, hold: Hold) -> Injection {
    let mut injection = Injection { pod: pod.clone(), faults: Vec::new() };
    let (wishes, faults) = Wishes::read(&annotations(pod));
    if !wishes.mode.is_protected() {
        return injection;
    }
    injection.faults.extend(faults.iter().map(ToString::to_string));
    if pod["spec"]["os"]["name"] == "windows" {
        injection.faults.push("Windows is not supported".to_owned());
    } else {
        injection.stamp(key);
        injection.hold(wishes.hold.unwrap_or(hold));
        injection.bring(&wishes);
    }
    injection.note();
    injection
}

/// What a container is told of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Where the socket is.
    Socket,
    /// Nothing: it finds its files where it looks for them.
    Nothing,
}

/// Whether a pod's job key is for us to find.
pub fn needs_key(pod: &Value) -> bool {
    let said = annotations(pod);
    let (wishes, _) = Wishes::read(&said);
    wishes.mode.is_saved_by_us() && !said.contains_key(marks::JOB_KEY)
}

impl Injection {
    /// The operations (RFC 6902) that make the one pod the other.
    pub fn patch(&self, before: &Value) -> json_patch::Patch {
        json_patch::diff(before, &self.pod)
    }

    fn stamp(&mut self, key: &Result<JobKey, String>) {
        if !needs_key(&self.pod) {
            return;
        }
        match key {
            Ok(key) => self.annotate(marks::JOB_KEY, key.as_str()),
            Err(why) => self.faults.push(format!(
                "nothing is restored: {why}. Name a job key by the annotation `{}`",
                marks::JOB_KEY
            )),
        }
    }

    /// Holds the pod, with our mark beside, unless anybody has set the annotation already.
    fn hold(&mut self, hold: Hold) {
        if hold == Hold::Always && !annotations(&self.pod).contains_key(marks::DO_NOT_DISRUPT) {
            self.annotate(marks::DO_NOT_DISRUPT, "true");
            self.annotate(marks::HELD, marks::AT_ADMISSION);
        }
    }

    fn bring(&mut self, wishes: &Wishes) {
        match wishes.mode {
            Mode::Sdk => self.mount(SOCKET_FOLDER, Told::Socket),
            Mode::Directory => match &wishes.path {
                Some(path) => self.mount(path.trim_end_matches('/'), Told::Nothing),
                None => self.faults.push(format!(
                    "no folder is saved. Name it by the annotation `{}`",
                    marks::CHECKPOINT_PATH
                )),
            },
            // It is called, or saves itself; of one that is misspelt nothing is known.
            Mode::Http | Mode::Sigterm | Mode::Unknown | Mode::None => (),
        }
    }

    /// Brings our volume into the pod, and into each of its containers.
    fn mount(&mut self, path: &str, told: Told) {
        let Some(volume) = self.volume() else { return };
        let mut faults = Vec::new();
        for container in workloads(&mut self.pod) {
            let name = text(&container["name"]).to_owned();
            let mounts = list(container, "volumeMounts");
            let there = mounts.iter().find(|mount| mounts_at(mount, path));
            if let Some(other) = there.filter(|mount| mount["name"] != volume.as_str()) {
                faults.push(format!(
                    "volume `{}` is mounted at `{path}`, where container `{name}` needs Lifeboat's",
                    text(&other["name"]),
                ));
                continue;
            }
            // Whoever mounts it elsewhere knows why.
            let own = mounts.iter().find(|mount| mount["name"] == volume.as_str());
            let at = own.map_or(path, |mount| text(&mount["mountPath"])).to_owned();
            if own.is_none() {
                mounts.push(json!({"name": volume, "mountPath": path}));
            }
            if told == Told::Socket {
                tell(container, &at);
            }
        }
        self.faults.extend(faults);
    }

    /// The name of our volume, which is made if it is not there.
    fn volume(&mut self) -> Option<String> {
        let attributes = attributes(&self.pod);
        let volumes = list(&mut self.pod["spec"], "volumes");
        if let Some(ours) = volumes.iter_mut().find(|one| one["csi"]["driver"] == DRIVER) {
            for (key, value) in attributes {
                let said = &mut ours["csi"]["volumeAttributes"][key];
                if said.is_null() {
                    *said = json!(value);
                }
            }
            return Some(text(&ours["name"]).to_owned());
        }
        if volumes.iter().any(|one| one["name"] == VOLUME) {
            let fault = format!("a volume of another kind is called `{VOLUME}`. Call it otherwise");
            self.faults.push(fault);
            return None;
        }
        let csi = json!({"driver": DRIVER, "volumeAttributes": attributes});
        volumes.push(json!({"name": VOLUME, "csi": csi}));
        Some(VOLUME.to_owned())
    }

    /// Leaves what could not be done on the pod, where the leader finds it and tells it by an Event:
    /// a pod has no UID yet that an Event could name.
    fn note(&mut self) {
        let said = self.faults.join("; ").chars().take(TEXT_MAX).collect::<String>();
        if !said.is_empty() {
            self.annotate(marks::NOT_INJECTED, &said);
        } else if let Some(map) = self.pod["metadata"]["annotations"].as_object_mut() {
            map.remove(marks::NOT_INJECTED);
        }
    }

    fn annotate(&mut self, key: &str, value: &str) {
        self.pod["metadata"]["annotations"][key] = json!(value);
    }
}

/// Tells the SDK where its socket is, unless the container says so itself.
fn tell(container: &mut Value, folder: &str) {
    let socket = format!("{}/{SOCKET}", folder.trim_end_matches('/'));
    let environment = list(container, "env");
    for (name, value) in [("LIFEBOAT_SOCKET", socket.as_str()), ("LIFEBOAT_REQUIRED", "1")] {
        if !environment.iter().any(|one| one["name"] == name) {
            environment.push(json!({"name": name, "value": value}));
        }
    }
}

fn annotations(pod: &Value) -> BTreeMap<String, String> {
    let map = pod["metadata"]["annotations"].as_object().into_iter().flatten();
    map.map(|(key, value)| (key.clone(), text(value).to_owned())).collect()
}

/// What the agent is told by the volume: annotations, and what it would otherwise read of the pod.
fn attributes(pod: &Value) -> BTreeMap<&'static str, String> {
    let said = annotations(pod);
    let ours = ATTRIBUTES.iter().filter_map(|key| Some((*key, said.get(*key)?.clone())));
    let spec = &pod["spec"];
    let grace = spec["terminationGracePeriodSeconds"].as_u64();
    let grace = grace.map(|seconds| (marks::GRACE_ATTRIBUTE, seconds.to_string()));
    let priority = spec["priority"].as_i64();
    let priority = priority.map(|priority| (marks::POD_PRIORITY_ATTRIBUTE, priority.to_string()));
    ours.chain(grace).chain(priority).collect()
}

/// Containers that run as long as the pod: init containers that come to an end save nothing.
fn workloads(pod: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = pod["spec"].as_object_mut().into_iter().flatten();
    let lists = spec.filter_map(|(key, value)| {
        let keeps: fn(&Value) -> bool = match key.as_str() {
            "containers" => |_| true,
            "initContainers" => |one| one["restartPolicy"] == "Always",
            _ => return None,
        };
        Some(value.as_array_mut()?.iter_mut().filter(move |one| keeps(one)))
    });
    lists.flatten()
}

/// The list under this key, which is made if it is not there.
fn list<'a>(object: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    let list = &mut object[key];
    if !list.is_array() {
        *list = json!([]);
    }
    list.as_array_mut().expect("it was just made one")
}

fn mounts_at(mount: &Value, path: &str) -> bool {
    text(&mount["mountPath"]).trim_end_matches('/') == path
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests;
