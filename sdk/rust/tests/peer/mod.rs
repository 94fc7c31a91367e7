//! The agent's end of the line, spoken by hand over a real socket.
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use lifeboat_checkpoint::region::Layout;
use lifeboat_protocol::fd;
use lifeboat_protocol::frame::Freed;
use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Hello;
use lifeboat_protocol::frame::Lend;
use lifeboat_protocol::frame::Prepare;
use lifeboat_protocol::frame::Purpose;
use lifeboat_protocol::frame::Ready;
use lifeboat_protocol::frame::SaveAt;
use lifeboat_protocol::frame::SaveId;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_protocol::frame::VERSION;
use lifeboat_protocol::frame::Welcome;
use lifeboat_protocol::ring;
use lifeboat_protocol::ring::Shape;
use lifeboat_protocol::wire;
use lifeboat_protocol::wire::Inbox;
use lifeboat_sdk::Event;
use lifeboat_sdk::Rank;
use lifeboat_sdk::Settings;
use lifeboat_sdk::Signals;
use tempfile::TempDir;

/// How long anything may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to listen to be sure that nothing is said.
pub(crate) const QUIET: Duration = Duration::from_millis(200);

/// A socket like that of a pod.
pub(crate) struct Peer {
    pub(crate) folder: TempDir,
    listener: UnixListener,
}

/// A connection of one rank.
pub(crate) struct Line {
    stream: UnixStream,
    inbox: Inbox,
}

/// A ring that was lent.
pub(crate) struct Lent {
    pub(crate) memory: File,
    pub(crate) shape: Shape,
}

/// What the peer took of a save.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) step: u64,
    pub(crate) layout: Layout,
    pub(crate) bytes: Vec<u8>,
    pub(crate) chunks: Vec<u64>,
}

impl Peer {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("agent.sock")).unwrap();
        Self { folder, listener }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// Settings of a rank of this pod, and what will happen to it.
    pub(crate) fn settings(&self, rank: u32, world: u32) -> (Settings, Events) {
        let events = Events::default();
        let observer = events.clone();
        let settings = Settings {
            socket: Some(self.socket()),
            rank: Rank { rank, local_rank: rank, world, local_world: world },
            signals: Signals::Left,
            observer: Arc::new(move |event| observer.0.lock().unwrap().push(event.clone())),
            ..Settings::alone()
        };
        (settings, events)
    }

    pub(crate) fn accept(&self) -> (Line, Hello) {
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut line = Line { stream, inbox: Inbox::new() };
        let FromWorkload::Hello(hello) = line.hear() else { panic!("no hello") };
        (line, hello)
    }

    /// Takes a connection and welcomes it.
    pub(crate) fn welcome(&self) -> (Line, Hello) {
        let (line, hello) = self.accept();
        line.say(&ToWorkload::Welcome(Welcome {
            version: VERSION,
            agent: "peer".to_owned(),
            ..Welcome::default()
        }));
        (line, hello)
    }
}

impl Line {
    pub(crate) fn say(&self, frame: &ToWorkload) {
        fd::send_all(&self.stream, &wire::encode(frame, 0).unwrap(), &[]).unwrap();
    }

    pub(crate) fn lend(&self, slots: u32, slot_bytes: u64) -> Lent {
        let shape = Shape::new(slots, slot_bytes).unwrap();
        let memory = ring::create("peer", shape).unwrap();
        let lend = ToWorkload::Lend(Lend { ring: 1, shape });
        let bytes = wire::encode(&lend, 1).unwrap();
        fd::send_all(&self.stream, &bytes, &[memory.as_fd()]).unwrap();
        Lent { memory: File::from(memory), shape }
    }

    /// The next frame that is no progress and no registration.
    #[track_caller]
    pub(crate) fn hear(&mut self) -> FromWorkload {
        self.hear_with().0
    }

    #[track_caller]
    pub(crate) fn hear_with(&mut self) -> (FromWorkload, Vec<OwnedFd>) {
        loop {
            match self.next().expect("the line ended") {
                (FromWorkload::Progress(_) | FromWorkload::Register(_), _) => (),
                heard => return heard,
            }
        }
    }

