//! The agent killed, and the store taken away, between two writes of a save, over real processes.
//!
//! `LIFEBOAT_KILLS=1000` goes on until there were so many kills of each.
#![allow(clippy::print_stderr, reason = "what is skipped is skipped aloud")]

use std::path::PathBuf;

use lifeboat_chaos::crew;
use lifeboat_chaos::kill;
use lifeboat_chaos::kill::Victim;

/// The folder of our own programs; `None`, said aloud, where they were not built.
fn programs() -> Option<PathBuf> {
    crew::built().inspect_err(|missing| eprintln!("skipped: {missing}")).ok()
}

/// How often to kill: once after each write unless somebody asks for more.
fn kills() -> Option<u32> {
    let wanted = std::env::var("LIFEBOAT_KILLS").ok()?;
    Some(wanted.parse().expect("LIFEBOAT_KILLS is a number"))
}

/// After each write in turn: a whole checkpoint or none lies in the bucket, the agent saves what is
/// left, and the successor goes on at the step that was saved.
async fn after_each_write(victim: Victim, kills: Option<u32>) {
    let Some(programs) = programs() else { return };
    let (mut number, mut done) = (1, 0);
    while kills.is_none_or(|wanted| done < wanted) {
        let killed = kill::after_write(&programs, victim, number).await.unwrap();
        assert_eq!(killed.resumed, killed.saved, "{victim:?} after write {number}");
        done += killed.kills;
        if killed.kills == 0 {
            // The save was over before: chunks, the manifest of the rank, the manifest over all.
            assert!(number > kill::WRITES_MIN, "a save took {number} writes");
            if kills.is_none() {
                break;
            }
            eprintln!("{done} kills of {victim:?}");
            number = 0;
        }
        number += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_between_any_two_writes_leaves_a_whole_checkpoint_or_none() {
    after_each_write(Victim::Agent, kills()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_dies_with_an_answer_leaves_a_whole_checkpoint_or_none() {
    // Two are enough beside the other test: each takes as long as an interruption.
    after_each_write(Victim::Store, kills().or(Some(2))).await;
}
