//! The contract of a boat, against an agent's end spoken by hand.
#![allow(clippy::unwrap_used, reason = "clippy does not see functions here as tests")]

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use lifeboat_checkpoint::region::Layout;
use lifeboat_protocol::frame;
use lifeboat_protocol::frame::Deadline;
use lifeboat_protocol::frame::Durable;
use lifeboat_protocol::frame::Filling;
use lifeboat_protocol::frame::Finished;
use lifeboat_protocol::frame::Forecast;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::KeyInUse;
use lifeboat_protocol::frame::NothingToRestore;
use lifeboat_protocol::frame::Opened;
use lifeboat_protocol::frame::Pace;
use lifeboat_protocol::frame::Purpose;
use lifeboat_protocol::frame::RestoreId;
use lifeboat_protocol::frame::RestoreOffer;
use lifeboat_protocol::frame::SaveFailed;
use lifeboat_protocol::frame::SaveId;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::frame::Unpark;
use lifeboat_protocol::frame::VERSION;
use lifeboat_protocol::frame::Version;
use lifeboat_protocol::frame::Waiting;
use lifeboat_protocol::frame::Welcome;
use lifeboat_protocol::frame::Zeros;
use lifeboat_sdk::Boat;
use lifeboat_sdk::Cause;
use lifeboat_sdk::Error;
use lifeboat_sdk::Failure;
use lifeboat_sdk::Part;
use lifeboat_sdk::Required;
use lifeboat_sdk::Settings;
use lifeboat_sdk::Tensor;
use lifeboat_sdk::Tree;
use lifeboat_sdk::Value;

mod peer;

use peer::Events;
use peer::Line;
use peer::Peer;

const SLOT: u64 = 4096;

/// A program with state, stepping on a thread of its own as far as it is let.
struct Program {
    boat: Boat,
    weights: Tensor<u32>,
    loader: Value,
    /// Last step that returned.
    passed: AtomicU64,
}

impl Program {
    fn start(settings: Settings) -> Result<Self, Error> {
        let boat = Boat::with(settings)?;
        let weights = Tensor::new((0..4000).collect::<Vec<u32>>());
        let loader = Value::new(Tree::Int(3));
        boat.register("weights", &weights)?;
        boat.register("loader", &loader)?;
        Ok(Self { boat, weights, loader, passed: AtomicU64::new(0) })
    }

    fn step(&self, step: u64) {
        self.weights.lock()[0] = u32::try_from(step).unwrap();
        self.boat.step(step).unwrap();
        self.passed.store(step, Ordering::SeqCst);
    }

    fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }

    fn bytes(&self, step: u32) -> Vec<u8> {
        let mut numbers = self.weights.lock().to_vec();
        numbers[0] = step;
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }
}

/// A program of one rank, and its agent.
fn pair(peer: &Peer) -> (Program, Line, Events) {
    let (settings, events) = peer.settings(0, 1);
    let (program, line) = thread::scope(|scope| {
        let agent = scope.spawn(|| peer.welcome().0);
        (Program::start(settings).unwrap(), agent.join().unwrap())
    });
    (program, line, events)
}

