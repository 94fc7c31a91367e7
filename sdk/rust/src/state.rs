//! The program's state: what it registers, and how its bytes are read and written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ops::DerefMut;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::TryLockError;
use std::thread;
use std::time::Duration;

use lifeboat_checkpoint::region::Dtype;
use lifeboat_checkpoint::region::Layout;
use lifeboat_checkpoint::region::Need;
use lifeboat_checkpoint::region::Region;
use lifeboat_checkpoint::region::Spread;
use lifeboat_checkpoint::tree::Tree;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::error::Error;

/// How long a lock that somebody holds is waited for.
const BUSY_FOR: Duration = Duration::from_secs(2);
const BUSY_PAUSE: Duration = Duration::from_millis(5);
/// Where files lie in a stream: after all memory.
const FILES: u8 = 2;

/// Memory that can be saved: a tensor, an array, a buffer.
///
/// Bytes are little-endian, without gaps. Both calls come only while the program is in `step`,
/// `safe_point`, `save` or `restore`, and stay within the size that dtype and shape make.
pub trait Memory: Send + Sync {
    /// Type of its elements.
    fn dtype(&self) -> Dtype;
    /// Its dimensions.
    fn shape(&self) -> Vec<u64>;
    /// Copies bytes from `offset` on.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Busy>;
    /// Puts bytes at `offset`.
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Busy>;
}

/// A structure of values that are not tensors: settings of the optimizer, the loader's place.
pub trait Structure: Send + Sync {
    /// The values now.
    fn tree(&self) -> Result<Tree, Busy>;
    /// Takes values that were saved; an error says in words why not.
    fn take(&self, tree: &Tree) -> Result<(), String>;
}

/// A part whose pieces are known only when it is saved: what an optimizer holds, a dictionary.
///
/// Calls come as those of [`Memory`] do, but for [`known`](Self::known).
pub trait Collection: Send + Sync {
    /// The regions as they were when last looked at, for estimates. Asked for from any thread.
    fn known(&self) -> Vec<Piece>;
    /// What it consists of now.
    fn pieces(&self) -> Result<Pieces, Error>;
    /// Where these regions of a checkpoint are to be put, in their order; refused if they do not
    /// fit. Nothing of the program is to change yet, but for what is written to those places.
    fn room(&self, saved: &[Piece], tree: Option<&Tree>) -> Result<Vec<Arc<dyn Memory>>, Error>;
    /// Takes what was saved: all bytes are where [`room`](Self::room) said.
    fn settle(&self, tree: Option<&Tree>) -> Result<(), Error>;
}

/// A region of a [`Collection`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its name within the part; empty if the part is this region alone.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<u64>,
}

/// What a [`Collection`] consists of.
#[derive(Default)]
pub struct Pieces {
    /// Its regions, by their names within the part.
    pub memories: Vec<(String, Arc<dyn Memory>)>,
    /// Files of this rank, by their names within the part: taken by descriptor, as those of
    /// [`Part::file`] are, so they may be unlinked already.
    pub files: Vec<(String, File)>,
    /// What is not in them.
    pub tree: Option<Tree>,
}

/// Somebody else holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy;

/// Something to register.
#[derive(Clone)]
pub struct Part {
    kind: Kind,
    need: Need,
    spread: Spread,
}

#[derive(Clone)]
enum Kind {
    Memory(Arc<dyn Memory>),
    Structure(Arc<dyn Structure>),
    Collection(Arc<dyn Collection>),
    File(PathBuf),
}

impl Part {
    /// Memory of the program's own kind.
    pub fn memory(memory: Arc<dyn Memory>) -> Self {
        Self::of(Kind::Memory(memory))
    }

    /// A structure of the program's own kind.
    pub fn structure(structure: Arc<dyn Structure>) -> Self {
        Self::of(Kind::Structure(structure))
    }

    /// A collection of the program's own kind. Its regions are named below the part's name.
    pub fn collection(collection: Arc<dyn Collection>) -> Self {
        Self::of(Kind::Collection(collection))
    }

