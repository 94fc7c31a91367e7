//! The workload: a process with a state in memory that does as it is told, a line at a time.

use std::io::BufRead;
use std::ops::Range;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use futures::TryStreamExt;
use futures::stream;
use lifeboat_sdk::Boat;
use lifeboat_sdk::Busy;
use lifeboat_sdk::Dtype;
use lifeboat_sdk::Memory;
use lifeboat_sdk::Part;
use lifeboat_sdk::Settings;
use lifeboat_sdk::Signals;
use object_store::ClientOptions;
use object_store::ObjectStoreExt;
use object_store::aws::AmazonS3;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path as Key;
use tokio::io::AsyncBufReadExt;
use tokio::io::AsyncWriteExt;
use tokio::io::BufReader;
use tokio::io::Lines;
use tokio::process::Child;
use tokio::process::ChildStdin;
use tokio::process::ChildStdout;
use tokio::process::Command;
use tokio::time::Instant;

use crate::bench::program::Taken;
use crate::bench::save::PATIENCE;
use crate::bench::save::Place;
use crate::bench::save::Setting;
use crate::bench::screen;
use crate::bench::step;
use crate::programs::BUCKET;
use crate::serve::REGION;

/// What the state is drawn from: bytes that nothing can compress.
const SEED: u64 = 7;
/// Bytes that are made up or compared at a time.
const BLOCK: usize = 1 << 20;

/// What the process is started with.
#[derive(Args, Clone, Debug)]
pub struct Role {
    /// Size of the state.
    #[arg(long)]
    bytes: u64,
    /// Bytes of a bare object.
    #[arg(long)]
    chunk: u64,
    /// The agent's socket.
    #[arg(long)]
    socket: std::path::PathBuf,
    /// It begins with nothing of its own, and is filled by what is restored.
    #[arg(long)]
    empty: bool,
    /// Its bytes are made up whenever they are read, and held nowhere.
    #[arg(long, conflicts_with = "empty")]
    made_up: bool,
}

/// The process, seen from the bench.
pub(in crate::bench) struct Workload {
    child: Child,
    pid: u32,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Workload {
    /// Starts one with a state, which it makes up first.
    pub(in crate::bench) fn start(place: &Place, setting: &Setting) -> anyhow::Result<Self> {
        let made_up: &[&str] = if setting.made_up { &["--made-up"] } else { &[] };
        Self::spawn(place, setting, made_up)
    }

    /// Starts one with room for a state.
    pub(in crate::bench) fn empty(place: &Place, setting: &Setting) -> anyhow::Result<Self> {
        Self::spawn(place, setting, &["--empty"])
    }

    fn spawn(place: &Place, setting: &Setting, flags: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .envs(place.trusts())
            .args(["bench", "workload"])
            .args(["--bytes", &setting.bytes.to_string()])
            .args(["--chunk", &(setting.chunk_mib << 20).to_string()])
            .arg("--socket")
            .arg(&place.socket)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("the workload was not started")?;
        let pid = child.id().context("the workload ended at once")?;
        let orders = child.stdin.take().context("the workload hears nothing")?;
        let answers = child.stdout.take().context("the workload says nothing")?;
        Ok(Self { child, pid, orders, answers: BufReader::new(answers).lines() })
    }

    /// Has it connect and go on from what there is, if anything.
    pub(in crate::bench) async fn begin(&mut self) -> anyhow::Result<f64> {
        self.order("begin").await
    }

    /// Has it do something, and says how many seconds that took.
    pub(in crate::bench) async fn order(&mut self, order: &str) -> anyhow::Result<f64> {
        self.orders.write_all(format!("{order}\n").as_bytes()).await?;
        let answer = tokio::time::timeout(PATIENCE, self.answers.next_line()).await;
        let answer = answer.with_context(|| format!("`{order}` took too long"))??;
        let answer = answer.with_context(|| format!("the workload ended at `{order}`"))?;
        answer.parse().with_context(|| format!("the workload did not do `{order}`: {answer}"))
    }

    /// What it has taken so far.
    pub(in crate::bench) fn taken(&self) -> Taken {
        Taken::of(self.pid)
    }

    /// Has it end, without a last save.
    pub(in crate::bench) async fn end(mut self) -> anyhow::Result<()> {
        drop(self.orders);
        tokio::time::timeout(PATIENCE, self.child.wait()).await??;
        Ok(())
    }
}

/// The process itself: answers each line with seconds, or with what went wrong.
pub(in crate::bench) fn run(role: &Role) -> anyhow::Result<bool> {
    // It is refused where it is installed already, which is as well.
    drop(rustls::crypto::ring::default_provider().install_default());
    let state = Arc::new(State::new(role)?);
    let mut trainee = Trainee { role: role.clone(), state, boat: None, step: 0 };
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        match trainee.obey(&words) {
            Ok(took) => screen::print(&took.as_secs_f64().to_string()),
            Err(error) => screen::print(&format!("{error:#}")),
        }
    }
    Ok(true)
}

