//! `chaos bench notice`: that it sees what is durable in time, and what is not.
#![allow(clippy::print_stderr, reason = "what is skipped is skipped aloud")]

use lifeboat_chaos::bench::notice;
use lifeboat_chaos::bench::notice::Options;
use lifeboat_chaos::crew;
use serde_json::Value;

/// One trainer, a state of 8 MiB, steps of a tenth of a second, a network of 1 Gbit/s.
fn options(programs: std::path::PathBuf) -> Options {
    Options {
        trainers: vec![1],
        state_mib: vec![8],
        step: vec![0.1],
        gbit: vec![1.0],
        notices: 1,
        at_once: 2,
        window: 60,
        refused: 0,
        missing: 0,
        early: 0,
        chunk_mib: 1,
        seed: 1,
        programs: Some(programs),
        logs: None,
        json: None,
    }
}

async fn measured(options: &Options) -> (bool, Value) {
    let figures = notice::measure(options).await.unwrap();
    (figures.is_well(), serde_json::to_value(&figures).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fits_is_durable_though_a_path_is_missing_and_the_store_refuses_and_goes_on() {
    let Ok(programs) = crew::built().inspect_err(|missing| eprintln!("skipped: {missing}")) else {
        return;
    };
    let options = Options { trainers: vec![3], missing: 100, refused: 30, ..options(programs) };
    let (well, figures) = measured(&options).await;
    let node = &figures["cells"][0]["nodes"][0];
    assert!(well && node["fits"] == true, "{figures:#}");
    assert!(node["refused"].as_u64().unwrap() > 0, "{figures:#}");
    for state in node["states"].as_array().unwrap() {
        assert!(state["durable"].as_f64().unwrap() > state["boundary"].as_f64().unwrap());
        assert_eq!(state["saved_step"], state["resumed_step"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_not_called_durable() {
    let Ok(programs) = crew::built().inspect_err(|missing| eprintln!("skipped: {missing}")) else {
        return;
    };
    let options =
        Options { state_mib: vec![256], gbit: vec![0.1], window: 12, ..options(programs) };
    let (_, figures) = measured(&options).await;
    let node = &figures["cells"][0]["nodes"][0];
    assert_eq!(node["fits"], false, "{figures:#}");
    assert!(node["states"][0]["durable"].is_null(), "{figures:#}");
}