    /// A file that the program keeps; saved as it is at a safe point, and put back by renaming.
    ///
    /// It is taken by descriptor, so the program need not live until its last byte is taken. It
    /// must not be changed in place after a safe point at which it was taken: write a new file
    /// and rename it.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::of(Kind::File(path.into()))
    }

    /// A save without it is one, if time is short.
    #[must_use]
    pub fn best_effort(self) -> Self {
        Self { need: Need::BestEffort, ..self }
    }

    /// All ranks hold the same bytes, so that one of them can hand them over. Files are each rank's.
    #[must_use]
    pub fn replicated(self) -> Self {
        match self.kind {
            Kind::Memory(_) | Kind::Collection(_) => Self { spread: Spread::Replicated, ..self },
            Kind::Structure(_) | Kind::File(_) => self,
        }
    }

    fn of(kind: Kind) -> Self {
        Self { kind, need: Need::Required, spread: Spread::Own }
    }
}

/// A number that tensors are made of.
pub trait Element: FromBytes + IntoBytes + Immutable + Copy + Send + 'static {
    /// Its type's name.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($number:ty => $dtype:ident,)*) => {$(
        impl Element for $number {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}

elements! { u8 => U8, u32 => U32, u64 => U64, i32 => I32, i64 => I64, f32 => F32, f64 => F64, }

/// A row of numbers that program and boat share. Clones are the same tensor.
pub struct Tensor<T> {
    numbers: Arc<Mutex<Box<[T]>>>,
    length: usize,
}

impl<T: Element> Tensor<T> {
    /// A tensor of these numbers.
    pub fn new(numbers: Vec<T>) -> Self {
        let length = numbers.len();
        Self { numbers: Arc::new(Mutex::new(numbers.into_boxed_slice())), length }
    }

    /// The numbers, to work on. To be dropped before the next `step`.
    pub fn lock(&self) -> Borrowed<'_, T> {
        Borrowed(self.numbers.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> Clone for Tensor<T> {
    fn clone(&self) -> Self {
        Self { numbers: Arc::clone(&self.numbers), length: self.length }
    }
}

/// The numbers of a [`Tensor`], held.
pub struct Borrowed<'a, T>(MutexGuard<'a, Box<[T]>>);

impl<T> Deref for Borrowed<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for Borrowed<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Element> Memory for Tensor<T> {
    fn dtype(&self) -> Dtype {
        T::DTYPE
    }