#[track_caller]
fn contains(events: &Events, text: &str) {
    // An event is told by the thread that listens, which may be later than the program goes on.
    for _ in 0..100 {
        if events.texts().iter().any(|line| line.contains(text)) {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    let texts = events.texts();
    assert!(texts.iter().any(|line| line.contains(text)), "no `{text}` in {texts:#?}");
}

#[test]
fn a_hello_says_which_rank_and_what_is_registered() {
    let peer = Peer::new();
    let (settings, _) = peer.settings(2, 4);
    let settings = Settings { run_id: "r1".into(), restart_count: 3, ..settings };
    thread::scope(|scope| {
        let program = scope.spawn(|| Program::start(settings).unwrap());
        let (mut line, hello) = peer.welcome();
        assert_eq!((hello.rank, hello.world, hello.local_world), (2, 4, 4));
        assert_eq!((hello.run_id.as_str(), hello.restart_count), ("r1", 3));
        assert_eq!((hello.again, hello.step, hello.version), (false, None, VERSION));
        let _program = program.join().unwrap();
        let Some((FromWorkload::Register(register), _)) = line.next() else { panic!() };
        assert_eq!(
            (register.layout.bytes(), register.layout.regions[0].name.as_str()),
            (16_000, "weights")
        );
    });
}

#[test]
fn a_program_parks_in_step_until_it_is_called_off() {
    let peer = Peer::new();
    let (program, mut line, events) = pair(&peer);
    let lent = line.lend(2, SLOT);
    thread::scope(|scope| {
        program.step(1);
        assert_eq!(line.prepare(7, Purpose::Park).step, 1);
        line.save_at(7, None);
        scope.spawn(|| program.step(2));
        let saved = line.take(7, &lent);
        assert_eq!((saved.step, saved.bytes), (2, program.bytes(2)));
        assert_eq!(saved.chunks, [4096, 4096, 4096, 3712]);
        assert_eq!(saved.layout.tree, Tree::map([("loader", Tree::Int(3))]));
        line.taken(7);
        line.say(&ToWorkload::Durable(Durable {
            save: 7,
            epoch: 2,
            step: 2,
            bytes: 16_000,
            took_ns: 38_000_000_000,
            spare_ns: Some(82_400_000_000),
        }));
        line.silent();
        assert_eq!(program.passed(), 1);
        contains(&events, "parked at step 2");
        contains(&events, "step 2 durable at T+38 s, 82 s to spare");
        line.say(&ToWorkload::CallOff(SaveId { save: 7 }));
    });
    assert_eq!(program.passed(), 2);
    program.step(3);
    assert_eq!(program.passed(), 3);
}

#[test]
fn a_save_for_insurance_lets_the_program_go_on_once_it_is_taken() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    let lent = line.lend(1, SLOT);
    thread::scope(|scope| {
        program.step(1);
        line.prepare(1, Purpose::Insurance);
        line.save_at(1, None);
        let stepping = scope.spawn(|| program.step(2));
        line.take(1, &lent);
        line.silent();
        assert_eq!(program.passed(), 1);
        line.taken(1);
        stepping.join().unwrap();
        assert_eq!(program.passed(), 2);
    });
}

#[test]
fn a_rank_stops_after_one_more_step_until_a_step_is_agreed_on() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    let lent = line.lend(4, SLOT);
    thread::scope(|scope| {
        program.step(3);
        assert_eq!(line.prepare(1, Purpose::Park).step, 3);
        scope.spawn(|| (4..=6).for_each(|step| program.step(step)));
        line.silent();
        assert_eq!(program.passed(), 3);
        line.save_at(1, Some(5));
        assert_eq!(line.take(1, &lent).step, 5);
        assert_eq!(program.passed(), 4);
        line.taken(1);
        line.say(&ToWorkload::Unpark(Unpark { reason: "enough".into() }));
    });
    assert_eq!(program.passed(), 6);
}

#[test]
fn ranks_that_are_a_step_apart_are_saved_at_the_same_step() {
    let peer = Peer::new();
    let mut ranks: Vec<_> = (0..3)
        .map(|rank| {
            let (settings, _) = peer.settings(rank, 3);
            thread::scope(|scope| {
                let program = scope.spawn(|| Program::start(settings).unwrap());
                let (line, hello) = peer.welcome();
                assert_eq!(hello.rank, rank);
                (program.join().unwrap(), line)
            })
        })
        .collect();
    let enough = &AtomicBool::new(false);
    thread::scope(|scope| {
        let mut lines = Vec::new();
        for (rank, (program, line)) in (0..).zip(&mut ranks) {
            let program = &*program;
            program.step(10 + 3 * rank);
            scope.spawn(move || {
                for step in 11 + 3 * rank.. {
                    program.step(step);
                    thread::sleep(std::time::Duration::from_millis(5));
                    if enough.load(Ordering::SeqCst) {
                        break;
                    }
                }
            });
            lines.push(line);
        }
        let ready = lines.iter_mut().map(|line| line.prepare(1, Purpose::Park).step);
        let agreed = ready.max().unwrap() + 1;
        for line in &mut lines {
            let lent = line.lend(4, SLOT);
            line.save_at(1, Some(agreed));
            assert_eq!(line.take(1, &lent).step, agreed);
            line.taken(1);
        }
        enough.store(true, Ordering::SeqCst);
        for line in &lines {
            line.say(&ToWorkload::CallOff(SaveId { save: 1 }));
        }
    });
}

