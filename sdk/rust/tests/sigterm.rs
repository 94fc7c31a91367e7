//! SIGTERM, for real: a child process, its exit code, and what its agent saw before.
#![allow(clippy::unwrap_used, reason = "clippy does not see functions here as tests")]

use std::io::BufRead;
use std::io::BufReader;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use lifeboat_protocol::frame::FromWorkload;
use lifeboat_protocol::frame::Leave;
use lifeboat_protocol::frame::Purpose;
use lifeboat_protocol::frame::ToWorkload;
use lifeboat_sdk::Boat;
use lifeboat_sdk::Tensor;

mod peer;

use peer::Line;
use peer::Peer;

const CHILD: &str = "LIFEBOAT_TEST_CHILD";
const TERMINATED: Option<i32> = Some(143);

/// No test, but the program of the others: it steps until it ends.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let boat = Boat::connect().unwrap();
    let weights = Tensor::new(vec![0_u32; 4000]);
    boat.register("weights", &weights).unwrap();
    if std::env::var_os("LIFEBOAT_TEST_DROP").is_some() {
        drop(boat);
        println!("\nstepping");
        thread::sleep(Duration::from_secs(30));
        return;
    }
    let start = if std::env::var_os("LIFEBOAT_DIR").is_some() {
        boat.restore().unwrap().unwrap_or(0)
    } else {
        0
    };
    println!("\nfrom {start}");
    for step in start + 1.. {
        weights.lock().fill(u32::try_from(step).unwrap());
        boat.step(step).unwrap();
        if step == start + 1 {
            println!("stepping");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

struct Program {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Program {
    fn start(variables: &[(&str, &Path)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["child", "--exact", "--nocapture"]).env(CHILD, "1").stdout(Stdio::piped());
        command.envs(variables.iter().copied());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn under(peer: &Peer) -> (Self, Line) {
        let program = Self::start(&[("LIFEBOAT_SOCKET", &peer.socket())]);
        let (line, hello) = peer.welcome();
        assert_eq!(hello.pid, program.child.id());
        (program, line)
    }

    fn until(&mut self, text: &str) {
        let mut line = String::new();
        while line.trim() != text {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "no `{text}`");
        }
    }

    fn terminate(&self) {
        let id = i32::try_from(self.child.id()).unwrap();
        let id = rustix::process::Pid::from_raw(id).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
    }

    fn running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    #[track_caller]
    fn ends(mut self, code: Option<i32>) {
        let status = self.child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (code, None));
    }
}

#[test]
fn a_program_is_saved_before_it_ends() {
    let peer = Peer::new();
    let (mut program, mut line) = Program::under(&peer);
    let lent = line.lend(2, 4096);
    program.until("stepping");
    program.terminate();
    let FromWorkload::Terminating(terminating) = line.hear() else { panic!() };
    let ready = line.prepare(1, Purpose::Park);
    assert!(ready.step >= terminating.step.unwrap());
    line.save_at(1, None);
    let saved = line.take(1, &lent);
    let number = u32::try_from(saved.step).unwrap();
    assert_eq!(saved.bytes, number.to_le_bytes().repeat(4000));
    line.silent();
    assert!(program.running());
    line.taken(1);
    program.ends(TERMINATED);
}

#[test]
fn a_parked_program_ends_as_soon_as_it_is_told_to() {
    let peer = Peer::new();
    let (mut program, mut line) = Program::under(&peer);
    let lent = line.lend(8, 4096);
    program.until("stepping");
    line.prepare(1, Purpose::Park);
    line.save_at(1, None);
    line.take(1, &lent);
    line.taken(1);
    line.silent();
    assert!(program.running());
    program.terminate();
    program.ends(TERMINATED);
}

#[test]
fn a_program_told_to_end_offers_its_state_to_an_agent_that_comes_back() {
    let peer = Peer::new();
    let (mut program, mut line) = Program::under(&peer);
    let lent = line.lend(1, 4096);
    program.until("stepping");
    program.terminate();
    let FromWorkload::Terminating(_) = line.hear() else { panic!() };
    line.prepare(1, Purpose::Park);
    line.save_at(1, None);
    let FromWorkload::SaveBegin(_) = line.hear() else { panic!() };
    drop((line, lent));

    let (mut line, hello) = peer.welcome();
    assert!(hello.terminating && hello.parked.is_some());
    let FromWorkload::Terminating(_) = line.hear() else { panic!() };
    let lent = line.lend(1, 4096);
    line.prepare(1, Purpose::Park);
    line.save_at(1, None);
    line.take(1, &lent);
    line.taken(1);
    program.ends(TERMINATED);
}

#[test]
fn with_nothing_to_wait_for_it_ends_at_once() {
    let peer = Peer::new();
    let (mut program, mut line) = Program::under(&peer);
    program.until("stepping");
    program.terminate();
    let FromWorkload::Terminating(_) = line.hear() else { panic!() };
    line.silent();
    assert!(program.running());
    line.say(&ToWorkload::Leave(Leave { reason: "nothing is saved here".into() }));
    program.ends(TERMINATED);
}

#[test]
fn an_agent_that_does_not_answer_is_not_waited_for_long() {
    let peer = Peer::new();
    let (mut program, mut line) = Program::under(&peer);
    program.until("stepping");
    program.terminate();
    let FromWorkload::Terminating(_) = line.hear() else { panic!() };
    program.ends(TERMINATED);
}

#[test]
fn without_an_agent_it_ends_at_once() {
    let mut program = Program::start(&[]);
    program.until("stepping");
    program.terminate();
    program.ends(TERMINATED);
}

#[test]
fn with_a_folder_it_saves_there_and_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = Program::start(&[("LIFEBOAT_DIR", folder.path())]);
    program.until("from 0");
    program.until("stepping");
    program.terminate();
    program.ends(TERMINATED);

    let mut again = Program::start(&[("LIFEBOAT_DIR", folder.path())]);
    let mut line = String::new();
    while !line.starts_with("from ") {
        line.clear();
        assert!(again.lines.read_line(&mut line).unwrap() > 0);
    }
    let step: u64 = line.trim_start_matches("from ").trim().parse().unwrap();
    assert!(step >= 1);
    again.until("stepping");
    again.terminate();
    again.ends(TERMINATED);
}

#[test]
fn a_program_that_is_done_with_its_boat_ends_as_if_it_had_none() {
    let mut program = Program::start(&[("LIFEBOAT_TEST_DROP", Path::new("1"))]);
    program.until("stepping");
    program.terminate();
    let status = program.child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (None, Some(15)));
}
