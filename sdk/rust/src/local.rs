//! Checkpoints in a folder, where there is no agent: on a laptop, in a test, in a batch job.
//!
//! The same format as in the bucket, with a folder for each rank as if it were alone: ranks that
//! are to agree on a step need an agent.

use std::collections::BTreeMap;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::time::SystemTime;

use lifeboat_checkpoint::attempt::Attempt;
use lifeboat_checkpoint::chunk::Address;
use lifeboat_checkpoint::chunk::CHUNK_DEFAULT;
use lifeboat_checkpoint::chunk::Chunk;
use lifeboat_checkpoint::chunk::Content;
use lifeboat_checkpoint::chunk::Digest;
use lifeboat_checkpoint::chunk::cuts;
use lifeboat_checkpoint::key::Keys;
use lifeboat_checkpoint::manifest::FORMAT;
use lifeboat_checkpoint::manifest::Holder;
use lifeboat_checkpoint::manifest::Kind;
use lifeboat_checkpoint::manifest::Manifest;
use lifeboat_checkpoint::manifest::ManifestError;
use lifeboat_checkpoint::manifest::RankManifest;

use crate::error::Damage;
use crate::error::Error;
use crate::state::Parts;
use crate::state::Stream;
use crate::state::Without;

const LOCAL: &str = "local";

/// The folder of one rank.
pub(crate) struct Folder {
    top: PathBuf,
    keys: Keys,
}

impl Folder {
    pub(crate) fn new(top: &Path, rank: u32) -> Self {
        let keys = Keys::new("", LOCAL, LOCAL, &format!("rank-{rank}"));
        let keys = keys.expect("none of these names is empty");
        Self { top: top.to_owned(), keys }
    }

    /// Saves the state as a new epoch; says which.
    pub(crate) fn save(&self, parts: &Parts, step: u64) -> Result<u64, Error> {
        let stream = parts.stream(&Without::default())?;
        let newest = self.newest()?;
        let epoch = newest.as_ref().map_or(0, |newest| newest.epoch) + 1;
        let attempt = attempt(epoch);
        let known = self.known(newest.as_ref());
        let chunks = self.store(&stream, attempt, &known)?;
        let bytes = stream.bytes();
        let layout = stream.layout;
        let rank = RankManifest { format: FORMAT, epoch, rank: 0, step, layout, chunks };
        self.create(&self.keys.rank(epoch, 0, attempt), &rank.to_bytes())?;
        let ranks = BTreeMap::from([(0, rank.entry(attempt))]);
        let manifest = Manifest { step, bytes, world: 1, ranks, ..empty(Kind::Save, epoch) };
        self.create(&self.keys.manifest(epoch), &manifest.to_bytes())?;
        Ok(epoch)
    }

    /// Says that the work is done.
    pub(crate) fn finish(&self, step: u64) -> Result<(), Error> {
        let epoch = self.newest()?.map_or(0, |newest| newest.epoch) + 1;
        let manifest = Manifest { step, ..empty(Kind::Finished, epoch) };
        self.create(&self.keys.manifest(epoch), &manifest.to_bytes())
    }

    /// Restores the newest state; says its epoch and its steps.
    pub(crate) fn restore(
        &self,
        parts: &Parts,
        newer_than: Option<u64>,
    ) -> Result<Option<(u64, u64)>, Error> {
        let Some(manifest) = self.newest()? else { return Ok(None) };
        let newer = newer_than.is_none_or(|own| manifest.step > own);
        if manifest.restores_from() != Some(manifest.epoch) || !newer {
            return Ok(None);
        }
        let rank = self.rank(&manifest)?;
        let stream = parts.fit(&rank.layout)?;
        let mut offset = 0;
        for chunk in &rank.chunks {
            stream.write(offset, &self.load(chunk)?)?;
            offset += chunk.bytes;
        }
        stream.settle()?;
        parts.take(&rank.layout.tree)?;
        Ok(Some((manifest.epoch, rank.step)))
    }

