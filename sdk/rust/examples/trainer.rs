//! A real trainer, small enough for a laptop: Adam over a vector, whose state after N steps is a
//! function of N and the seed alone.
//!
//! ```text
//! trainer --steps 600 --bytes 268435456 --log train.jsonl      under Lifeboat, or alone
//! trainer --steps 600 --bytes 268435456 --reference            the digest it has to end with
//! ```
//!
//! Each step computes a gradient from a counter, updates one block of the parameters and of both
//! moments, and takes at least `--pace` milliseconds. It ends with 0 when all steps are done, and
//! with 143 when it was saved and told to end.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people to watch")]

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use lifeboat_sdk::Boat;
use lifeboat_sdk::Error;
use lifeboat_sdk::Event;
use lifeboat_sdk::Memory;
use lifeboat_sdk::Settings;
use lifeboat_sdk::Tensor;
use lifeboat_sdk::Tree;
use lifeboat_sdk::Value;
use serde_json::json;

const USAGE: &str = "usage: trainer [--name NAME] [--seed N] [--steps N] [--bytes N] [--blocks N] \
                     [--pace MS] [--log FILE] [--pause-after STEP] [--teardown MS] [--reference]";
const LEARNING_RATE: f32 = 1e-3;
const BETA: (f32, f32) = (0.9, 0.999);
const EPSILON: f32 = 1e-8;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(fault) => {
            eprintln!("{fault}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    if options.reference {
        println!("{}", reference(&options));
        return ExitCode::SUCCESS;
    }
    match train(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trainer: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line says.
struct Options {
    name: String,
    seed: u64,
    steps: u64,
    /// Size of parameters and moments together.
    bytes: u64,
    /// A step updates one of so many parts of the parameters.
    blocks: u64,
    /// The least time of a step.
    pace: Duration,
    log: Option<PathBuf>,
    /// After this step it only waits for what comes.
    pause_after: Option<u64>,
    /// How long it takes to end, as programs do that have a GPU to give back.
    teardown: Duration,
    reference: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            name: "trainer".to_owned(),
            seed: 1,
            steps: 600,
            bytes: 256 << 20,
            blocks: 16,
            pace: Duration::from_millis(100),
            log: None,
            pause_after: None,
            teardown: Duration::ZERO,
            reference: false,
        };
        while let Some(word) = words.next() {
            if word == "--reference" {
                options.reference = true;
                continue;
            }
            let value = words.next().ok_or_else(|| format!("`{word}` needs a value"))?;
            options.set(&word, value)?;
        }
        if options.blocks == 0 || options.bytes < 12 * options.blocks {
            return Err("`--bytes` must be 12 or more for each of `--blocks`".to_owned());
        }
        Ok(options)
    }

    fn set(&mut self, word: &str, value: String) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|_| format!("`{word}` is not a number"));
        match word {
            "--name" => self.name = value,
            "--seed" => self.seed = number()?,
            "--steps" => self.steps = number()?,
            "--bytes" => self.bytes = number()?,
            "--blocks" => self.blocks = number()?,
            "--pace" => self.pace = Duration::from_millis(number()?),
            "--log" => self.log = Some(value.into()),
            "--teardown" => self.teardown = Duration::from_millis(number()?),
            "--pause-after" => self.pause_after = Some(number()?),
            _ => return Err(format!("`{word}` is no option")),
        }
        Ok(())
    }
}

/// Parameters, both moments, and the gradient's counter.
struct Model {
    seed: u64,
    blocks: usize,
    weights: Tensor<f32>,
    mean: Tensor<f32>,
    variance: Tensor<f32>,
    drawn: Value,
}

impl Model {
    fn new(options: &Options) -> Self {
        let size = usize::try_from(options.bytes / 12).expect("the state fits memory");
        let weights = (0..size).map(|place| uniform(options.seed, 0, place)).collect();
        Self {
            seed: options.seed,
            blocks: usize::try_from(options.blocks).expect("blocks fit memory"),
            weights: Tensor::new(weights),
            mean: Tensor::new(vec![0.0; size]),
            variance: Tensor::new(vec![0.0; size]),
            drawn: Value::new(Tree::Int(0)),
        }
    }

    fn register(&self, boat: &Boat) -> Result<(), Error> {
        boat.register("model/weights", &self.weights)?;
        boat.register("adam/mean", &self.mean)?;
        boat.register("adam/variance", &self.variance)?;
        boat.register("drawn", &self.drawn)
    }

    /// Takes the step of this number, the first being 1.
    fn step(&self, step: u64) {
        let mut weights = self.weights.lock();
        let (mut mean, mut variance) = (self.mean.lock(), self.variance.lock());
        let block = self.block(step, weights.len());
        for place in block.clone() {
            let gradient = uniform(self.seed, step, place);
            mean[place] = BETA.0 * mean[place] + (1.0 - BETA.0) * gradient;
            variance[place] = BETA.1 * variance[place] + (1.0 - BETA.1) * gradient * gradient;
            weights[place] -= LEARNING_RATE * mean[place] / (variance[place].sqrt() + EPSILON);
        }
        let Tree::Int(drawn) = self.drawn.get() else { return };
        self.drawn.set(Tree::Int(drawn + i64::try_from(block.len()).unwrap_or(0)));
    }

