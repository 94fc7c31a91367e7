//! Lifeboat on real nodes, installed by its chart: kubelet, containerd and runc do what elsewhere our own
//! kubelet does.

use std::path::PathBuf;

use lifeboat_chaos::crew;
use lifeboat_chaos::demo::real;
use lifeboat_chaos::installation::Installation;
use lifeboat_chaos::installation::Means;
use lifeboat_chaos::installation::Purpose;

use crate::conformance;
use crate::theater::eventually;

/// Two trainers in pods share a GPU by slices. Their node is taken: both are saved, neither Job counts
/// a failure or is done, and both go on at their step on the next node, to the same bits.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn work_on_a_real_node_is_saved_and_goes_on_on_the_next() {
    let Some(means) = means() else { return };
    let folder = Folder::new();
    let mut site = Installation::new(means, &folder.path).await.unwrap();
    let seen = real::play(&mut site, &|line| eprintln!("{line}")).await.unwrap();
    assert!(seen.is_well(), "{seen:#?}");
}

/// The agent in its pod passes the conformance suite for what it serves of the interface.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_agents_volumes_are_as_the_interface_wants_them() {
    let Some(means) = means() else { return };
    let folder = Folder::new();
    let mut site = Installation::new(means, &folder.path).await.unwrap();
    let name = site.add_node(Purpose::Work(1)).await.unwrap();
    eventually("the agent", async || site.agent_on(&name).await).await;
    let node = site.node(&name).unwrap();
    let kubelet = node.state().join("kubelet");
    let said = conformance::of_the_agent(&node.enter().unwrap(), &kubelet, &site.suite()).await;
    let said = said.unwrap_or_else(|said| panic!("{said}"));
    let line = said.lines().find(|line| line.contains("Passed")).unwrap();
    assert!(line.contains("0 Failed") && !line.contains(" 0 Passed"), "{line}");
}

/// What a test needs; `None`, said aloud, where it is not here.
fn means() -> Option<Means> {
    let here = crew::built().and_then(|programs| Means::here(&programs));
    here.inspect_err(|missing| eprintln!("skipped: {missing}")).ok()
}

/// A folder that stays, and is named, where a test fails.
struct Folder {
    path: PathBuf,
    whole: Option<tempfile::TempDir>,
}

impl Folder {
    fn new() -> Self {
        let whole = tempfile::Builder::new().prefix("lifeboat-node-").tempdir().unwrap();
        Self { path: whole.path().to_owned(), whole: Some(whole) }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(whole) = self.whole.take().filter(|_| std::thread::panicking()) {
            eprintln!("logs and nodes: {}", whole.keep().display());
        }
    }
}
