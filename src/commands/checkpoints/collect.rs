//! `lifeboat checkpoints collect`: what the controller does by and by, at once and for a person.

use futures::FutureExt;

use super::Bucket;
use super::Key;
use crate::commands::CommandError;
use crate::commands::table::Table;
use crate::commands::table::bytes;
use crate::data::collect;
use crate::data::collect::Leave;
use crate::data::collect::Tally;
use crate::data::history::Owner;
use crate::error::Chain;

/// Whether it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Delete what may go.
    Delete,
    /// Only say what would be deleted.
    Say,
}

/// Which job keys: all where nothing is set.
#[derive(Clone, Debug, Default)]
pub struct Which {
    /// Only this namespace's.
    pub namespace: Option<String>,
    /// Only this one.
    pub job_key: Option<String>,
}

impl Which {
    fn is_of(&self, owner: &Owner) -> bool {
        let namespace = self.namespace.as_ref().is_none_or(|wanted| *wanted == owner.namespace);
        namespace && self.job_key.as_ref().is_none_or(|wanted| *wanted == owner.job_key)
    }
}

/// What became of the job keys.
#[derive(Clone, Debug)]
pub struct Report {
    /// What to print.
    pub text: String,
    /// Job keys that were left alone, since something of theirs cannot be read.
    pub refused: usize,
}

/// Collects, or says what would be collected if the newest `keep` states stay.
pub async fn run(
    bucket: &Bucket,
    which: &Which,
    keep: usize,
    wish: Wish,
) -> Result<Report, CommandError> {
    let place = (bucket.prefix.as_str(), bucket.cluster.as_str());
    let owners = collect::owners(&bucket.store, place, bucket.by()).await;
    let owners = owners.map_err(|error| bucket.failed(error))?;
    let heading = ["NAMESPACE", "KEY", "EPOCHS", "CHUNKS", "BYTES", "NOTE"];
    let mut table = Table::new("", &heading);
    let mut refused = 0;
    for owner in owners {
        if !which.is_of(&owner) {
            continue;
        }
        let (namespace, job_key) = (owner.namespace.clone(), owner.job_key.clone());
        let (tally, note) = one(bucket, &Key { namespace, job_key }, keep, wish).await?;
        refused += usize::from(tally.is_none());
        let tally = tally.unwrap_or_default();
        table.add([
            owner.namespace,
            owner.job_key,
            tally.epochs.to_string(),
            tally.chunks.to_string(),
            bytes(tally.bytes),
            note,
        ]);
    }
    let last = match wish {
        Wish::Delete => "what superseded epochs named goes an hour after they were collected\n",
        Wish::Say => "nothing was deleted\n",
    };
    Ok(Report { text: format!("{}{last}", table.render()), refused })
}

/// One job key; no tally where it is left alone.
async fn one(
    bucket: &Bucket,
    key: &Key,
    keep: usize,
    wish: Wish,
) -> Result<(Option<Tally>, String), CommandError> {
    let history = bucket.history(key)?;
    let survey = match collect::survey(&history, &bucket.clock).await {
        Ok(survey) => survey,
        Err(error) => return Ok((None, Chain(&error).to_string())),
    };
    let plan = survey.plan(keep);
    let mut notes: Vec<String> = Vec::new();
    if plan.open.is_some() {
        notes.push("a save may be under way".to_owned());
    }
    if survey.contents.named.is_none() {
        notes.push("too much at once: only epochs this time".to_owned());
    }
    notes.extend(plan.lost.iter().map(|epoch| format!("pinned epoch {epoch} is gone")));
    let tally = match wish {
        Wish::Say => Ok(Tally::of(&survey, &plan)),
        Wish::Delete => {
            let leave = || std::future::ready(Leave::Granted).boxed();
            collect::act(&history, &bucket.clock, (&survey, &plan), leave).await
        }
    };
    match tally {
        Ok(tally) => Ok((Some(tally), notes.join("; "))),
        Err(error) => Ok((None, Chain(&error).to_string())),
    }
}