#[test]
fn a_safe_point_in_the_midst_of_a_step_saves_the_last_step() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    let lent = line.lend(4, SLOT);
    thread::scope(|scope| {
        program.step(3);
        line.prepare(1, Purpose::Insurance);
        program.boat.safe_point().unwrap();
        line.save_at(1, None);
        scope.spawn(|| {
            while program.passed() == 3 {
                program.boat.safe_point().unwrap();
            }
        });
        assert_eq!(line.take(1, &lent).step, 3);
        line.taken(1);
        line.silent();
        program.step(4);
    });
}

#[test]
fn a_parked_program_offers_its_state_again_to_an_agent_that_came_back() {
    let peer = Peer::new();
    let (program, mut line, events) = pair(&peer);
    let lent = line.lend(2, SLOT);
    thread::scope(|scope| {
        program.step(1);
        line.prepare(1, Purpose::Park);
        line.save_at(1, None);
        scope.spawn(|| program.step(2));
        let FromWorkload::SaveBegin(_) = line.hear() else { panic!() };
        let FromWorkload::Filled(_) = line.hear() else { panic!() };
        drop((line, lent));

        let (mut line, hello) = peer.welcome();
        assert!(hello.again);
        let parked = hello.parked.unwrap();
        assert_eq!((parked.step, parked.taken, parked.epoch), (2, false, None));
        let Some((FromWorkload::Register(_), _)) = line.next() else { panic!() };
        let lent = line.lend(2, SLOT);
        let ready = line.prepare(1, Purpose::Park);
        assert_eq!((ready.step, ready.parked), (2, true));
        line.save_at(1, None);
        let saved = line.take(1, &lent);
        assert_eq!((saved.step, saved.bytes), (2, program.bytes(2)));
        line.taken(1);
        line.silent();
        assert_eq!(program.passed(), 1);
        line.say(&ToWorkload::Unpark(Unpark { reason: "a false alarm".into() }));
    });
    assert_eq!(program.passed(), 2);
    contains(&events, "agent went away");
    contains(&events, "goes on: a false alarm");
}

#[test]
fn a_save_that_failed_leaves_the_program_parked_and_can_be_asked_for_again() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    let lent = line.lend(8, SLOT);
    thread::scope(|scope| {
        program.step(1);
        line.prepare(1, Purpose::Park);
        line.save_at(1, None);
        scope.spawn(|| program.step(2));
        line.take(1, &lent);
        let reason = "the bucket is away".to_owned();
        line.say(&ToWorkload::SaveFailed(SaveFailed { save: 1, why: Failure::Store, reason }));
        line.silent();
        assert!(line.prepare(2, Purpose::Park).parked);
        line.save_at(2, None);
        assert_eq!(line.take(2, &lent).step, 2);
        line.taken(2);
        line.say(&ToWorkload::CallOff(SaveId { save: 2 }));
    });
    assert_eq!(program.passed(), 2);
}

#[test]
fn a_save_called_off_in_the_midst_lets_the_program_go_on() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    let _lent = line.lend(1, SLOT);
    thread::scope(|scope| {
        program.step(1);
        line.prepare(1, Purpose::Park);
        line.save_at(1, None);
        let stepping = scope.spawn(|| program.step(2));
        let FromWorkload::SaveBegin(_) = line.hear() else { panic!() };
        let FromWorkload::Filled(_) = line.hear() else { panic!() };
        line.say(&ToWorkload::CallOff(SaveId { save: 1 }));
        stepping.join().unwrap();
    });
    assert_eq!(program.passed(), 2);
}

#[test]
fn a_program_with_nothing_yet_refuses_to_be_saved() {
    let peer = Peer::new();
    let (_program, mut line, _) = pair(&peer);
    line.say(&ToWorkload::Prepare(frame::Prepare { save: 4, ..frame::Prepare::default() }));
    let FromWorkload::SaveRefused(refused) = line.hear() else { panic!() };
    assert_eq!(refused.save, 4);
}

