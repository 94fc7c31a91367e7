//! Collection beside a save, a restore and a pin: at every request of the one, all of the other.
//!
//! The programs' own code asks the simulated S3, whose requests are let through one by one: so many of
//! the one, so many of the other, then the rest of the first, then the rest of the second.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use lifeboat::commands::checkpoints::remove;
use lifeboat::commands::checkpoints::remove::IfHeld;
use lifeboat::data::collect::LetGo;
use lifeboat::data::collect::let_go;
use lifeboat_chaos::checkers;
use lifeboat_checkpoint::key::Object;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_domain::ids::Epoch;
use lifeboat_domain::workload::Restore;

mod folder;
mod turns;

use folder::Came;
use folder::Deed;
use folder::Folder;
use turns::Order;
use turns::Turns;

/// What a save is made of: some of it lies in the bucket, named by the newest state, and some is new.
const STATE: [u8; 4] = [1, 2, 8, 9];
const HOUR: Duration = Duration::from_hours(1);

/// A job key with a history: three states, of which the newest names chunks of the first, a save that
/// was never committed, and a claim. All of it is older than an hour.
async fn history(folder: &Folder) -> u64 {
    let mut last = folder.claim(0, None).await;
    let mut known = BTreeMap::new();
    for state in [[1, 2, 3, 4], [1, 2, 5, 6], [1, 2, 7, 8]] {
        folder.pass_time(2 * HOUR).await;
        let saved = folder.save(last, &known, &state).await.unwrap();
        (last, known) = (saved.epoch, saved.digests);
    }
    folder.chunk_of_an_attempt_that_failed(50).await;
    folder.pass_time(2 * HOUR).await;
    last
}

/// Collects again and again, hours apart, until nothing is left to do; a manifest never names what is
/// not there, and in the end nothing lies there that nobody names.
async fn settle(folder: &Folder, why: &str) {
    for _ in 0..6 {
        folder.pass_time(HOUR + Duration::from_mins(1)).await;
        folder.collect(1).await.unwrap();
        folder.check(why);
    }
    let survey = folder.survey().await;
    let named = survey.contents.named.unwrap();
    let there: BTreeSet<_> = folder
        .objects()
        .into_iter()
        .filter_map(|object| match object {
            Object::Chunk(address) => Some(address),
            Object::Manifest(_) | Object::Rank { .. } | Object::Pin(_) => None,
        })
        .collect();
    assert_eq!(there, named, "{why}: what is there is what is named");
}

/// Plays two processes in one order over a fresh history, and lets the collection have its way then.
async fn play(order: Order, plot: &Plot<'_>) -> (Folder, [Came; 2], bool) {
    let folder = Folder::new();
    let last = history(&folder).await;
    if plot.superseded {
        // Epochs that were let go of an hour ago: chunks are deleted in the very pass that is played.
        folder.collect(1).await.unwrap();
        folder.pass_time(HOUR + Duration::from_mins(1)).await;
    }
    let turns = Turns::new();
    let (one, other) = (folder.behind(&turns.gate(0)), folder.behind(&turns.gate(1)));
    let played = turns.play(order, plot.one.run(&one, last), plot.other.run(&other, last));
    let (came, other, early) = Box::pin(played).await;
    let why = format!("{order:?}");
    folder.check(&why);
    settle(&folder, &why).await;
    (folder, [came, other], early)
}

/// Two processes, and what was before them.
struct Plot<'a> {
    one: Deed<'a>,
    other: Deed<'a>,
    superseded: bool,
}

/// Plays two processes in every order there is of two changes from one to the other.
async fn in_every_order(plot: Plot<'_>, check: impl AsyncFn(&Folder, &[Came; 2], Order)) {
    let mut played = 0;
    for begins in [0, 1] {
        for first in 0..60 {
            let mut over = false;
            for second in 0..60 {
                let order = Order { begins, first, second };
                let (folder, came, early) = Box::pin(play(order, &plot)).await;
                check(&folder, &came, order).await;
                played += 1;
                if early {
                    over = second == 0;
                    break;
                }
            }
            if over {
                break;
            }
        }
    }
    assert!(played > 40, "{played} orders were played");
}