    fn shape(&self) -> Vec<u64> {
        vec![self.length as u64]
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Busy> {
        let numbers = held(&self.numbers)?;
        let from = within(offset, into.len());
        into.copy_from_slice(&numbers.as_bytes()[from]);
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Busy> {
        let mut numbers = held(&self.numbers)?;
        let into = within(offset, from.len());
        numbers.as_mut_bytes()[into].copy_from_slice(from);
        Ok(())
    }
}

impl<T: Element> From<&Tensor<T>> for Part {
    fn from(tensor: &Tensor<T>) -> Self {
        Self::memory(Arc::new(tensor.clone()))
    }
}

/// A tree of values that program and boat share. Clones are the same value.
#[derive(Clone)]
pub struct Value {
    tree: Arc<Mutex<Tree>>,
}

impl Value {
    /// This value.
    pub fn new(tree: Tree) -> Self {
        Self { tree: Arc::new(Mutex::new(tree)) }
    }

    /// What it is now.
    pub fn get(&self) -> Tree {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes it this.
    pub fn set(&self, tree: Tree) {
        *self.tree.lock().unwrap_or_else(PoisonError::into_inner) = tree;
    }
}

impl Structure for Value {
    fn tree(&self) -> Result<Tree, Busy> {
        Ok(self.get())
    }

    fn take(&self, tree: &Tree) -> Result<(), String> {
        self.set(tree.clone());
        Ok(())
    }
}

impl From<&Value> for Part {
    fn from(value: &Value) -> Self {
        Self::structure(Arc::new(value.clone()))
    }
}

/// All that the program registered, in order.
#[derive(Clone, Default)]
pub(crate) struct Parts {
    parts: Vec<(String, Part)>,
}

/// What is left out of a save.
#[derive(Clone, Debug, Default)]
pub(crate) struct Without {
    /// Another rank hands over the replicated regions.
    pub(crate) replicated: bool,
    /// Best-effort regions for which there is no time.
    pub(crate) names: Vec<String>,
}

impl Without {
    fn keeps(&self, region: &Region) -> bool {
        let donated = self.replicated && region.spread == Spread::Replicated;
        let dropped = region.need == Need::BestEffort && self.names.contains(&region.name);
        !donated && !dropped
    }
}

impl Parts {
    pub(crate) fn add(&mut self, name: &str, part: Part) -> Result<(), Error> {
        if self.parts.iter().any(|(known, _)| known == name) {
            return Err(Error::RegisteredTwice { name: name.to_owned() });
        }
        if let Some((other, _)) = self.parts.iter().find(|(other, known)| {
            (known.is_collection() && within_name(other, name).is_some())
                || (part.is_collection() && within_name(name, other).is_some())
        }) {
            return Err(Error::Nested { name: name.to_owned(), other: other.clone() });
        }
        self.parts.push((name.to_owned(), part));
        self.layout().check().map_err(Error::Layout).inspect_err(|_| {
            self.parts.pop();
        })
    }

    /// What would be saved now, without its tree. A file that is not there has no bytes.
    pub(crate) fn layout(&self) -> Layout {
        let file = |path: &Path| path.metadata().map_or(0, |metadata| metadata.len());
        let regions = self.parts.iter().flat_map(|(name, part)| match &part.kind {
            Kind::Memory(memory) => vec![part.region(name, memory.dtype(), &memory.shape())],
            Kind::File(path) => vec![part.region(name, Dtype::U8, &[file(path)])],
            Kind::Collection(collection) => {
                collection.known().into_iter().map(|piece| part.piece(name, piece)).collect()
            }
            Kind::Structure(_) => Vec::new(),
        });
        Layout { regions: regions.collect(), tree: Tree::Null }
    }

    /// The stream to save: replicated memory, the rest of it, then files.
    pub(crate) fn stream(&self, without: &Without) -> Result<Stream, Error> {
        let (mut found, mut entries) = (Vec::new(), Vec::new());
        for (name, part) in &self.parts {
            if let Some(tree) = part.contents(name, &mut found)? {
                entries.push((Tree::Str(name.clone()), tree));
            }
        }
        found.retain(|(_, region, _)| without.keeps(region));
        found.sort_by_key(|(place, _, _)| *place);
        let mut stream = Stream::default();
        for (_, region, source) in found {
            stream.push(region, source);
        }
        stream.layout.tree = Tree::Map(entries);
        Ok(stream)
    }

    /// Where the bytes of a saved stream go; refused if they do not fit.
    pub(crate) fn fit(&self, layout: &Layout) -> Result<Stream, Error> {
        layout.check()?;
        self.fit_values(&layout.tree)?;
        for (name, part) in &self.parts {
            let there = layout.regions.iter().any(|region| region.name == *name);
            let region = matches!(part.kind, Kind::Memory(_) | Kind::File(_));
            if region && part.need == Need::Required && !there {
                return Err(Error::Missing { name: name.clone() });
            }
        }
        let mut rooms = self.rooms(layout)?;
        let mut stream = Stream { layout: layout.clone(), ..Stream::default() };
        for (offset, region) in layout.placed() {
            let part = self.parts.iter().find(|(name, _)| *name == region.name);
            let source = match (rooms.remove(&region.name), part) {
                (Some(memory), _) => Source::Memory(memory),
                (None, Some((_, part))) => part.takes(region)?,
                (None, None) => Source::Nowhere,
            };
            stream.sources.push((offset, region.bytes, source));
        }
        Ok(stream)
    }

    /// Gives the program the values that were saved.
    pub(crate) fn take(&self, tree: &Tree) -> Result<(), Error> {
        for (name, part) in &self.parts {
            match &part.kind {
                Kind::Structure(structure) => {
                    let missing = || Error::Missing { name: name.clone() };
                    let value = tree.entry(name).ok_or_else(missing)?;
                    let refused = |reason| Error::NotTaken { name: name.clone(), reason };
                    structure.take(value).map_err(refused)?;
                }
                Kind::Collection(collection) => collection.settle(tree.entry(name))?,
                Kind::Memory(_) | Kind::File(_) => (),
            }
        }
        Ok(())
    }

    fn fit_values(&self, tree: &Tree) -> Result<(), Error> {
        for (name, part) in &self.parts {
            let value = tree.entry(name);
            if matches!(part.kind, Kind::Structure(_)) && value.is_none() {
                return Err(Error::Missing { name: name.clone() });
            }
            if let Some(path) = value.and_then(Tree::unknown) {
                let reason = format!("a newer version saved it, with a value at `{path}`");
                return Err(Error::NotTaken { name: name.clone(), reason });
            }
        }
        Ok(())
    }

    /// Where the regions of collections go, by their names.
    fn rooms(&self, layout: &Layout) -> Result<BTreeMap<String, Arc<dyn Memory>>, Error> {
        let mut rooms = BTreeMap::new();
        for (name, part) in &self.parts {
            let Kind::Collection(collection) = &part.kind else { continue };
            let (mut names, mut saved) = (Vec::new(), Vec::new());
            for region in &layout.regions {
                let Some(within) = within_name(name, &region.name) else { continue };
                let (dtype, shape) = (region.dtype.clone(), region.shape.clone());
                names.push(region.name.clone());
                saved.push(Piece { name: within.to_owned(), dtype, shape });
            }
            let memories = collection.room(&saved, layout.tree.entry(name))?;
            for ((region, piece), memory) in names.into_iter().zip(&saved).zip(memories) {
                // A place of another size would be written to past its end.
                let own = part.region(&region, memory.dtype(), &memory.shape());
                let there = part.region(&region, piece.dtype.clone(), &piece.shape);
                if own.bytes != there.bytes {
                    let (own, saved) = (describe(&own), describe(&there));
                    return Err(Error::OtherShape { name: region, own, saved });
                }
                rooms.insert(region, memory);
            }
        }
        Ok(rooms)
    }
}

impl Part {
    fn region(&self, name: &str, dtype: Dtype, shape: &[u64]) -> Region {
        Region { need: self.need, spread: self.spread, ..Region::new(name, dtype, shape) }
    }

    fn piece(&self, name: &str, piece: Piece) -> Region {
        self.region(&name_within(name, &piece.name), piece.dtype, &piece.shape)
    }

    fn is_collection(&self) -> bool {
        matches!(self.kind, Kind::Collection(_))
    }

    /// Adds what there is of it to save; what is not in regions is returned.
    fn contents(
        &self,
        name: &str,
        found: &mut Vec<(u8, Region, Source)>,
    ) -> Result<Option<Tree>, Error> {
        match &self.kind {
            Kind::Memory(memory) => {
                let region = self.region(name, memory.dtype(), &memory.shape());
                found.push((place(&region), region, Source::Memory(Arc::clone(memory))));
                Ok(None)
            }
            Kind::File(path) => {
                let (file, length) = open(path)?;
                let region = self.region(name, Dtype::U8, &[length]);
                found.push((FILES, region, Source::File(file, path.clone())));
                Ok(None)
            }
            Kind::Structure(structure) => {
                let tree = structure.tree().map_err(|Busy| Error::Busy { name: name.to_owned() });
                tree.map(Some)
            }
            Kind::Collection(collection) => {
                let pieces = collection.pieces()?;
                for (within, memory) in pieces.memories {
                    let own = name_within(name, &within);
                    let region = self.region(&own, memory.dtype(), &memory.shape());
                    found.push((place(&region), region, Source::Memory(memory)));
                }
                for (within, file) in pieces.files {
                    let (region, source) = self.given(&name_within(name, &within), file)?;
                    found.push((FILES, region, source));
                }
                Ok(pieces.tree)
            }
        }
    }

    /// A file that a collection gave.
    fn given(&self, name: &str, file: File) -> Result<(Region, Source), Error> {
        let path = PathBuf::from(name);
        let failed = |source| Error::File { path: path.clone(), what: "read", source };
        let length = file.metadata().map_err(failed)?.len();
        let region = Region { need: self.need, ..Region::new(name, Dtype::U8, &[length]) };
        Ok((region, Source::File(file, path)))
    }

    fn takes(&self, saved: &Region) -> Result<Source, Error> {
        match &self.kind {
            Kind::Memory(memory) => {
                let own = self.region(&saved.name, memory.dtype(), &memory.shape());
                if own.dtype == saved.dtype && own.shape == saved.shape {
                    return Ok(Source::Memory(Arc::clone(memory)));
                }
                let name = saved.name.clone();
                Err(Error::OtherShape { name, own: describe(&own), saved: describe(saved) })
            }
            Kind::File(path) => {
                let partial = partial(path);
                let failed = |source| Error::File { path: partial.clone(), what: "made", source };
                let file = File::create(&partial).map_err(failed)?;
                file.set_len(saved.bytes).map_err(failed)?;
                Ok(Source::File(file, path.clone()))
            }
            Kind::Structure(_) | Kind::Collection(_) => Ok(Source::Nowhere),
        }
    }
}

/// The stream of a rank, and where its bytes are.
#[derive(Default)]
pub(crate) struct Stream {
    pub(crate) layout: Layout,
    /// Offset in the stream, size, place.
    sources: Vec<(u64, u64, Source)>,
}

pub(crate) enum Source {
    Memory(Arc<dyn Memory>),
    /// An open file, and its path in the end.
    File(File, PathBuf),
    /// Saved, and not wanted any more.
    Nowhere,
}

impl Stream {
    pub(crate) fn bytes(&self) -> u64 {
        self.layout.bytes()
    }

    /// The regions that lie in memory: the first ones.
    pub(crate) fn memory(&self) -> &[Region] {
        let files = self.files().count();
        &self.layout.regions[..self.layout.regions.len() - files]
    }

    /// Files with their offset in the stream and their size.
    pub(crate) fn files(&self) -> impl Iterator<Item = (u64, u64, &File)> {
        self.sources.iter().filter_map(|(offset, bytes, source)| match source {
            Source::File(file, _) => Some((*offset, *bytes, file)),
            Source::Memory(_) | Source::Nowhere => None,
        })
    }

    /// Copies the stream's bytes from `offset` on.
    pub(crate) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Error> {
        for (at, source) in self.overlaps(offset, into.len() as u64) {
            let piece = &mut into[at.piece()];
            match source {
                Source::Memory(memory) => {
                    memory.read(at.inside, piece).map_err(|Busy| self.busy(offset + at.from))?;
                }
                Source::File(file, path) => file
                    .read_exact_at(piece, at.inside)
                    .map_err(|source| Error::File { path: path.clone(), what: "read", source })?,
                Source::Nowhere => piece.fill(0),
            }
        }
        Ok(())
    }

    /// Puts bytes at `offset` of the stream.
    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> Result<(), Error> {
        for (at, source) in self.overlaps(offset, from.len() as u64) {
            let piece = &from[at.piece()];
            match source {
                Source::Memory(memory) => {
                    memory.write(at.inside, piece).map_err(|Busy| self.busy(offset + at.from))?;
                }
                Source::File(file, path) => {
                    file.write_all_at(piece, at.inside).map_err(|source| Error::File {
                        path: path.clone(),
                        what: "written",
                        source,
                    })?;
                }
                Source::Nowhere => (),
            }
        }
        Ok(())
    }

    /// Renames the files that were written to their names.
    pub(crate) fn settle(&self) -> Result<(), Error> {
        for (_, _, source) in &self.sources {
            if let Source::File(_, path) = source {
                let failed =
                    |source| Error::File { path: path.clone(), what: "put in place", source };
                std::fs::rename(partial(path), path).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, region: Region, source: Source) {
        self.sources.push((self.bytes(), region.bytes, source));
        self.layout.regions.push(region);
    }

    fn overlaps(&self, offset: u64, bytes: u64) -> impl Iterator<Item = (Overlap, &Source)> {
        let end = offset + bytes;
        let first = self.sources.partition_point(|(begin, size, _)| begin + size <= offset);
        self.sources[first..].iter().take_while(move |(begin, _, _)| *begin < end).map(
            move |(begin, size, source)| {
                let from = (*begin).max(offset);
                let until = (begin + size).min(end);
                (
                    Overlap { from: from - offset, until: until - offset, inside: from - begin },
                    source,
                )
            },
        )
    }

    fn busy(&self, offset: u64) -> Error {
        let mut placed = self.layout.placed();
        let region = placed.find(|(begin, region)| begin + region.bytes > offset);
        Error::Busy { name: region.map_or_else(String::new, |(_, region)| region.name.clone()) }
    }
}

/// What a span of the stream and a region have in common.
struct Overlap {
    /// First byte, counted from the beginning of the span.
    from: u64,
    /// End, counted so too.
    until: u64,
    /// First byte, counted from the beginning of the region.
    inside: u64,
}

impl Overlap {
    fn piece(&self) -> std::ops::Range<usize> {
        size(self.from)..size(self.until)
    }
}

fn open(path: &Path) -> Result<(File, u64), Error> {
    let failed = |source: io::Error| Error::File { path: path.to_owned(), what: "opened", source };
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    Ok((file, metadata.len()))
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lifeboat-partial");
    path.with_file_name(name)
}

fn describe(region: &Region) -> String {
    format!("{} {:?}", region.dtype.name(), region.shape)
}

/// The name of a collection's region.
fn name_within(part: &str, piece: &str) -> String {
    if piece.is_empty() { part.to_owned() } else { format!("{part}/{piece}") }
}

/// The rest of a name that is the part's or lies within it.
fn within_name<'a>(part: &str, name: &'a str) -> Option<&'a str> {
    let rest = name.strip_prefix(part)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
}

/// A lock, once whoever holds it is done; not longer than a data loader may take.
fn held<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>, Busy> {
    let mut waited = Duration::ZERO;
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if waited >= BUSY_FOR => return Err(Busy),
            Err(TryLockError::WouldBlock) => thread::sleep(BUSY_PAUSE),
        }
        waited += BUSY_PAUSE;
    }
}

/// Where memory lies in a stream.
fn place(region: &Region) -> u8 {
    match region.spread {
        Spread::Replicated => 0,
        Spread::Own => 1,
    }
}

fn within(offset: u64, length: usize) -> std::ops::Range<usize> {
    let offset = size(offset);
    offset..offset + length
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).expect("an offset in memory fits a pointer")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn parts() -> (Parts, Tensor<f32>, Tensor<u8>) {
        let (weights, loader) = (Tensor::new(vec![1.0_f32, 2.0]), Tensor::new(vec![7_u8; 3]));
        let mut parts = Parts::default();
        parts.add("loader", Part::from(&loader).best_effort()).unwrap();
        parts.add("weights", Part::from(&weights).replicated()).unwrap();
        parts.add("rng", Part::from(&Value::new(Tree::Int(5)))).unwrap();
        (parts, weights, loader)
    }

