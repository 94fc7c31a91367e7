//! The built program as a process: exit codes, signals, and what it says.
#![allow(clippy::print_stderr, reason = "what is skipped is skipped aloud")]

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat_chaos::serve::serve;
use lifeboat_chaos::wire::kube;
use lifeboat_chaos::world::World;
use lifeboat_chaos::world::cluster::resource::INTERRUPTION;
use serde_json::json;

/// A configuration whose every address leads nowhere: port 9 of this machine.
const NOWHERE: &[&str] = &[
    "--set=cluster=east",
    "--set=region=us-east-2",
    "--set=kubernetes.server=http://127.0.0.1:9",
    "--set=queue.url=http://127.0.0.1:9/123456789012/ours",
    "--set=queue.endpoint=http://127.0.0.1:9",
    "--set=store.bucket=checkpoints",
    "--set=store.endpoint=http://127.0.0.1:9",
    "--set=admin.listen=127.0.0.1:0",
    "--set=log.format=text",
];

/// The program beside this test binary; `None`, said aloud, where it was not built.
fn program() -> Option<PathBuf> {
    let test = std::env::current_exe().unwrap();
    let path = test.parent()?.parent()?.join("lifeboat");
    if !path.exists() {
        eprintln!("skipped: the program is not built (`cargo build -p lifeboat` does it)");
        return None;
    }
    Some(path)
}

fn command(arguments: &[&str]) -> Option<Command> {
    let mut command = Command::new(program()?);
    command.env_clear().args(arguments).stdin(Stdio::null());
    command.env("AWS_ACCESS_KEY_ID", "key").env("AWS_SECRET_ACCESS_KEY", "very-secret");
    Some(command)
}

#[track_caller]
fn check(arguments: &[&str], code: i32, said: &[&str]) {
    let Some(mut command) = command(arguments) else { return };
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(code), "{text}");
    for part in said {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

fn nowhere<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    NOWHERE.iter().chain(arguments).copied().collect()
}

#[test]
fn a_wrong_flag_ends_with_64() {
    check(&["--no-such-flag"], 64, &["--no-such-flag"]);
    check(&["controler"], 64, &["controller"]);
    check(&["--set", "drain.maxGrace", "crds"], 64, &["key=value"]);
    check(&["--help"], 0, &["Usage:", "doctor"]);
}

#[test]
fn a_wrong_configuration_ends_with_78_and_names_every_fault() {
    let faults = ["4 faults", "`cluster` is not set", "`store.bucket` is not set", "1s to 60s"];
    let arguments = [
        "--set=region=us-east-2",
        "--set=queue.url=http://q/1/q",
        "--set=drain.maxGrace=15",
        "--set=nope=1",
    ];
    check(&[&arguments[..], &["check-config"]].concat(), 78, &faults);
    check(&["--config", "missing.toml", "check-config"], 78, &["file `missing.toml` was not read"]);
    check(&nowhere(&["check-config"]), 0, &["the configuration is right"]);
}

#[test]
fn a_command_ends_with_69_where_the_api_server_is_not_there() {
    check(&nowhere(&["status"]), 69, &["was not read", "refused"]);
    check(&nowhere(&["cleanup"]), 69, &["the list of pods was not read"]);
    check(&nowhere(&["doctor"]), 78, &["BAD   the API server was not reached"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_that_is_watched_shows_its_progress_until_its_reader_goes() {
    let world = World::new(Clock::starting_at(Timestamp::UNIX_EPOCH, 0), 1);
    let stored = |mebibytes: u64| {
        let record = json!({
            "metadata": {"name": "i-1"},
            "spec": {"node": "gpu-1", "zone": "us-east-2a", "signals": {}},
            "status": {"phase": "Draining", "workloads": {"u": {
                "namespace": "team", "pod": "train-0",
                "save": {"state": "Saving", "bytes": mebibytes << 20, "ofBytes": 4 << 20},
            }}},
        });
        world.update(|state| state.cluster.put(INTERRUPTION, record));
    };
    stored(1);
    let stand_in = serve(kube::wire(&world, "tester")).await.unwrap();
    let server = format!("--set=kubernetes.server={}", stand_in.url());
    let told = nowhere(&[&server, "status", "gpu-1"]);
    tokio::task::block_in_place(|| {
        check(&told, 0, &["INSTANCE", "Draining", "TIME"]);
        let nobody = nowhere(&[&server, "status", "nobody"]);
        check(&nobody, 69, &["an interruption of `nobody` does not exist"]);
        let Some(mut command) = command(&nowhere(&[&server, "status", "--watch"])) else { return };
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for progress in ["1.0 MiB of 4.0 MiB", "2.0 MiB of 4.0 MiB"] {
            let seen = lines.find(|line| line.as_ref().unwrap().contains(progress));
            assert!(seen.is_some(), "no `{progress}`");
            stored(2);
        }
        drop(lines);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    });
}

#[test]
fn the_definitions_are_printed_without_any_configuration() {
    check(&["crds"], 0, &["nodeinterruptions.lifeboat.dev", "workloadcheckpoints.lifeboat.dev"]);
}

#[test]
fn a_service_waits_for_what_is_not_there_and_ends_with_0_on_sigterm() {
    for service in [&["controller"][..], &["--set=agent.nodeName=gpu-1", "agent"]] {
        let folder = tempfile::tempdir().unwrap();
        let root = format!("--set=agent.hostRoot={}", folder.path().display());
        let imds = "--set=agent.imdsEndpoint=http://127.0.0.1:9";
        let arguments = [&nowhere(&[&root, imds])[..], service].concat();
        let Some(mut command) = command(&arguments) else { return };
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        assert!(child.try_wait().unwrap().is_none(), "{service:?} gave up");
        terminate(&child);
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{text}");
        assert_eq!(text.matches("API server not reached yet").count(), 1, "{text}");
        assert!(!text.contains("very-secret"), "{text}");
    }
}

fn terminate(child: &Child) {
    let process = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
}