#[test]
fn a_file_is_handed_over_by_descriptor() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    let path = peer.folder.path().join("index.bin");
    std::fs::write(&path, b"rows of an index").unwrap();
    program.boat.register("index", Part::file(&path)).unwrap();
    let lent = line.lend(8, SLOT);
    thread::scope(|scope| {
        program.step(1);
        line.prepare(1, Purpose::Insurance);
        line.save_at(1, None);
        let stepping = scope.spawn(|| program.step(2));
        let saved = line.take(1, &lent);
        assert_eq!(&saved.bytes[16_000..], b"rows of an index");
        line.taken(1);
        stepping.join().unwrap();
    });
}

#[test]
fn a_tensor_that_is_held_over_a_step_fails_the_save_by_name() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    let _lent = line.lend(8, SLOT);
    program.step(1);
    line.prepare(1, Purpose::Park);
    line.save_at(1, None);
    let guard = program.weights.lock();
    // The order may not have come yet: then this step is passed, and the next one is not.
    let refused = (2..).find_map(|step| program.boat.step(step).err()).unwrap();
    assert!(matches!(refused, Error::Busy { ref name } if name == "weights"), "{refused}");
    drop(guard);
    let FromWorkload::SaveBegin(_) = line.hear() else { panic!() };
    let FromWorkload::SaveRefused(refused) = line.hear() else { panic!() };
    assert!(refused.reason.contains("`weights` was locked"));
}

/// What a save of `program` at a step would have left.
fn layout(program: &Program) -> Layout {
    let region = lifeboat_checkpoint::region::Region::new(
        "weights",
        lifeboat_sdk::Dtype::U32,
        &[program.weights.lock().len() as u64],
    );
    Layout { regions: vec![region], tree: Tree::map([("loader", Tree::Int(9))]) }
}

fn offer(program: &Program, restore: u64, step: u64) -> ToWorkload {
    let layout = layout(program);
    ToWorkload::RestoreOffer(RestoreOffer { restore, epoch: step, step, world: 1, layout })
}

/// Fills the program's state with one number, the last 3,904 bytes with zeros.
fn fill(line: &mut Line, lent: &peer::Lent, restore: u64, number: u32) {
    let slot_bytes = number.to_le_bytes().repeat(1024);
    for (slot, offset) in [(0, 0), (1, 4096), (0, 8192)] {
        if offset == 8192 {
            let FromWorkload::Emptied(emptied) = line.hear() else { panic!() };
            assert_eq!((emptied.restore, emptied.slot), (restore, 0));
        }
        lent.memory.write_all_at(&slot_bytes, lent.shape.offset(slot).unwrap()).unwrap();
        line.say(&ToWorkload::Filled(Filling { restore, slot, offset, bytes: SLOT }));
    }
    line.say(&ToWorkload::Zeros(Zeros { restore, offset: 12_288, bytes: 3712 }));
    line.say(&ToWorkload::Sent(RestoreId { restore }));
    for slot in [1, 0] {
        let FromWorkload::Emptied(emptied) = line.hear() else { panic!() };
        assert_eq!(emptied.slot, slot);
    }
}

#[test]
fn a_restore_reads_ahead_and_returns_when_the_gate_opens() {
    let peer = Peer::new();
    let (program, mut line, events) = pair(&peer);
    let lent = line.lend(2, SLOT);
    thread::scope(|scope| {
        let restoring = scope.spawn(|| program.boat.restore().unwrap());
        let FromWorkload::Restore(wanted) = line.hear() else { panic!() };
        assert_eq!(wanted.newer_than, None);
        line.say(&offer(&program, 1, 8412));
        let FromWorkload::Accept(_) = line.hear() else { panic!() };
        fill(&mut line, &lent, 1, 7);
        let reason = "the old pod is being ended".to_owned();
        line.say(&ToWorkload::Waiting(Waiting { restore: 1, reason, deadline: None }));
        line.silent();
        assert!(!restoring.is_finished());
        let proof = "the GPU is released".to_owned();
        line.say(&ToWorkload::Opened(Opened { restore: 1, epoch: 3, step: 8412, proof }));
        assert_eq!(restoring.join().unwrap(), Some(8412));
        let FromWorkload::Resumed(resumed) = line.hear() else { panic!() };
        assert_eq!((resumed.restore, resumed.step), (1, 8412));
    });
    let weights = program.weights.lock();
    assert_eq!((weights[0], weights[3071], weights[3072], weights[3999]), (7, 7, 0, 0));
    assert_eq!(program.loader.get(), Tree::Int(9));
    contains(&events, "restore waits: the old pod is being ended");
    contains(&events, "goes on at step 8412: the GPU is released");
}