    #[test]
    fn replicated_memory_comes_first_and_what_is_left_out_does_not_come() {
        let (parts, _, _) = parts();
        let names = |without: &Without| -> Vec<String> {
            let layout = parts.stream(without).unwrap().layout;
            layout.regions.into_iter().map(|region| region.name).collect()
        };
        assert_eq!(names(&Without::default()), ["weights", "loader"]);
        assert_eq!(names(&Without { replicated: true, names: vec![] }), ["loader"]);
        let short = Without { replicated: false, names: vec!["loader".into(), "weights".into()] };
        assert_eq!(names(&short), ["weights"]);
    }

    #[test]
    fn a_stream_is_read_and_written_across_regions() {
        let (parts, weights, loader) = parts();
        let stream = parts.stream(&Without::default()).unwrap();
        let mut bytes = [0; 11];
        for (place, piece) in bytes.chunks_mut(3).enumerate() {
            stream.read(place as u64 * 3, piece).unwrap();
        }
        assert_eq!(bytes[..8], [1.0_f32, 2.0].map(f32::to_le_bytes).concat());
        assert_eq!(bytes[8..], [7, 7, 7]);

        weights.lock().fill(0.0);
        loader.lock().fill(0);
        let fitted = parts.fit(&stream.layout).unwrap();
        fitted.write(0, &bytes[..9]).unwrap();
        fitted.write(9, &bytes[9..]).unwrap();
        assert_eq!((&weights.lock()[..], &loader.lock()[..]), (&[1.0, 2.0][..], &[7, 7, 7][..]));
    }

