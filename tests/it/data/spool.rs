//! Memory that is saved while nothing is wrong, by way of the node's own disk.

use tokio::time::Instant;

use super::*;

/// Bytes a second of the network: the state takes most of a minute at half of it.
const SLOW: u64 = 10_000;
/// The longest that a workload may stand still for a disk.
const SOON: Duration = Duration::from_secs(2);

/// A node with a slow network and room for so many bytes; the folder lives as long as it is held.
fn node(bucket: &Arc<Counting>, clock: &Clock, most: u64) -> (Node, Spool, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let spool = Spool::open(folder.path(), most).unwrap();
    let network = (&as_bucket(bucket), Some(SLOW));
    (Node::with("gpu-1", network, clock, Some(spool.clone())), spool, folder)
}

/// Has it begin to hand over its state in the background.
async fn begun_in_background(node: &Node, peer: &mut Peer) -> SaveAt {
    node.ask("old", Purpose::Background, None);
    let at = peer.due().await;
    peer.begin(&at).await;
    node.until("old", |known| known.session != Session::Open).await;
    node.workloads.save(&uid("old"));
    at
}

/// Has it saved in the background, until its bytes lie on the disk.
async fn spooled(node: &Node, peer: &mut Peer) {
    let at = begun_in_background(node, peer).await;
    let begun = Instant::now();
    peer.fill(&at).await;
    peer.taken().await;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn memory_lies_on_the_disk_while_the_work_goes_on_and_is_stored_at_leisure() {
    let (bucket, clock) = world();
    let (node, spool, folder) = node(&bucket, &clock, STATE);
    let mut peer = trainer(&node, "old").await;
    assert!(node.known("old").background_since.is_some());
    spooled(&node, &mut peer).await;
    let begun = Instant::now();
    assert_eq!((spool.used(), node.newest().await.unwrap().kind), (STATE, Kind::Claim));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let durable = peer.durable().await;
    assert_eq!((durable.step, durable.bytes), (10, STATE));
    assert!(begun.elapsed() > Duration::from_secs(20), "{:?}", begun.elapsed());
    let known = node.until("old", |known| known.asked == Asked::Nothing).await;
    assert!(known.stall.unwrap() < SOON, "{:?}", known.stall);
    assert!(known.background_since.is_some());
    assert_eq!(spool.used(), 0);
    check_whole(&node).await;
    // Elsewhere it goes on from there.
    drop(peer);
    let new = Node::new("gpu-2", &as_bucket(&bucket), &clock);
    let mut successor = waiting(&new, "new").await;
    new.workloads.allow_restore(&uid("new"), Proof::InstanceGone);
    assert_eq!(successor.restored().await.0, 10);
}

#[tokio::test(start_paused = true)]
async fn a_notice_does_not_wait_for_what_lies_on_the_disk() {
    let (bucket, clock) = world();
    let (node, spool, _folder) = node(&bucket, &clock, STATE);
    let mut peer = trainer(&node, "old").await;
    spooled(&node, &mut peer).await;
    peer.step = 12;
    let begun = Instant::now();
    save(&node, "old", &mut peer).await;
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let newest = node.newest().await.unwrap();
    assert_eq!((newest.kind, newest.step), (Kind::Save, 12));
    assert_eq!((spool.used(), node.known("old").insurance), (0, None));
    check_whole(&node).await;
}

#[tokio::test(start_paused = true)]
async fn a_state_that_finds_no_room_is_not_saved_and_holds_nobody_up() {
    let (bucket, clock) = world();
    let (node, spool, _folder) = node(&bucket, &clock, STATE - 1);
    let mut peer = trainer(&node, "old").await;
    let at = begun_in_background(&node, &mut peer).await;
    peer.expect(|frame| matches!(frame, ToWorkload::Lend(_)).then_some(())).await;
    let filled = Filled { save: at.save, slot: 0, offset: 0, bytes: CHUNK };
    peer.say(FromWorkload::Filled(filled)).await;
    let failed = peer.expect(save_failed).await;
    assert!(failed.reason.contains("no room for 300000 bytes"), "{}", failed.reason);
    assert_eq!((spool.used(), bucket.writes()), (0, 1));
    save(&node, "old", &mut peer).await;
}

#[tokio::test(start_paused = true)]
async fn who_fills_more_than_was_said_takes_no_more_room() {
    let (bucket, clock) = world();
    let (node, spool, _folder) = node(&bucket, &clock, 10 * STATE);
    let mut peer = trainer(&node, "old").await;
    let at = begun_in_background(&node, &mut peer).await;
    peer.expect(|frame| matches!(frame, ToWorkload::Lend(_)).then_some(())).await;
    for _ in 0..5 {
        let filled = Filled { save: at.save, slot: 0, offset: 0, bytes: CHUNK };
        peer.say(FromWorkload::Filled(filled)).await;
    }
    let failed = peer.expect(save_failed).await;
    assert_eq!((failed.why, spool.used()), (Failure::HandOver, 0));
}

#[tokio::test(start_paused = true)]
async fn a_workload_is_told_whether_it_is_saved_in_the_background() {
    let (bucket, clock) = world();
    let (spooling, _spool, _folder) = node(&bucket, &clock, STATE);
    let plain = Node::new("gpu-2", &as_bucket(&bucket), &clock);
    for (node, expected) in [(spooling, true), (plain, false)] {
        let socket = node.publish_with("old", &[("lifeboat.dev/job-key", "own")]);
        let mut peer = Peer::connect(&socket, hello(0, 1)).await;
        let welcome = peer
            .expect(|frame| match frame {
                ToWorkload::Welcome(welcome) => Some(welcome),
                _ => None,
            })
            .await;
        assert_eq!(welcome.background, expected);
    }
}