#[test]
fn a_newer_epoch_and_a_lost_agent_begin_the_restore_again() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    let lent = line.lend(2, SLOT);
    thread::scope(|scope| {
        let restoring = scope.spawn(|| program.boat.restore_newer_than(5).unwrap());
        let FromWorkload::Restore(_) = line.hear() else { panic!() };
        line.say(&offer(&program, 1, 10));
        let FromWorkload::Accept(_) = line.hear() else { panic!() };
        fill(&mut line, &lent, 1, 1);
        line.say(&offer(&program, 2, 11));
        let FromWorkload::Accept(accept) = line.hear() else { panic!() };
        assert_eq!(accept.restore, 2);
        fill(&mut line, &lent, 2, 2);
        drop((line, lent));

        let (mut line, hello) = peer.welcome();
        assert!(hello.again && hello.parked.is_none() && hello.step.is_none());
        let FromWorkload::Restore(wanted) = line.hear() else { panic!() };
        assert_eq!(wanted.newer_than, Some(5));
        let lent = line.lend(2, SLOT);
        line.say(&offer(&program, 1, 12));
        let FromWorkload::Accept(_) = line.hear() else { panic!() };
        fill(&mut line, &lent, 1, 3);
        line.say(&ToWorkload::Opened(Opened { restore: 1, ..Opened::default() }));
        assert_eq!(restoring.join().unwrap(), Some(12));
    });
    assert_eq!(program.weights.lock()[0], 3);
}

#[test]
fn an_open_gate_without_all_bytes_is_an_error() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    thread::scope(|scope| {
        let restoring = scope.spawn(|| program.boat.restore());
        let FromWorkload::Restore(_) = line.hear() else { panic!() };
        line.say(&offer(&program, 1, 10));
        line.say(&ToWorkload::Zeros(Zeros { restore: 1, offset: 0, bytes: 8 }));
        line.say(&ToWorkload::Opened(Opened { restore: 1, ..Opened::default() }));
        let refused = restoring.join().unwrap().unwrap_err();
        assert!(matches!(refused, Error::NotRestored { why: Failure::Damaged, .. }), "{refused}");
    });
}

#[test]
fn nothing_to_restore_is_the_beginning_and_can_be_saved() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    thread::scope(|scope| {
        let restoring = scope.spawn(|| program.boat.restore().unwrap());
        let FromWorkload::Restore(_) = line.hear() else { panic!() };
        let nothing = NothingToRestore { reason: "nothing was ever saved".into(), epoch: 1 };
        line.say(&ToWorkload::NothingToRestore(nothing));
        assert_eq!(restoring.join().unwrap(), None);
    });
    assert_eq!(line.prepare(1, Purpose::Park).step, 0);
}

#[test]
fn a_checkpoint_of_another_world_is_declined_by_name() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    thread::scope(|scope| {
        let restoring = scope.spawn(|| program.boat.restore());
        let FromWorkload::Restore(_) = line.hear() else { panic!() };
        let offer =
            RestoreOffer { restore: 1, world: 4, layout: layout(&program), epoch: 1, step: 1 };
        line.say(&ToWorkload::RestoreOffer(offer));
        let FromWorkload::Decline(decline) = line.hear() else { panic!() };
        assert!(decline.reason.contains("4 ranks"));
        let refused = restoring.join().unwrap().unwrap_err();
        assert!(matches!(refused, Error::OtherWorld { saved: 4, own: 1 }));
    });
}

