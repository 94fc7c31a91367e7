//! Storms in which something dies, by `chaos bench storm` itself: what the API server's log says of
//! them, and not how long they took.

use std::process::Command;

use lifeboat_chaos::crew;
use serde_json::Value;

use crate::plane;

/// The leader is killed with -9 when a third of the nodes is fenced: the other replica finishes, and
/// nothing is written twice.
#[test]
fn a_leader_killed_in_a_storm_leaves_nothing_undone_and_nothing_done_twice() {
    let Some(figures) = storm(&["--ordeal", "leader-killed", "--replicas", "2"]) else { return };
    went_on(&figures);
    let took = figures["aftermath"]["taken_over_ms"].as_f64();
    assert!(took.is_some(), "nobody took the Lease over");
    eprintln!("the Lease was taken over {} ms after the kill", took.unwrap());
}

/// The API server is killed with -9 in the midst of a storm, while 500 agents watch: all of them go
/// on, what they list anew comes from its cache, and not from all of them at once.
#[test]
fn an_api_server_that_comes_back_is_not_run_over_by_its_agents() {
    let with = ["--ordeal", "api-server-restarted", "--replicas", "2", "--agents", "500"];
    let Some(figures) = storm(&with) else { return };
    went_on(&figures);
    let aftermath = &figures["aftermath"];
    assert_eq!(aftermath["lists_past_the_cache"], 0);
    let lists = aftermath["lists"].as_u64().unwrap();
    let [most, seconds] = [0, 1].map(|part| aftermath["lists_spread"][part].as_u64().unwrap());
    eprintln!("{lists} lists of 500 agents within {seconds} s, {most} in the busiest of them");
    assert!(lists < 500 || seconds >= 3, "{lists} lists within {seconds} s");
}

/// etcd stands still three quarters of the time: fences go before everything else.
#[test]
fn a_slow_etcd_is_asked_for_fences_first() {
    let Some(figures) = storm(&["--ordeal", "etcd-slow"]) else { return };
    went_on(&figures);
    assert_eq!(figures["aftermath"]["fence_not_first"], Value::Array(Vec::new()));
}

/// Every node is fenced, recorded and held, every message is gone, the holder of the Lease has
/// looked at every record, and nothing was written twice.
#[track_caller]
fn went_on(figures: &Value) {
    let (nodes, aftermath) = (&figures["nodes"], &figures["aftermath"]);
    for edge in ["fenced", "recorded", "held", "deleted"] {
        assert_eq!(&figures["edges"][edge]["count"], nodes, "{edge}: {figures:#}");
    }
    assert_eq!(figures["queue"]["left"], 0);
    assert_eq!(figures["queue"]["deleted_early"], 0);
    assert_eq!(&aftermath["reconciled"], nodes);
    assert_eq!(aftermath["written_twice"], Value::Array(Vec::new()));
}

/// The figures of a storm of 60 nodes; `None`, said aloud, where it cannot be.
#[track_caller]
fn storm(with: &[&str]) -> Option<Value> {
    let binaries = plane::binaries()?;
    crew::built().inspect_err(|missing| eprintln!("skipped: {missing}")).ok()?;
    let ran = Command::new(env!("CARGO_BIN_EXE_chaos"))
        .args(["bench", "storm", "--nodes", "60", "--pods", "2", "--settle", "0"])
        .args(["--no-fsync", "--json"])
        .args(with)
        .env("LIFEBOAT_CLUSTER_BIN", binaries)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    let figures = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}{figures}");
    Some(serde_json::from_slice(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {said}")))
}