    /// The chunks that the newest state names: they are not stored again. None if it is damaged.
    fn known(&self, newest: Option<&Manifest>) -> BTreeMap<Digest, Attempt> {
        let newest = newest.filter(|newest| newest.kind == Kind::Save);
        let chunks = newest.and_then(|newest| self.rank(newest).ok()).map(|rank| rank.chunks);
        let stored = chunks.iter().flatten().filter_map(Chunk::address);
        let is_there = |address: &Address| self.top.join(self.keys.chunk(address)).exists();
        stored.filter(is_there).map(|address| (address.digest, address.attempt)).collect()
    }

    fn store(
        &self,
        stream: &Stream,
        attempt: Attempt,
        known: &BTreeMap<Digest, Attempt>,
    ) -> Result<Vec<Chunk>, Error> {
        let mut chunks = Vec::new();
        let mut buffer = Vec::new();
        for cut in cuts(&stream.layout.regions, CHUNK_DEFAULT) {
            buffer.resize(usize::try_from(cut.bytes).expect("a chunk fits memory"), 0);
            stream.read(cut.offset, &mut buffer)?;
            let mut chunk = Chunk::of(&buffer, attempt);
            if let Some(address) = chunk.address() {
                let key = self.keys.chunk(&address);
                if let Some(before) = known.get(&address.digest) {
                    chunk = chunk.stored_by(*before);
                } else if !self.top.join(&key).exists() {
                    self.create(&key, &buffer)?;
                }
            }
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    fn load(&self, chunk: &Chunk) -> Result<Vec<u8>, Error> {
        let Content::Stored(address) = &chunk.content else {
            return Ok(vec![0; usize::try_from(chunk.bytes).expect("a chunk fits memory")]);
        };
        let path = self.top.join(self.keys.chunk(address));
        let bytes = read(&path)?;
        chunk.verify(&bytes).map_err(damaged(&path))?;
        Ok(bytes)
    }

    fn newest(&self) -> Result<Option<Manifest>, Error> {
        let folder = self.top.join(self.keys.epochs());
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&folder, "listed")(error)),
        };
        let mut newest = None;
        for entry in entries {
            let entry = entry.map_err(failed(&folder, "listed"))?;
            let name = entry.file_name();
            let key = format!("{}{}/MANIFEST.json", self.keys.epochs(), name.to_string_lossy());
            let epoch = self.keys.epoch_of(&key).filter(|_| self.top.join(&key).exists());
            newest = newest.max(epoch);
        }
        newest.map(|epoch| self.manifest(epoch)).transpose()
    }

    fn manifest(&self, epoch: u64) -> Result<Manifest, Error> {
        let path = self.top.join(self.keys.manifest(epoch));
        Manifest::parse(&read(&path)?).map_err(damaged(&path))
    }

    fn rank(&self, manifest: &Manifest) -> Result<RankManifest, Error> {
        let Some(entry) = manifest.ranks.get(&0) else {
            let source = ManifestError::Ranks { found: 0, world: manifest.world };
            return Err(damaged(&self.top.join(self.keys.manifest(manifest.epoch)))(source));
        };
        let path = self.top.join(self.keys.rank(manifest.epoch, 0, entry.attempt));
        manifest.parse_rank(0, &read(&path)?).map_err(damaged(&path))
    }

    /// Makes a file whole or not at all, and never over another.
    fn create(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.top.join(key);
        let folder = path.parent().unwrap_or(&self.top);
        fs::create_dir_all(folder).map_err(failed(folder, "made"))?;
        let partial = folder.join(format!(".partial-{}", std::process::id()));
        let written = File::create(&partial)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::hard_link(&partial, &path));
        let removed = fs::remove_file(&partial);
        written.and(removed).map_err(failed(&path, "written"))
    }
}

