//! Tells people, by an Event on the pod, of work that could not be saved if its node were taken now.

use std::collections::BTreeMap;

use crate::adapters::cluster::checkpoints::CheckpointRow;
use crate::adapters::cluster::events::About;
use crate::adapters::cluster::events::Note;
use crate::adapters::cluster::events::Tone;
use crate::adapters::cluster::pods::PodRow;
use crate::controller::Deps;
use crate::crd::workload_checkpoint::Outlook;

/// What was told of each index last: namespace and job key, and whether it could be saved.
#[derive(Debug, Default)]
pub struct Told(BTreeMap<(String, String), bool>);

/// Tells what has turned since it was told last.
///
/// The Event is named by the time at which that was found: a new leader says it again, and it stays
/// one.
pub async fn tell(deps: &Deps, told: &mut Told) {
    let news = deps.caches.checkpoints.select(|row| told.news(row).map(|it| (row.clone(), it)));
    for (row, outlook) in news {
        let on = |pod: &PodRow| {
            let its = pod.namespace == row.namespace && pod.name == outlook.pod;
            its.then(|| pod.clone())
        };
        // A pod that is gone is at risk no more, whatever its index says.
        let Some(pod) = deps.caches.pods.select(on).pop() else { continue };
        if deps.tell(&note(&pod, &outlook), outlook.at).await {
            told.0.insert((row.namespace, row.job_key), outlook.fits);
        }
    }
}

impl Told {
    fn news(&self, row: &CheckpointRow) -> Option<Outlook> {
        let outlook = row.status.outlook.clone()?;
        let before = self.0.get(&(row.namespace.clone(), row.job_key.clone()));
        // Of what was never amiss nothing is told.
        let told = before.copied().unwrap_or(true);
        (told != outlook.fits && row.status.finished != Some(true)).then_some(outlook)
    }
}

fn note(pod: &PodRow, outlook: &Outlook) -> Note {
    let Outlook { fits, node, bytes, window, needed, by, .. } = outlook;
    let (warning, reason, verdict) = if *fits {
        (Tone::Normal, "SavableAgain", "it could be saved at a Spot notice again")
    } else {
        (Tone::Warning, "AtRisk", "it could not be saved at a Spot notice")
    };
    let mebibytes = bytes >> 20;
    Note {
        about: About::pod(pod),
        warning,
        reason,
        message: format!(
            "{verdict}: with {mebibytes} MiB on `{node}` it needs {needed} s, and {window} s are \
             left ({by} rate)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::crd::workload_checkpoint::WorkloadCheckpointStatus;

    fn index(fits: bool) -> CheckpointRow {
        let outlook = Outlook {
            fits,
            pod: "train-0".to_owned(),
            node: "gpu-1".to_owned(),
            at: Timestamp::UNIX_EPOCH,
            bytes: 60 << 30,
            window: 115,
            needed: 242,
            bytes_per_second: 312_500_000,
            by: "baseline".to_owned(),
        };
        let status = WorkloadCheckpointStatus {
            outlook: Some(outlook),
            ..WorkloadCheckpointStatus::default()
        };
        CheckpointRow { namespace: "team".to_owned(), job_key: "train".to_owned(), status }
    }

    #[test]
    fn only_what_turns_is_told() {
        let mut told = Told::default();
        let key = ("team".to_owned(), "train".to_owned());
        assert!(told.news(&index(true)).is_none(), "it was never amiss");
        assert!(told.news(&index(false)).is_some());
        told.0.insert(key.clone(), false);
        assert!(told.news(&index(false)).is_none(), "told already");
        assert!(told.news(&index(true)).is_some());
        told.0.insert(key, true);
        assert!(told.news(&index(true)).is_none());
        assert!(told.news(&index(false)).is_some(), "once more");
    }

    #[test]
    fn what_is_finished_is_not_at_risk() {
        let mut done = index(false);
        done.status.finished = Some(true);
        assert!(Told::default().news(&done).is_none());
    }
}