    #[test]
    fn what_was_saved_otherwise_is_refused_by_name() {
        let (parts, _, _) = parts();
        let good = parts.stream(&Without::default()).unwrap().layout;
        let mut other = good.clone();
        other.regions[0] = Region::new("weights", Dtype::F32, &[1, 2]);
        let refused = parts.fit(&other).err().unwrap().to_string();
        let words = "`weights` is f32 [2] here and f32 [1, 2] in the checkpoint. Build the";
        assert!(refused.starts_with(words), "{refused}");
        let mut missing = good.clone();
        missing.regions.remove(0);
        assert!(matches!(parts.fit(&missing), Err(Error::Missing { name }) if name == "weights"));
        let mut optional = good.clone();
        optional.regions.remove(1);
        assert!(parts.fit(&optional).is_ok());
        let unknown = Tree::Unknown(serde_json::json!({"quaternion": 1}));
        let newer = Layout { tree: Tree::map([("rng", unknown)]), ..good };
        assert!(matches!(parts.fit(&newer), Err(Error::NotTaken { name, .. }) if name == "rng"));
    }

    /// A row of tensors that grows, with a file beside them.
    #[derive(Default)]
    struct Rows(Mutex<Vec<Tensor<u8>>>);

    impl Collection for Rows {
        fn known(&self) -> Vec<Piece> {
            let piece = |(place, row): (usize, &Tensor<u8>)| Piece {
                name: place.to_string(),
                dtype: row.dtype(),
                shape: row.shape(),
            };
            self.0.lock().unwrap().iter().enumerate().map(piece).collect()
        }