/// A deed beside the collection, with chunks that are deleted meanwhile.
fn beside_a_collection(one: Deed<'_>) -> Plot<'_> {
    Plot { one, other: Deed::Collect, superseded: true }
}

#[tokio::test(start_paused = true)]
async fn a_save_is_whole_whatever_is_collected_between_its_requests() {
    for superseded in [true, false] {
        for state in [&STATE, &[1, 2, 7, 8]] {
            let plot = Plot { one: Deed::Save(state), other: Deed::Collect, superseded };
            in_every_order(plot, async |folder, came, order| {
                assert!(matches!(came[0], Came::Saved(Ok(_))), "{order:?}: {came:?}");
                assert_eq!(folder.restore(Restore::Auto).await.unwrap(), state, "{order:?}");
            })
            .await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_save_that_knows_of_no_chunks_is_whole_too() {
    let plot = beside_a_collection(Deed::SaveAll(&STATE));
    in_every_order(plot, async |folder, came, order| {
        assert!(matches!(came[0], Came::Saved(Ok(_))), "{order:?}: {came:?}");
        assert_eq!(folder.restore(Restore::Auto).await.unwrap(), STATE, "{order:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_newest_state_is_restored_and_saved_again_whatever_is_collected_meanwhile() {
    let plot = beside_a_collection(Deed::Resume(Restore::Auto, Some(&STATE)));
    in_every_order(plot, async |folder, came, order| {
        assert!(matches!(came[0], Came::Restored(Ok(_))), "{order:?}: {came:?}");
        assert_eq!(folder.restore(Restore::Auto).await.unwrap(), STATE, "{order:?}");
    })
    .await;
}

/// An older state, which is let go of in the very moment: it is restored, claimed and saved again as
/// a whole, or refused by name before anything is claimed.
#[tokio::test(start_paused = true)]
async fn an_older_state_is_restored_as_a_whole_or_refused_before_anything_is_claimed() {
    for again in [None, Some(&[1, 2, 3, 9][..])] {
        let one = Deed::Resume(Restore::Epoch(Epoch(2)), again);
        let plot = Plot { one, other: Deed::Collect, superseded: false };
        in_every_order(plot, async |folder, came, order| {
            let Came::Restored(came) = &came[0] else { panic!("{came:?}") };
            let expected: &[u8] = match (came, again) {
                (Ok(_), Some(state)) => state,
                (Ok(_), None) => &[1, 2, 3, 4],
                (Err(_), _) => &[1, 2, 7, 8],
            };
            let found = folder.restore(Restore::Auto).await.unwrap();
            assert_eq!(found, expected, "{order:?}: {came:?}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_is_pinned_in_the_moment_is_kept_or_the_pin_is_refused() {
    let plot = Plot { one: Deed::Pin(2), other: Deed::Collect, superseded: false };
    in_every_order(plot, async |folder, came, order| {
        let Came::Said(came) = &came[0] else { panic!("{came:?}") };
        let kind = if came.is_ok() { Kind::Save } else { Kind::Collected };
        assert_eq!((folder.kind(2), folder.is_pinned(2)), (kind, came.is_ok()), "{order:?}");
    })
    .await;
}

/// Who knows the chunks of a state that is removed never commits after that.
#[tokio::test(start_paused = true)]
async fn a_save_beside_the_removal_of_its_state_is_whole_or_superseded() {
    let plot = Plot { one: Deed::Save(&STATE), other: Deed::Remove(4), superseded: false };
    in_every_order(plot, async |folder, came, order| {
        let Came::Saved(saved) = &came[0] else { panic!("{came:?}") };
        let expected = if saved.is_ok() { STATE } else { [1, 2, 5, 6] };
        let found = folder.restore(Restore::Auto).await.unwrap();
        assert_eq!(found, expected, "{order:?}: {came:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_restore_beside_the_removal_of_its_state_leaves_a_state_to_go_on_from() {
    let one = Deed::Resume(Restore::Auto, Some(&STATE));
    let plot = Plot { one, other: Deed::Remove(4), superseded: false };
    in_every_order(plot, async |folder, came, order| {
        let found = folder.restore(Restore::Auto).await.unwrap();
        assert!(found == STATE || found == [1, 2, 5, 6], "{order:?}: {came:?}: {found:?}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_state_that_a_live_pod_goes_on_from_is_removed_only_if_that_is_asked_for() {
    let folder = Folder::new();
    history(&folder).await;
    let before = folder.keys();
    let refused = folder.remove(4, IfHeld::Refuse, remove::Wish::Remove).await.unwrap_err();
    assert!(refused.to_string().contains("--supersede-holder"), "{refused}");
    let said = folder.remove(4, IfHeld::Supersede, remove::Wish::Say).await.unwrap();
    assert!(said.contains("goes on from epoch 3") && said.contains("would be removed"), "{said}");
    assert_eq!(folder.keys(), before);
    folder.remove(4, IfHeld::Supersede, remove::Wish::Remove).await.unwrap();
    assert_eq!(folder.restore(Restore::Auto).await.unwrap(), [1, 2, 5, 6]);
    folder.check("removed");
    // Nobody is asked about a state that is not the newest; a pinned one must be unpinned first.
    folder.pin(2).await.unwrap();
    let refused = folder.remove(2, IfHeld::Refuse, remove::Wish::Remove).await.unwrap_err();
    assert!(refused.to_string().contains("is pinned"), "{refused}");
    let gone = folder.remove(9, IfHeld::Refuse, remove::Wish::Remove).await.unwrap_err();
    assert!(gone.to_string().contains("does not exist"), "{gone}");
}

#[tokio::test(start_paused = true)]
async fn what_goes_is_what_only_superseded_epochs_name_and_what_was_never_committed() {
    let folder = Folder::new();
    let last = history(&folder).await;
    assert_eq!((last, folder.chunks()), (4, 9));
    let first = folder.collect(1).await.unwrap();
    // The chunk of the attempt that failed goes at once, those of epochs an hour later.
    assert_eq!((first.epochs, first.chunks), (2, 1));
    folder.pass_time(Duration::from_mins(59)).await;
    assert!(folder.collect(1).await.unwrap().is_empty());
    folder.pass_time(Duration::from_mins(2)).await;
    let second = folder.collect(1).await.unwrap();
    assert_eq!((second.epochs, second.chunks, second.ranks), (0, 4, 2));
    assert_eq!(folder.chunks(), 4);
    assert_eq!(folder.restore(Restore::Auto).await.unwrap(), [1, 2, 7, 8]);
    // Numbers stay taken: a life of long ago comes second still.
    let other = folder.of_pod("other");
    for number in 1..=last {
        assert!(other.save(number - 1, &BTreeMap::new(), &[6]).await.is_err(), "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_is_named_or_pinned_is_not_let_go_of() {
    let folder = Folder::new();
    history(&folder).await;
    assert_eq!(let_go(&folder.history, 4, folder.by()).await.unwrap(), LetGo::Wanted);
    folder.pin(3).await.unwrap();
    assert_eq!(let_go(&folder.history, 3, folder.by()).await.unwrap(), LetGo::Wanted);
    assert_eq!(let_go(&folder.history, 2, folder.by()).await.unwrap(), LetGo::Collected);
    assert_eq!(let_go(&folder.history, 2, folder.by()).await.unwrap(), LetGo::Absent);
    assert_eq!(let_go(&folder.history, 99, folder.by()).await.unwrap(), LetGo::Absent);
    assert_eq!(
        [2, 3, 4].map(|epoch| folder.kind(epoch)),
        [Kind::Collected, Kind::Save, Kind::Save]
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_key_goes_while_a_manifest_of_it_cannot_be_read() {
    for (key, bytes, said) in [
        ("epochs/0000000003/MANIFEST.json", "{\"format\":2}", "newer Lifeboat"),
        ("epochs/0000000003/MANIFEST.json", "{", "cannot be read"),
        ("epochs/0000000005/MANIFEST.json", "newer kind", "newer Lifeboat"),
        ("epochs/0000000003/MANIFEST.v2.json", "{}", "none that this version writes"),
        ("pins/everything", "{}", "none that this version writes"),
    ] {
        let folder = Folder::new();
        history(&folder).await;
        folder.put(key, bytes).await;
        folder.pass_time(2 * HOUR).await;
        let before = folder.keys();
        let refused = folder.collect(1).await.unwrap_err();
        let text = lifeboat::error::Chain(&refused).to_string();
        assert!(text.contains(said), "{key}: {text}");
        assert_eq!(folder.keys(), before);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_while_the_manifest_of_a_rank_is_not_what_was_committed() {
    let folder = Folder::new();
    history(&folder).await;
    folder.damage("epochs/0000000004/ranks/");
    assert!(folder.collect(1).await.is_err());
    assert_eq!(folder.chunks(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_save_that_stored_nothing_for_half_an_hour_is_not_committed() {
    let folder = Folder::new();
    let last = history(&folder).await;
    let saving = folder.begin(BTreeMap::new(), &STATE).await;
    folder.pass_time(Duration::from_mins(31)).await;
    let refused = folder.commit(last, saving).await.unwrap_err();
    assert!(matches!(refused, lifeboat::data::save::SaveError::Silent), "{refused:?}");
    folder.check("after half an hour");
    let saving = folder.begin(BTreeMap::new(), &STATE).await;
    folder.pass_time(Duration::from_mins(29)).await;
    assert_eq!(folder.commit(last, saving).await.unwrap().epoch, last + 1);
}

/// A save that takes hours, and stores a chunk now and then, is neither collected nor refused.
#[tokio::test(start_paused = true)]
async fn a_slow_save_is_left_alone_while_it_goes_on() {
    let folder = Folder::new();
    let last = history(&folder).await;
    let known = folder.known(last).await;
    let mut saving = folder.begin(known, &[1, 20]).await;
    for chunk in 21..33 {
        folder.pass_time(Duration::from_mins(20)).await;
        folder.collect(1).await.unwrap();
        folder.add(&mut saving, chunk).await;
    }
    folder.commit(last, saving).await.unwrap();
    settle(&folder, "a slow save").await;
    assert_eq!(folder.restore(Restore::Auto).await.unwrap().len(), 14);
}

/// The check has teeth: deduplication against a state that is not the newest is what it finds.
#[tokio::test(start_paused = true)]
async fn a_save_that_trusts_another_state_than_the_newest_is_found_out() {
    let folder = Folder::new();
    let last = history(&folder).await;
    let stale = folder.known(2).await;
    for _ in 0..2 {
        folder.collect(1).await.unwrap();
        folder.pass_time(HOUR + Duration::from_mins(1)).await;
    }
    folder.collect(1).await.unwrap();
    folder.save(last, &stale, &[3, 4]).await.unwrap();
    let broken = folder.world.read(checkers::bucket);
    assert!(broken.iter().any(|one| one.rule == "S2"), "{broken:?}");
}

#[tokio::test(start_paused = true)]
async fn what_would_be_done_is_said_without_doing_it() {
    let folder = Folder::new();
    history(&folder).await;
    let before = folder.keys();
    let survey = folder.survey().await;
    let said = lifeboat::data::collect::Tally::of(&survey, &survey.plan(1));
    assert_eq!(folder.keys(), before);
    assert_eq!(folder.collect(1).await.unwrap(), said);
    assert_eq!((said.epochs, said.chunks), (2, 1));
}
