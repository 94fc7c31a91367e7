//! What the trainers write into their logs, as lines of the diary.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::world::cluster::object;
use crate::world::workloads::Diary;

/// Reads the trainers' logs for as long as it is polled.
pub(crate) async fn follow(diary: Diary, folder: PathBuf) {
    let mut read: BTreeMap<PathBuf, usize> = BTreeMap::new();
    loop {
        for path in logs(&folder) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let whole = text.rfind('\n').map_or(0, |end| end + 1);
            let seen = read.entry(path.clone()).or_default();
            let pod = path.file_stem().unwrap_or_default().to_string_lossy();
            for line in text[*seen..whole].lines() {
                let entry: Value = serde_json::from_str(line).unwrap_or_default();
                if let Some(said) = said(&entry) {
                    diary.note(format!("{pod} {said}"));
                }
            }
            *seen = whole;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn logs(folder: &PathBuf) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut logs: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "jsonl"))
        .collect();
    logs.sort();
    logs
}

/// A line of the log as a sentence; steps are too many to tell.
fn said(entry: &Value) -> Option<String> {
    let number = |name: &str| object::number(entry, &format!("/{name}")).unwrap_or(0);
    let text = |name: &str| object::text(entry, &format!("/{name}"));
    Some(match text("event") {
        "training" => format!("trains from step {}", number("from")),
        "asked" => "is asked to save".to_owned(),
        "parked" => format!("parked at step {}", number("step")),
        "handed-over" => format!("has handed over step {}", number("step")),
        "durable" => format!("heard: {}", text("text")),
        "waiting" => format!("waits to resume: {}", text("reason")),
        "resumed" => format!("resumed at step {} ({})", number("step"), text("proof")),
        "exiting" => format!("ends with {}: {}", number("code"), text("reason")),
        "finished" => format!("finished at step {} digest {}", number("step"), text("digest")),
        _ => return None,
    })
}