        fn pieces(&self) -> Result<Pieces, Error> {
            let rows = self.0.lock().unwrap();
            let memory = |row: &Tensor<u8>| Arc::new(row.clone()) as Arc<dyn Memory>;
            let memories = (0..).zip(&*rows).map(|(place, row)| (format!("{place}"), memory(row)));
            let mut notes = tempfile::tempfile().unwrap();
            notes.write_all(b"note").unwrap();
            let files = vec![("notes".to_owned(), notes)];
            Ok(Pieces { memories: memories.collect(), files, tree: Some(Tree::Int(5)) })
        }

        fn room(
            &self,
            saved: &[Piece],
            tree: Option<&Tree>,
        ) -> Result<Vec<Arc<dyn Memory>>, Error> {
            assert_eq!(tree, Some(&Tree::Int(5)));
            let row = |piece: &Piece| Tensor::new(vec![0; size(piece.shape[0])]);
            *self.0.lock().unwrap() = saved.iter().map(row).collect();
            Ok(self.pieces()?.memories.into_iter().map(|(_, memory)| memory).collect())
        }

        fn settle(&self, tree: Option<&Tree>) -> Result<(), Error> {
            assert_eq!(tree, Some(&Tree::Int(5)));
            Ok(())
        }
    }

    #[test]
    fn a_collection_is_saved_as_it_is_then_and_comes_back_whole() {
        let rows = Arc::new(Rows::default());
        let (mut parts, _, _) = parts();
        parts.add("rows", Part::collection(Arc::clone(&rows) as _)).unwrap();
        assert_eq!(parts.layout().regions.len(), 2);
        *rows.0.lock().unwrap() = vec![Tensor::new(vec![1, 2]), Tensor::new(vec![3])];
        let stream = parts.stream(&Without::default()).unwrap();
        let mut bytes = [0; 18];
        stream.read(0, &mut bytes).unwrap();
        assert_eq!(stream.files().map(|(offset, _, _)| offset).collect::<Vec<_>>(), [14]);
        let layout = stream.layout;
        let names: Vec<_> = layout.regions.iter().map(|region| region.name.as_str()).collect();
        assert_eq!(names, ["weights", "loader", "rows/0", "rows/1", "rows/notes"]);

        rows.0.lock().unwrap().clear();
        let fitted = parts.fit(&layout).unwrap();
        fitted.write(0, &bytes).unwrap();
        parts.take(&layout.tree).unwrap();
        let rows = rows.0.lock().unwrap();
        let row = |number: usize| rows[number].lock().to_vec();
        assert_eq!([row(0), row(1), row(2)], [&b"\x01\x02"[..], b"\x03", b"note"]);
    }