    /// The next frame, whatever it is; none at the end of the line.
    #[track_caller]
    pub(crate) fn next(&mut self) -> Option<(FromWorkload, Vec<OwnedFd>)> {
        loop {
            if let Some(heard) = self.inbox.take().unwrap() {
                return Some(heard);
            }
            let (mut buffer, mut descriptors) = ([0; 4096], Vec::new());
            let length = fd::receive(&self.stream, &mut buffer, &mut descriptors).unwrap();
            if length == 0 {
                return None;
            }
            self.inbox.push(&buffer[..length], descriptors);
        }
    }

    /// Checks that nothing of weight is said for a while.
    #[track_caller]
    pub(crate) fn silent(&mut self) {
        self.stream.set_read_timeout(Some(QUIET)).unwrap();
        loop {
            match self.inbox.take::<FromWorkload>().unwrap() {
                Some((FromWorkload::Progress(_) | FromWorkload::Register(_), _)) => continue,
                Some((frame, _)) => panic!("{frame:?} was said"),
                None => (),
            }
            let (mut buffer, mut descriptors) = ([0; 4096], Vec::new());
            match fd::receive(&self.stream, &mut buffer, &mut descriptors) {
                Ok(0) => panic!("the line ended"),
                Ok(length) => self.inbox.push(&buffer[..length], descriptors),
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    break;
                }
            }
        }
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// Asks for a save; says where the rank is.
    #[track_caller]
    pub(crate) fn prepare(&mut self, save: u64, purpose: Purpose) -> Ready {
        self.say(&ToWorkload::Prepare(Prepare { save, purpose, ..Prepare::default() }));
        let FromWorkload::Ready(ready) = self.hear() else { panic!("not ready") };
        assert_eq!(ready.save, save);
        ready
    }

    pub(crate) fn save_at(&self, save: u64, step: Option<u64>) {
        self.say(&ToWorkload::SaveAt(SaveAt { save, step, ..SaveAt::default() }));
    }

    /// Takes all of a save.
    #[track_caller]
    #[expect(clippy::wildcard_enum_match_arm, reason = "all else is wrong here")]
    pub(crate) fn take(&mut self, save: u64, lent: &Lent) -> Saved {
        let FromWorkload::SaveBegin(begin) = self.hear() else { panic!("no beginning") };
        assert_eq!(begin.save, save);
        let mut saved =
            Saved { step: begin.step, layout: begin.layout, bytes: Vec::new(), chunks: Vec::new() };
        loop {
            let (frame, descriptors) = self.hear_with();
            match frame {
                FromWorkload::Filled(filled) => {
                    assert_eq!(filled.offset, saved.bytes.len() as u64);
                    let mut bytes = vec![0; usize::try_from(filled.bytes).unwrap()];
                    let offset = lent.shape.offset(filled.slot).unwrap();
                    lent.memory.read_exact_at(&mut bytes, offset).unwrap();
                    // What is freed may be filled again at once.
                    self.say(&ToWorkload::Freed(Freed { save, slot: filled.slot }));
                    saved.bytes.extend(bytes);
                    saved.chunks.push(filled.bytes);
                }
                FromWorkload::Given(given) => {
                    let files: Vec<File> = descriptors.into_iter().map(File::from).collect();
                    for piece in given.pieces {
                        assert_eq!(piece.offset, saved.bytes.len() as u64);
                        let mut bytes = vec![0; usize::try_from(piece.bytes).unwrap()];
                        let file = &files[usize::try_from(piece.descriptor).unwrap()];
                        file.read_exact_at(&mut bytes, piece.from).unwrap();
                        saved.bytes.extend(bytes);
                    }
                }
                FromWorkload::SaveEnd(end) => {
                    assert_eq!(end.bytes, saved.bytes.len() as u64);
                    assert_eq!(end.bytes, saved.layout.bytes());
                    return saved;
                }
                other => panic!("{other:?} in a hand-over"),
            }
        }
    }

    pub(crate) fn taken(&self, save: u64) {
        self.say(&ToWorkload::Taken(SaveId { save }));
    }
}

/// What happened to a program.
#[derive(Clone, Default)]
pub(crate) struct Events(Arc<Mutex<Vec<Event>>>);

impl Events {
    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(ToString::to_string).collect()
    }
}