#[test]
fn a_program_started_on_an_interrupted_node_is_parked_at_once() {
    let peer = Peer::new();
    let (settings, events) = peer.settings(0, 1);
    thread::scope(|scope| {
        let starting = scope.spawn(|| Program::start(settings).unwrap());
        let (mut line, _) = peer.accept();
        let text = "this node will be taken".to_owned();
        let notice = frame::Notice { cause: Cause::Interruption, text, deadline: None };
        let welcome = Welcome { version: VERSION, park: Some(notice), ..Welcome::default() };
        line.say(&ToWorkload::Welcome(welcome));
        line.silent();
        assert!(!starting.is_finished());
        line.say(&ToWorkload::Unpark(Unpark { reason: "it was not taken".into() }));
        starting.join().unwrap().step(1);
    });
    contains(&events, "parked: this node will be taken");
}

#[test]
fn a_key_in_use_is_refused_unless_this_is_the_successor() {
    let peer = Peer::new();
    for wait in [false, true] {
        let (settings, _) = peer.settings(0, 1);
        thread::scope(|scope| {
            let starting = scope.spawn(|| Program::start(settings));
            let (line, _) = peer.accept();
            let holder = "pod train-0".to_owned();
            line.say(&ToWorkload::KeyInUse(KeyInUse { holder, wait }));
            match starting.join().unwrap() {
                Ok(_) => assert!(wait),
                Err(error) => {
                    assert!(!wait && error.to_string().contains("in use by pod train-0"));
                }
            }
        });
    }
}

#[test]
fn an_agent_of_another_major_version_is_refused_and_of_another_minor_is_not() {
    let peer = Peer::new();
    for (major, fits) in [(VERSION.major + 1, false), (VERSION.major, true)] {
        let (settings, _) = peer.settings(0, 1);
        thread::scope(|scope| {
            let starting = scope.spawn(|| Program::start(settings));
            let (line, _) = peer.accept();
            let version = Version { major, minor: 99 };
            line.say(&ToWorkload::Welcome(Welcome { version, ..Welcome::default() }));
            assert_eq!(starting.join().unwrap().is_ok(), fits);
        });
    }
}

#[test]
fn nobody_at_the_socket_is_a_loud_warning_and_tried_again() {
    let peer = Peer::new();
    let (settings, events) = peer.settings(0, 1);
    let late = peer.folder.path().join("late.sock");
    let program = Program::start(Settings { socket: Some(late.clone()), ..settings }).unwrap();
    contains(&events, "NOT PROTECTED");
    program.step(1);
    let _nobody = std::fs::remove_file(peer.socket());
    let _moved = std::os::unix::net::UnixListener::bind(&late).map(|listener| {
        let (_stream, _) = listener.accept().unwrap();
    });
}

#[test]
fn nobody_at_the_socket_is_an_error_where_an_agent_is_required() {
    let folder = tempfile::tempdir().unwrap();
    let socket = Some(folder.path().join("agent.sock"));
    let settings = Settings { socket, required: Required::Yes, ..Settings::alone() };
    let refused = Boat::with(settings).err().unwrap();
    assert!(matches!(refused, Error::AgentUnreachable { .. }));
}

#[test]
fn a_socket_with_a_long_path_is_reached() {
    let peer = Peer::new();
    let long = peer.folder.path().join("l".repeat(120));
    std::fs::create_dir(&long).unwrap();
    std::fs::rename(peer.socket(), long.join("agent.sock")).unwrap();
    let (settings, _) = peer.settings(0, 1);
    let settings = Settings { socket: Some(long.join("agent.sock")), ..settings };
    thread::scope(|scope| {
        scope.spawn(|| peer.welcome());
        Program::start(Settings { required: Required::Yes, ..settings }).unwrap();
    });
}

