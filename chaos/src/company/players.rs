//! Runs the pods' containers: the agent as the process that it is, trainers as virtual workloads or
//! as processes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use serde_json::Value;
use serde_json::json;

use crate::crew::ApiServer;
use crate::crew::Crew;
use crate::processes::Processes;
use crate::programs;
use crate::world::World;
use crate::world::cluster::object::annotation;
use crate::world::cluster::object::items;
use crate::world::cluster::object::name;
use crate::world::runtime::Container;
use crate::world::runtime::Launch;
use crate::world::runtime::Runtime;
use crate::world::workloads::Virtual;

/// Pod annotation: the arguments of a real trainer, which is then run in place of a virtual one.
pub const TRAINER: &str = "chaos.lifeboat.dev/trainer";

/// The agents' processes, by node.
pub(super) type Agents = Arc<Mutex<BTreeMap<String, u32>>>;

/// Runs containers.
pub(super) struct Players {
    pub(super) crew: Crew,
    pub(super) server: ApiServer,
    pub(super) processes: Processes,
    pub(super) workloads: Virtual,
    pub(super) logs: PathBuf,
    pub(super) agents: Agents,
}

impl Runtime for Players {
    fn start(&self, world: &World, launch: Launch) -> Box<dyn Container> {
        if launch.container == programs::AGENT {
            return self.agent(world, launch);
        }
        let arguments = annotation(&launch.pod, TRAINER).to_owned();
        if arguments.is_empty() {
            return self.workloads.start(world, launch);
        }
        let log = self.logs.join(format!("{}.jsonl", name(&launch.pod)));
        let mut words = vec![self.crew.programs.join("examples/trainer").display().to_string()];
        words.extend(arguments.split(' ').map(str::to_owned));
        words.extend(["--log".to_owned(), log.display().to_string()]);
        self.processes.start(world, with_command(launch, &words, &BTreeMap::new()))
    }
}

impl Players {
    fn agent(&self, world: &World, launch: Launch) -> Box<dyn Container> {
        let node = launch.node.clone();
        let (words, environment) = self.crew.agent(&launch, &self.server);
        let started = self.processes.start(world, with_command(launch, &words, &environment));
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.extend(started.pids().into_iter().map(|pid| (node.clone(), pid)));
        started
    }
}

/// The same launch, with this command and these variables for its container.
fn with_command(
    mut launch: Launch,
    words: &[String],
    environment: &BTreeMap<String, String>,
) -> Launch {
    let own = environment.iter().map(|(name, value)| json!({ "name": name, "value": value }));
    let containers = launch.pod.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
    for spec in containers.into_iter().flatten() {
        if spec["name"] == launch.container.as_str() {
            let variables = items(spec, "/env").iter().cloned().chain(own.clone());
            spec["env"] = variables.collect();
            spec["command"] = json!(words);
        }
    }
    launch
}