    #[test]
    fn no_name_lies_within_that_of_a_collection() {
        let (mut parts, weights, _) = parts();
        parts.add("rows", Part::collection(Arc::new(Rows::default()))).unwrap();
        let refused = parts.add("rows/0", Part::from(&weights)).unwrap_err();
        assert!(matches!(refused, Error::Nested { other, .. } if other == "rows"));
        parts.add("rows0", Part::from(&weights)).unwrap();
        parts.add("a/b", Part::from(&weights)).unwrap();
        let refused = parts.add("a", Part::collection(Arc::new(Rows::default()))).unwrap_err();
        assert!(matches!(refused, Error::Nested { other, .. } if other == "a/b"));
    }

    #[test]
    fn a_tensor_held_over_a_step_is_named() {
        let (parts, weights, _) = parts();
        let stream = parts.stream(&Without::default()).unwrap();
        let guard = weights.lock();
        assert!(
            matches!(stream.read(0, &mut [0; 4]), Err(Error::Busy { name }) if name == "weights")
        );
        drop(guard);
    }

    #[test]
    fn a_file_is_put_in_place_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.bin");
        std::fs::write(&path, b"rows").unwrap();
        let mut parts = Parts::default();
        parts.add("index", Part::file(&path)).unwrap();
        let layout = parts.stream(&Without::default()).unwrap().layout;
        std::fs::write(&path, b"something longer").unwrap();
        let stream = parts.fit(&layout).unwrap();
        stream.write(0, b"rows").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"something longer");
        stream.settle().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"rows");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