struct Trainee {
    role: Role,
    state: Arc<State>,
    boat: Option<Arc<Boat>>,
    step: u64,
}

impl Trainee {
    fn obey(&mut self, words: &[&str]) -> anyhow::Result<Duration> {
        match words {
            ["begin"] => self.begin(),
            ["bare", endpoint, connections] => self.bare(endpoint, connections.parse()?),
            ["bare-get", endpoint, connections] => self.bare_get(endpoint, connections.parse()?),
            ["save"] => self.save(),
            ["steps", count] => self.steps(count.parse()?),
            ["silent", "steps", count] => self.silent_steps(count.parse()?),
            ["same"] => self.state.is_that_of(self.step, usize::try_from(self.role.chunk)?),
            _ => bail!("nobody told it what that is"),
        }
    }

    /// Connects, and fills the state with what was saved, if anything was.
    fn begin(&mut self) -> anyhow::Result<Duration> {
        let settings = Settings {
            socket: Some(self.role.socket.clone()),
            run_id: "bench".to_owned(),
            signals: Signals::Left,
            observer: Arc::new(|_| ()),
            ..Settings::alone()
        };
        let boat = Boat::with(settings)?;
        boat.register("state", Part::memory(Arc::clone(&self.state) as Arc<dyn Memory>))?;
        let begun = Instant::now();
        self.step = boat.restore()?.unwrap_or(0);
        let took = begun.elapsed();
        boat.step(self.step)?;
        self.boat = Some(Arc::new(boat));
        Ok(took)
    }

    /// Saves a state of which no chunk was saved before.
    fn save(&mut self) -> anyhow::Result<Duration> {
        let boat = self.boat.as_ref().context("it has not begun")?;
        self.step += 1;
        self.state.salt.store(self.step, Ordering::Relaxed);
        boat.step(self.step)?;
        let begun = Instant::now();
        boat.save()?.context("nothing was saved")?;
        Ok(begun.elapsed())
    }

    fn steps(&mut self, count: u64) -> anyhow::Result<Duration> {
        let boat = self.boat.as_ref().context("it has not begun")?;
        let from = self.step + 1;
        self.step += count;
        Ok(step::steps(boat, from, count)?)
    }

    fn silent_steps(&mut self, count: u64) -> anyhow::Result<Duration> {
        let boat = self.boat.as_ref().context("it has not begun")?;
        let begun = Instant::now();
        match step::are_silent(boat, self.step + 1, count) {
            Some(true) => Ok(begun.elapsed()),
            Some(false) => bail!("a step took a system call"),
            None => bail!("this kernel cannot tell"),
        }
    }

    /// Puts the same bytes as they are, so many objects at a time.
    fn bare(&self, endpoint: &str, connections: usize) -> anyhow::Result<Duration> {
        let (store, state) = (bare_store(endpoint)?, &self.state);
        let chunk = usize::try_from(self.role.chunk)?;
        let puts = (0..state.bytes).step_by(chunk).map(|start| {
            let store = &store;
            async move {
                let part = state.part(start..state.bytes.min(start + chunk));
                store.put(&bare_key(start), part.into()).await.map(drop)
            }
        });
        timed(stream::iter(puts).buffer_unordered(connections).try_collect::<()>())
    }

    /// Gets the same bytes to the same place, unchecked.
    fn bare_get(&self, endpoint: &str, connections: usize) -> anyhow::Result<Duration> {
        let (store, state) = (bare_store(endpoint)?, &self.state);
        let chunk = usize::try_from(self.role.chunk)?;
        let gets = (0..state.bytes).step_by(chunk).map(|start| {
            let store = &store;
            async move {
                let mut frames = store.get(&bare_key(start)).await?.into_stream();
                let mut offset = start as u64;
                while let Some(frame) = frames.try_next().await? {
                    // Nobody else holds the state.
                    state.write(offset, &frame).ok();
                    offset += frame.len() as u64;
                }
                Ok(())
            }
        });
        timed(stream::iter(gets).buffer_unordered(connections).try_collect::<()>())
    }
}