    fn block(&self, step: u64, size: usize) -> Range<usize> {
        let block = usize::try_from(step % self.blocks as u64).unwrap_or(0);
        block * size / self.blocks..(block + 1) * size / self.blocks
    }

    /// BLAKE3 of all of it.
    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for tensor in [&self.weights, &self.mean, &self.variance] {
            let bytes = tensor.lock().len() as u64 * 4;
            let mut buffer = vec![0; 1 << 20];
            for offset in (0..bytes).step_by(1 << 20) {
                let length = usize::try_from(bytes - offset).unwrap_or(usize::MAX).min(1 << 20);
                tensor.read(offset, &mut buffer[..length]).expect("nobody else holds it");
                hasher.update(&buffer[..length]);
            }
        }
        hasher.update(format!("{:?}", self.drawn.get()).as_bytes());
        hasher.finalize().to_hex().to_string()
    }
}

fn train(options: &Options) -> Result<(), Error> {
    let log = Log::open(options)?;
    log.write("started", &json!({ "pid": std::process::id(), "steps": options.steps }));
    let settings = Settings::from_environment(|name| std::env::var(name).ok())?;
    let observer = log.clone();
    let boat = Boat::with(Settings {
        observer: Arc::new(move |event| observer.event(event)),
        ..settings
    })?;
    let model = Model::new(options);
    model.register(&boat)?;
    let start = boat.restore()?.unwrap_or(0);
    log.write("training", &json!({ "from": start }));
    for step in start + 1..=options.steps {
        let begun = now();
        model.step(step);
        thread::sleep(options.pace.saturating_sub(begun.elapsed()));
        log.write("step", &json!({ "step": step }));
        boat.step(step)?;
        while options.pause_after == Some(step) {
            thread::sleep(Duration::from_millis(20));
            boat.safe_point()?;
        }
    }
    boat.finish()?;
    log.write("finished", &json!({ "step": options.steps, "digest": model.digest() }));
    Ok(())
}

/// The digest of a run that nothing interrupts.
fn reference(options: &Options) -> String {
    let model = Model::new(options);
    (1..=options.steps).for_each(|step| model.step(step));
    model.digest()
}

/// A number in −1..1 that depends on nothing but these three.
#[expect(clippy::cast_precision_loss, reason = "24 bits fit a float exactly")]
fn uniform(seed: u64, step: u64, place: usize) -> f32 {
    let mut bits = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ step.wrapping_mul(0xbf58_476d_1ce4_e5b9)
        ^ (place as u64).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    (bits >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
}

/// One JSON object a line, for whoever checks what happened.
#[derive(Clone)]
struct Log {
    name: String,
    teardown: Duration,
    file: Option<Arc<Mutex<File>>>,
}

impl Log {
    fn open(options: &Options) -> Result<Self, Error> {
        let open = |path: &PathBuf| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.map_err(|source| Error::File { path: path.clone(), what: "opened", source })
        };
        let file = options.log.as_ref().map(open).transpose()?;
        let (name, teardown) = (options.name.clone(), options.teardown);
        Ok(Self { name, teardown, file: file.map(|file| Arc::new(Mutex::new(file))) })
    }

    fn write(&self, event: &str, with: &serde_json::Value) {
        let Some(file) = &self.file else { return };
        let mut line = json!({ "event": event, "name": self.name, "unix_ms": unix_ms() });
        if let (Some(line), Some(with)) = (line.as_object_mut(), with.as_object()) {
            line.extend(with.clone());
        }
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
            eprintln!("trainer: log was not written: {error}");
        }
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "all the rest is a note")]
    fn event(&self, event: &Event) {
        eprintln!("{}: lifeboat: {event}", self.name);
        let text = event.to_string();
        match event {
            Event::Asked { .. } => self.write("asked", &json!({ "text": text })),
            Event::Parked { step, .. } => self.write("parked", &json!({ "step": step })),
            Event::HandedOver { step, bytes, took } => self.write(
                "handed-over",
                &json!({ "step": step, "bytes": bytes, "seconds": took.as_secs_f64() }),
            ),
            Event::Durable { step, epoch, bytes, took, spare_seconds } => self.write(
                "durable",
                &json!({
                    "step": step, "epoch": epoch, "bytes": bytes, "text": text,
                    "seconds": took.as_secs_f64(), "spare_seconds": spare_seconds,
                }),
            ),
            Event::Waiting { reason } => self.write("waiting", &json!({ "reason": reason })),
            Event::Resumed { epoch, step, proof } => {
                self.write("resumed", &json!({ "epoch": epoch, "step": step, "proof": proof }));
            }
            Event::Exiting { code, reason } => {
                self.write("exiting", &json!({ "code": code, "reason": reason }));
                thread::sleep(self.teardown);
            }
            _ => self.write("note", &json!({ "text": text })),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a program of its own, not part of a simulation")]
fn now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "a program of its own, not part of a simulation")]
fn unix_ms() -> u128 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis())
}
