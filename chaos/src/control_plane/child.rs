//! A child process that ends with us, and whose output goes to a file.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::time::Duration;

use rustix::process::Pid;
use rustix::process::Signal;
use tokio::time::Instant;

use super::ControlPlaneError;
use super::probe::Probe;

/// How long a program may take until it answers.
const READY: Duration = Duration::from_mins(2);
/// How long a program may take to end.
const END: Duration = Duration::from_secs(10);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(25);

/// A program with its arguments and what is added to its environment.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(&'static str, OsString)>,
    pub(crate) folder: PathBuf,
}

/// A running program; dropping it kills it.
pub(crate) struct Child {
    name: &'static str,
    log: PathBuf,
    process: std::process::Child,
}

/// What the thread is asked for that starts children, and where the answer goes.
type Request = (Command, mpsc::Sender<std::io::Result<std::process::Child>>);

impl Child {
    /// Starts `program`; what it says goes to the end of `log`.
    pub(crate) fn spawn(
        name: &'static str,
        program: Program,
        log: &Path,
    ) -> Result<Self, ControlPlaneError> {
        if !program.path.exists() {
            return Err(ControlPlaneError::NotBuilt(program.path));
        }
        let failed = |source| ControlPlaneError::Spawn { part: name, source };
        let output = OpenOptions::new().create(true).append(true).open(log);
        let output = output.map_err(failed)?;
        let mut command = mortal(&program);
        command.stdin(Stdio::null()).stdout(output.try_clone().map_err(failed)?).stderr(output);
        let process = spawn_for_good(command).map_err(failed)?;
        Ok(Self { name, log: log.to_owned(), process })
    }

    /// Waits until `probe` is answered.
    pub(super) async fn wait_until(&mut self, probe: &Probe) -> Result<(), ControlPlaneError> {
        let until = Instant::now() + READY;
        while !probe.answers().await {
            if !matches!(self.process.try_wait(), Ok(None)) {
                let last = last_line(&self.log);
                return Err(ControlPlaneError::Ended {
                    part: self.name,
                    last,
                    log: self.log.clone(),
                });
            }
            if Instant::now() >= until {
                let (part, seconds, log) = (self.name, READY.as_secs(), self.log.clone());
                return Err(ControlPlaneError::NotReady { part, seconds, log });
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Asks it to end, and kills it when it does not.
    pub(super) async fn end(mut self) {
        self.signal(Signal::TERM);
        let until = Instant::now() + END;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        if let Some(Err(error)) = pid.map(|pid| rustix::process::kill_process(pid, signal)) {
            tracing::debug!(%error, name = self.name, "process was gone before its signal");
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            tracing::warn!(%error, name = self.name, "process was not ended");
        }
    }
}

/// The command of a program that is killed when the thread ends that started it, and that no key
/// pressed in our terminal reaches.
///
/// `setpriv` asks the kernel for it, since only the child itself can, and becomes the program.
fn mortal(program: &Program) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(&program.path).args(&program.arguments);
    command.envs(program.environment.iter().map(|(name, value)| (name, value)));
    command.current_dir(&program.folder).process_group(0);
    command
}

/// Starts a child from a thread that lives as long as this process: the kernel sends the signal
/// when the *thread* ends that made the child, and threads of tests end with their test.
fn spawn_for_good(command: Command) -> std::io::Result<std::process::Child> {
    static THREAD: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let thread = THREAD.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        let spawning = move || {
            while let Ok((mut command, answer)) = requests.recv() {
                // Who asked is waiting for the answer.
                drop(answer.send(command.spawn()));
            }
        };
        let named = std::thread::Builder::new().name("children".to_owned());
        named.spawn(spawning).expect("a thread can be made");
        sender
    });
    let (answer, answered) = mpsc::channel();
    let gone = |_| std::io::Error::other("the thread that starts children is gone");
    thread
        .send((command, answer))
        .map_err(|_| std::io::Error::other("no thread starts children"))?;
    answered.recv().map_err(gone)?
}

fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or("it said nothing").trim().to_owned()
}
