//! The rules about what lies in the bucket.

use std::collections::BTreeMap;

use lifeboat_checkpoint::key::Keys;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;

use super::Broken;
use super::Run;
use super::broken;
use super::manifests;
use crate::chronicle::What;
use crate::world::State;

/// S2: a manifest that can be read names only chunks that can be read, with matching checksums; and
/// the newest of a job key goes on from a state that is there.
pub(super) fn manifests_are_whole(run: &Run<'_>) -> Vec<Broken> {
    let mut found = Vec::new();
    for (key, newest) in newest(run.state) {
        let Some(parent) = newest.restores_from() else { continue };
        let Some(keys) = keys_of(&newest) else { continue };
        let prefix = key.strip_suffix(&keys.manifest(newest.epoch)).unwrap_or_default();
        let state = run.state.bucket.read(&format!("{prefix}{}", keys.manifest(parent)));
        let state = state.and_then(|bytes| Manifest::parse(&bytes).ok());
        if state.is_none_or(|state| state.kind != Kind::Save) {
            let how = format!("{key} goes on from epoch {parent}, whose state is not there");
            found.push(broken("S2", how));
        }
    }
    for (key, manifest) in manifests(run.state) {
        let whole = manifest.and_then(|manifest| check(run.state, &key, &manifest));
        if let Err(fault) = whole {
            found.push(broken("S2", format!("{key}: {fault}")));
        }
    }
    found
}

fn check(state: &State, key: &str, manifest: &Manifest) -> Result<(), String> {
    let keys = keys_of(manifest).ok_or("it names no place")?;
    let prefix = key.strip_suffix(&keys.manifest(manifest.epoch)).unwrap_or_default();
    // What was collected keeps its number, and nothing goes on from it.
    let ranks = manifest.ranks.iter().filter(|_| manifest.kind != Kind::Collected);
    for (rank, entry) in ranks {
        let path = format!("{prefix}{}", keys.rank(manifest.epoch, *rank, entry.attempt));
        let bytes = state.bucket.read(&path).ok_or_else(|| format!("{path} is not there"))?;
        let parsed = manifest.parse_rank(*rank, &bytes).map_err(|error| error.to_string())?;
        for chunk in &parsed.chunks {
            let Some(address) = chunk.address() else { continue };
            let key = keys.chunk(&address);
            let bytes = state.bucket.read(&format!("{prefix}{key}"));
            let bytes = bytes.ok_or_else(|| format!("{key} is not there"))?;
            chunk.verify(&bytes).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// The manifest of the highest number of each job key.
fn newest(state: &State) -> impl Iterator<Item = (String, Manifest)> {
    let mut newest: BTreeMap<(String, String), (String, Manifest)> = BTreeMap::new();
    for (key, manifest) in manifests(state) {
        let Ok(manifest) = manifest else { continue };
        let owner = (manifest.namespace.clone(), manifest.job_key.clone());
        // In order of the keys, and so of the numbers.
        newest.insert(owner, (key, manifest));
    }
    newest.into_values()
}

fn keys_of(manifest: &Manifest) -> Option<Keys> {
    Keys::new("", &manifest.cluster, &manifest.namespace, &manifest.job_key).ok()
}

/// S12: one commit of each number, whoever tries.
pub(super) fn one_commit_per_epoch(run: &Run<'_>) -> Vec<Broken> {
    let mut commits: BTreeMap<&str, usize> = BTreeMap::new();
    for event in run.events {
        if let What::Committed(commit) = &event.what
            && commit.kind != Kind::Collected
        {
            *commits.entry(&commit.key).or_default() += 1;
        }
    }
    let twice = commits.into_iter().filter(|(_, count)| *count > 1);
    twice.map(|(key, _)| broken("S12", format!("{key} was committed twice"))).collect()
}

/// S14: no byte is read or written under another pod's key.
pub(super) fn keys_are_kept_apart(run: &Run<'_>) -> Vec<Broken> {
    let mut found = Vec::new();
    for (key, manifest) in manifests(run.state) {
        let Ok(manifest) = manifest else { continue };
        let Some(keys) = keys_of(&manifest) else { continue };
        if !key.ends_with(&keys.manifest(manifest.epoch)) {
            found.push(broken("S14", format!("{key} belongs to {}", manifest.job_key)));
        }
    }
    found
}
