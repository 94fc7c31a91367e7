//! The agent killed between two writes of a save, over real processes.
#![allow(clippy::print_stderr, reason = "what is skipped is skipped aloud")]

use std::path::PathBuf;

use lifeboat_chaos::crew;
use lifeboat_chaos::kill;

/// The folder of our own programs; `None`, said aloud, where they were not built.
fn programs() -> Option<PathBuf> {
    crew::built().inspect_err(|missing| eprintln!("skipped: {missing}")).ok()
}

/// After each write in turn: a whole checkpoint or none lies in the bucket, the agent that comes
/// back saves what is left, and the successor goes on at the step that was saved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_between_any_two_writes_leaves_a_whole_checkpoint_or_none() {
    let Some(programs) = programs() else { return };
    for number in 1.. {
        let killed = kill::after_write(&programs, number).await.unwrap();
        assert_eq!(killed.resumed, killed.saved, "after write {number}");
        if killed.kills == 0 {
            // The save was over before: chunks, the manifest of the rank, the manifest over all.
            assert!(number > kill::WRITES_MIN, "a save took {number} writes");
            break;
        }
    }
}