/// Names an attempt of this process.
#[expect(clippy::disallowed_methods, reason = "nothing here waits, and a name is no decision")]
fn attempt(epoch: u64) -> Attempt {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let words = [std::process::id().to_string(), epoch.to_string(), since.as_nanos().to_string()];
    Attempt::new(since.as_secs(), &words.each_ref().map(String::as_str))
}

fn empty(kind: Kind, epoch: u64) -> Manifest {
    Manifest {
        format: FORMAT,
        kind,
        cluster: LOCAL.to_owned(),
        namespace: LOCAL.to_owned(),
        job_key: LOCAL.to_owned(),
        epoch,
        step: 0,
        world: 0,
        run: String::new(),
        parent: None,
        holder: Holder::default(),
        created_at: String::new(),
        deadline: None,
        bytes: 0,
        ranks: BTreeMap::new(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(failed(path, "read"))
}

fn failed(path: &Path, what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::File { path: path.to_owned(), what, source }
}

fn damaged<E: Into<Damage>>(path: &Path) -> impl Fn(E) -> Error {
    move |source| Error::Damaged { path: path.to_owned(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Part;
    use crate::state::Tensor;
    use crate::state::Value;
    use lifeboat_checkpoint::tree::Tree;

    fn parts(numbers: Vec<f32>) -> (Parts, Tensor<f32>) {
        let weights = Tensor::new(numbers);
        let mut parts = Parts::default();
        parts.add("weights", Part::from(&weights)).unwrap();
        parts.add("seen", Part::from(&Value::new(Tree::Int(3)))).unwrap();
        (parts, weights)
    }

    #[test]
    fn the_newest_state_comes_back_and_nothing_after_the_end() {
        let top = tempfile::tempdir().unwrap();
        let folder = Folder::new(top.path(), 0);
        let (parts, weights) = parts(vec![1.0, 2.0]);
        assert_eq!(folder.restore(&parts, None).unwrap(), None);
        assert_eq!(folder.save(&parts, 5).unwrap(), 1);
        weights.lock().fill(7.0);
        assert_eq!(folder.save(&parts, 6).unwrap(), 2);
        weights.lock().fill(0.0);
        assert_eq!(folder.restore(&parts, Some(6)).unwrap(), None);
        assert_eq!(folder.restore(&parts, Some(5)).unwrap(), Some((2, 6)));
        assert_eq!(weights.lock()[..], [7.0, 7.0]);
        folder.finish(9).unwrap();
        assert_eq!(folder.restore(&parts, None).unwrap(), None);
    }

    #[test]
    fn what_the_newest_state_names_is_not_stored_again() {
        let top = tempfile::tempdir().unwrap();
        let folder = Folder::new(top.path(), 0);
        let (parts, weights) = parts(vec![1.0, 2.0]);
        folder.save(&parts, 5).unwrap();
        folder.save(&parts, 6).unwrap();
        let attempts = || fs::read_dir(top.path().join(folder.keys.chunks())).unwrap().count();
        assert_eq!(attempts(), 1);
        weights.lock().fill(7.0);
        folder.save(&parts, 7).unwrap();
        assert_eq!(attempts(), 2);
        weights.lock().fill(0.0);
        assert_eq!(folder.restore(&parts, None).unwrap(), Some((3, 7)));
        assert_eq!(weights.lock()[..], [7.0, 7.0]);
    }

    #[test]
    fn a_chunk_that_was_changed_is_refused() {
        let top = tempfile::tempdir().unwrap();
        let folder = Folder::new(top.path(), 0);
        let (parts, _) = parts(vec![1.0, 2.0]);
        folder.save(&parts, 5).unwrap();
        let chunks = top.path().join(folder.keys.chunks());
        let first = |folder: PathBuf| fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
        let chunk = first(first(chunks));
        fs::write(&chunk, [9; 8]).unwrap();
        let refused = folder.restore(&parts, None).unwrap_err();
        assert!(matches!(refused, Error::Damaged { source: Damage::Chunk(_), .. }));
    }
}