#[test]
fn the_end_of_the_work_is_told_until_it_is_stored() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    thread::scope(|scope| {
        program.step(9);
        let finishing = scope.spawn(|| program.boat.finish().unwrap());
        let FromWorkload::Finish(finish) = line.hear() else { panic!() };
        assert_eq!(finish.step, 9);
        drop(line);
        let (mut line, _) = peer.welcome();
        let FromWorkload::Finish(_) = line.hear() else { panic!() };
        line.silent();
        assert!(!finishing.is_finished());
        line.say(&ToWorkload::Finished(Finished { epoch: 4 }));
    });
}

#[test]
fn a_program_can_ask_for_a_save() {
    let peer = Peer::new();
    let (program, mut line, _) = pair(&peer);
    let lent = line.lend(8, SLOT);
    thread::scope(|scope| {
        program.step(5);
        let saving = scope.spawn(|| program.boat.save());
        let FromWorkload::SaveWanted(wanted) = line.hear() else { panic!() };
        assert_eq!(wanted.step, 5);
        line.prepare(1, Purpose::Insurance);
        line.save_at(1, None);
        assert_eq!(line.take(1, &lent).step, 5);
        line.taken(1);
        line.say(&ToWorkload::Durable(Durable { save: 1, epoch: 6, ..Durable::default() }));
        assert_eq!(saving.join().unwrap().unwrap(), Some(6));
    });
    thread::scope(|scope| {
        let saving = scope.spawn(|| program.boat.save());
        let FromWorkload::SaveWanted(_) = line.hear() else { panic!() };
        let reason = "a newer life holds the key".to_owned();
        let failed = SaveFailed { save: 0, why: Failure::Superseded, reason };
        line.say(&ToWorkload::SaveFailed(failed));
        let refused = saving.join().unwrap().unwrap_err();
        assert!(matches!(refused, Error::NotSaved { why: Failure::Superseded, .. }));
    });
}

#[test]
fn hooks_are_told_of_a_notice_and_of_how_much_time_is_left() {
    let peer = Peer::new();
    let (program, line, _) = pair(&peer);
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    program.boat.on_notice(move |notice| {
        heard.lock().unwrap().push((notice.cause, notice.remaining()));
    });
    let deadline = Some(Deadline { boottime_ns: u64::MAX, unix_ms: 0 });
    let (cause, text) = (Cause::Interruption, "it will be taken".to_owned());
    line.say(&ToWorkload::Notice(frame::Notice { cause, deadline, text }));
    while told.lock().unwrap().is_empty() {
        thread::sleep(std::time::Duration::from_millis(5));
    }
    let (cause, left) = told.lock().unwrap()[0];
    assert_eq!(cause, Cause::Interruption);
    assert!(left.unwrap() > std::time::Duration::from_secs(100));
}

#[test]
fn what_is_to_be_expected_of_a_save_is_told_before_it_and_while_it_goes_on() {
    let peer = Peer::new();
    let (program, line, events) = pair(&peer);
    program.step(1);
    let text = "60.0 GiB are stored within 242 s".to_owned();
    line.say(&ToWorkload::Forecast(Forecast { fits: false, text, ..Forecast::default() }));
    contains(&events, "WARNING: cannot be saved at a notice: 60.0 GiB are stored within 242 s");
    // One that says less, as a later version might, is a warning all the same.
    line.say(&ToWorkload::Forecast(Forecast::default()));
    contains(&events, "WARNING: cannot be saved at a notice: ");
    let at = |seconds: u64| Deadline { boottime_ns: seconds * 1_000_000_000, unix_ms: 0 };
    let expected = |expected: u64, deadline: u64| {
        let (expected, deadline) = (Some(at(expected)), Some(at(deadline)));
        ToWorkload::Pace(Pace { save: 1, expected, deadline, leave_out: Vec::new() })
    };
    line.say(&expected(1_000_000_000, 1_000_000_045));
    contains(&events, ", 45 s to spare");
    line.say(&expected(1_000_000_000, 999_999_992));
    contains(&events, ", 8 s too late");
}

#[test]
fn without_an_agent_every_call_goes_through() {
    let program = Program::start(Settings { ..Settings::alone() }).unwrap();
    assert_eq!(program.boat.restore().unwrap(), None);
    (1..1000).for_each(|step| program.step(step));
    assert_eq!(program.boat.save().unwrap(), None);
    program.boat.finish().unwrap();
}
