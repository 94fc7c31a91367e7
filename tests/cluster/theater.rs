//! The control planes with Karpenter that the tests of our programs share: two, so that two tests
//! play at a time, each alone on its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use lifeboat::clock::Clock;
use lifeboat_chaos::company;
use lifeboat_chaos::company::Company;
use lifeboat_chaos::company::Site;
use lifeboat_chaos::company::objects::Objects;
use lifeboat_chaos::control_plane::Audit;
use lifeboat_chaos::control_plane::ControlPlane;
use lifeboat_chaos::control_plane::KarpenterSettings;
use lifeboat_chaos::control_plane::Part;
use lifeboat_chaos::control_plane::Settings;
use lifeboat_chaos::control_plane::audit::Entry;
use lifeboat_chaos::control_plane::cloud::Behavior;
use lifeboat_chaos::control_plane::identity::Identity;
use lifeboat_chaos::crew;
use serde_json::Value;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;
use tokio::sync::MutexGuard;
use tokio::time::Instant;

use crate::plane;
use crate::roles;

/// How long anything may take that is waited for. Far more than it takes: nothing is timed by it.
const PATIENCE: Duration = Duration::from_secs(150);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// One test's turn on the control plane.
pub(crate) struct Turn {
    pub(crate) plane: MutexGuard<'static, Option<ControlPlane>>,
    programs: PathBuf,
    folder: tempfile::TempDir,
    began: jiff::Timestamp,
}

/// Runs a test on the control plane; where that or our programs are not built, it says so.
pub(crate) fn on_stage(test: impl AsyncFnOnce(Turn)) {
    let Some((binaries, programs)) = plane::binaries().zip(programs()) else { return };
    // One runtime for all tests: the control plane and its client outlive each of them.
    runtime().block_on(async { test(Turn::begin(&binaries, programs).await).await });
}

/// Waits until `look` finds something; panics, naming it, when it does not come.
#[track_caller]
pub(crate) fn eventually<T>(
    what: &str,
    look: impl AsyncFnMut() -> Option<T>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    let what = format!("{what} ({}:{})", caller.file(), caller.line());
    wait(what, look)
}

async fn wait<T>(what: String, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < until, "not seen: {what}");
        tokio::time::sleep(LOOK).await;
    }
}

impl Turn {
    async fn begin(binaries: &Path, programs: PathBuf) -> Self {
        let (number, mut plane) = free_plane().await;
        if plane.is_none() {
            *plane = Some(raise(binaries, number).await);
        }
        let turn = Self {
            plane,
            programs,
            folder: tempfile::tempdir().unwrap(),
            began: Clock::system().now(),
        };
        turn.plane().cloud().behave(&Behavior::default()).unwrap();
        company::clear(&Objects::new(turn.plane().client())).await;
        turn
    }

    pub(crate) fn plane(&self) -> &ControlPlane {
        self.plane.as_ref().unwrap()
    }

    pub(crate) fn plane_mut(&mut self) -> &mut ControlPlane {
        self.plane.as_mut().unwrap()
    }

    /// Settings of a company of this name, for [`Turn::company`].
    pub(crate) fn settings(&self, name: &str) -> company::Settings {
        company::Settings::new(name, &self.programs, self.folder.path())
    }

    /// A company without controllers.
    pub(crate) async fn company(&self, settings: company::Settings) -> Company {
        let mut kubeconfigs = BTreeMap::new();
        for program in ["controller-0", "controller-1", "agent"] {
            let who = Identity::account(&settings.name, program);
            let kubeconfig = self.plane().kubeconfig_of(&who).await.unwrap();
            kubeconfigs.insert(program.to_owned(), kubeconfig);
        }
        roles::grant(&Objects::new(self.plane().client()), &settings.name).await;
        let site = Site { client: self.plane().client(), kubeconfigs };
        Company::new(site, settings).await.unwrap()
    }

    /// What was asked of the API server since this test began, by whose name begins so.
    pub(crate) fn asked_by(&self, user: &str) -> Vec<Entry> {
        let mut entries = self.plane().audit().unwrap();
        entries.retain(|entry| entry.received >= self.began && entry.user.contains(user));
        entries.retain(|entry| (200..300).contains(&entry.code));
        entries.sort_by_key(|entry| entry.received);
        entries
    }
}

impl Drop for Turn {
    /// Whoever looks into a failure finds what was written to the API server, and all logs.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.folder.disable_cleanup(true);
        eprintln!("logs and machines: {}", self.folder.path().display());
        eprintln!(
            "the control plane's log of Karpenter: {}",
            self.plane().log(Part::Karpenter).display()
        );
        for entry in self.asked_by("").iter().filter(|entry| entry.writes()) {
            let Entry { received, user, verb, resource, subresource, name, .. } = entry;
            if !["leases", "events"].contains(&resource.as_str()) {
                eprintln!("{received} {user} {verb} {resource} {subresource} {name}");
            }
        }
    }
}

/// Waits until no other test plays on one of the planes.
async fn free_plane() -> (usize, MutexGuard<'static, Option<ControlPlane>>) {
    static PLANES: [Mutex<Option<ControlPlane>>; 2] = [const { Mutex::const_new(None) }; 2];
    loop {
        let free = PLANES.iter().enumerate();
        let mut free = free.filter_map(|(number, plane)| Some((number, plane.try_lock().ok()?)));
        if let Some(found) = free.next() {
            return found;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Starts a control plane of this binary; it ends with the process.
async fn raise(binaries: &Path, number: usize) -> ControlPlane {
    let state = state_folder(number);
    std::fs::create_dir_all(&state).unwrap();
    let types = state.join("instance-types.json");
    std::fs::write(&types, instance_types().to_string()).unwrap();
    let mut settings = Settings::new(binaries, &state);
    settings.audit = Audit::Requests;
    settings.karpenter =
        Some(KarpenterSettings { instance_types: Some(types), ..KarpenterSettings::new() });
    ControlPlane::start(settings).await.unwrap()
}

/// A folder for a plane of this process; those of processes that are gone go with it.
fn state_folder(number: usize) -> PathBuf {
    const PREFIX: &str = "lifeboat-cluster-test-";
    let all = std::env::temp_dir();
    for entry in std::fs::read_dir(&all).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        let owner = owner.map(|(pid, _)| Path::new("/proc").join(pid));
        if owner.is_some_and(|owner| !owner.exists()) {
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
    all.join(format!("{PREFIX}{}-{number}", std::process::id()))
}

/// Two families with a GPU, one with four, and one without, in two zones of the simulated region.
fn instance_types() -> Value {
    let types = [
        ("m5.2xlarge", 0, 0.14),
        ("g5.xlarge", 1, 0.40),
        ("g6.xlarge", 1, 0.45),
        ("g5.12xlarge", 4, 2.20),
    ];
    types
        .iter()
        .map(|(name, gpus, price)| {
            let mut resources = json!({
                "cpu": "48", "memory": "192Gi", "pods": "110", "ephemeral-storage": "100Gi",
            });
            if *gpus > 0 {
                resources["nvidia.com/gpu"] = json!(gpus.to_string());
            }
            json!({
                "name": name, "resources": resources, "zones": ["us-east-2a", "us-east-2b"],
                "prices": { "spot": price, "on-demand": price * 2.5 },
            })
        })
        .collect()
}

/// The folder of our own programs; `None`, said aloud, where they were not built.
fn programs() -> Option<PathBuf> {
    crew::built().inspect_err(|missing| eprintln!("skipped: {missing}")).ok()
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
    })
}