fn bare_store(endpoint: &str) -> object_store::Result<AmazonS3> {
    let options = ClientOptions::new().with_allow_http(true).with_timeout(PATIENCE);
    AmazonS3Builder::new()
        .with_bucket_name(BUCKET)
        .with_region(REGION)
        .with_endpoint(endpoint)
        .with_access_key_id("demo")
        .with_secret_access_key("demo")
        .with_unsigned_payload(true)
        .with_client_options(options)
        .build()
}

fn bare_key(start: usize) -> Key {
    Key::from(format!("bare/{start}"))
}

fn timed(work: impl Future<Output = object_store::Result<()>>) -> anyhow::Result<Duration> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let begun = Instant::now();
    runtime.block_on(work)?;
    Ok(begun.elapsed())
}

/// The state: what it makes up, or what comes back.
struct State {
    bytes: usize,
    own: Bytes,
    /// Makes the chunks of one save others than those of the last.
    salt: AtomicU64,
    back: Mutex<Vec<u8>>,
}

impl State {
    fn new(role: &Role) -> anyhow::Result<Self> {
        let bytes = usize::try_from(role.bytes)?;
        let mut own = vec![0; if role.empty || role.made_up { 0 } else { bytes }];
        own.chunks_mut(BLOCK).enumerate().for_each(|(number, block)| draw(number, block));
        // Touched, as a program's memory is that has built its model.
        let back = vec![1; if role.empty { bytes } else { 0 }];
        Ok(Self { bytes, own: own.into(), salt: AtomicU64::new(0), back: Mutex::new(back) })
    }

    /// Bytes of it, made up where they are held nowhere.
    fn part(&self, place: Range<usize>) -> Bytes {
        if self.own.is_empty() {
            let mut part = vec![0; place.len()];
            make_up(place.start, &mut part);
            return part.into();
        }
        self.own.slice(place)
    }

    /// Checks that what came back is what was made up, as it was saved at a step.
    fn is_that_of(&self, step: u64, chunk: usize) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let mut expected = vec![0; BLOCK];
        let back = self.back.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, block) in back.chunks(BLOCK).enumerate() {
            let expected = &mut expected[..block.len()];
            draw(number, expected);
            if (number * BLOCK).is_multiple_of(chunk) {
                salted(expected, step);
            }
            ensure!(expected == block, "other bytes came back in MiB {number}");
        }
        Ok(begun.elapsed())
    }
}

impl Memory for State {
    fn dtype(&self) -> Dtype {
        Dtype::U8
    }

    fn shape(&self) -> Vec<u64> {
        vec![self.bytes as u64]
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Busy> {
        let start = usize::try_from(offset).map_err(|_| Busy)?;
        match self.own.get(start..start + into.len()) {
            Some(own) => into.copy_from_slice(own),
            None => make_up(start, into),
        }
        salted(into, self.salt.load(Ordering::Relaxed));
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Busy> {
        let start = usize::try_from(offset).map_err(|_| Busy)?;
        let mut back = self.back.lock().unwrap_or_else(PoisonError::into_inner);
        back[start..start + from.len()].copy_from_slice(from);
        Ok(())
    }
}

/// The bytes of one block.
fn draw(number: usize, block: &mut [u8]) {
    fastrand::Rng::with_seed(SEED + number as u64).fill(block);
}

/// The bytes from a place on.
pub(super) fn make_up(mut start: usize, mut into: &mut [u8]) {
    let mut block = Vec::new();
    while !into.is_empty() {
        let (number, skipped) = (start / BLOCK, start % BLOCK);
        let length = (BLOCK - skipped).min(into.len());
        let (own, rest) = into.split_at_mut(length);
        if skipped == 0 {
            draw(number, own);
        } else {
            block.resize(BLOCK, 0);
            draw(number, &mut block);
            own.copy_from_slice(&block[skipped..skipped + length]);
        }
        (into, start) = (rest, start + length);
    }
}

/// The first bytes of a chunk say for which save it is.
fn salted(chunk: &mut [u8], salt: u64) {
    for (byte, salt) in chunk.iter_mut().zip(salt.to_le_bytes()) {
        *byte ^= salt;
    }
}
