//! A bucket in memory that counts what is asked of it, and stops answering when told.

use std::fmt;
use std::pin::Pin;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use futures::stream::BoxStream;
use object_store::CopyOptions;
use object_store::GetOptions;
use object_store::GetResult;
use object_store::ListResult;
use object_store::MultipartUpload;
use object_store::ObjectMeta;
use object_store::ObjectStore;
use object_store::PutMultipartOptions;
use object_store::PutOptions;
use object_store::PutPayload;
use object_store::PutResult;
use object_store::Result;
use object_store::memory::InMemory;
use object_store::path::Path;

/// Counts the writes, and after a given number of them answers nothing any more.
#[derive(Debug)]
pub(crate) struct Counting {
    inner: InMemory,
    writes: AtomicU64,
    stop_after: AtomicU64,
    written: Mutex<Vec<String>>,
    silent: Mutex<Option<String>>,
}

impl Counting {
    pub(crate) fn new(inner: InMemory) -> Self {
        let (writes, stop_after) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        let (written, silent) = (Mutex::default(), Mutex::default());
        Self { inner, writes, stop_after, written, silent }
    }

    /// Does what is asked of such objects, and never says so.
    pub(crate) fn lose_answers(&self, of: Option<&str>) {
        *self.silent.lock().unwrap() = of.map(str::to_owned);
    }

    async fn answer(&self, location: &Path) {
        let silent = self.silent.lock().unwrap().clone();
        if silent.is_some_and(|silent| location.as_ref().contains(&silent)) {
            std::future::pending::<()>().await;
        }
    }

    /// Lets so many more writes happen.
    pub(crate) fn stop_after(&self, more: u64) {
        self.stop_after.store(self.writes().saturating_add(more), Ordering::SeqCst);
    }

    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }

    pub(crate) fn written(&self) -> Vec<String> {
        self.written.lock().unwrap().clone()
    }
}

impl fmt::Display for Counting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("counting")
    }
}

// As `async_trait` writes it: one more dependency is not worth five signatures.
impl ObjectStore for Counting {
    fn put_opts<'r0, 'r1, 'f>(
        &'r0 self,
        location: &'r1 Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Pin<Box<dyn Future<Output = Result<PutResult>> + Send + 'f>>
    where
        'r0: 'f,
        'r1: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            if self.writes() >= self.stop_after.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let put = self.inner.put_opts(location, payload, options).await?;
            self.writes.fetch_add(1, Ordering::SeqCst);
            self.written.lock().unwrap().push(location.to_string());
            self.answer(location).await;
            Ok(put)
        })
    }

    fn put_multipart_opts<'r0, 'r1, 'f>(
        &'r0 self,
        location: &'r1 Path,
        options: PutMultipartOptions,
    ) -> Pin<Box<dyn Future<Output = Result<Box<dyn MultipartUpload>>> + Send + 'f>>
    where
        'r0: 'f,
        'r1: 'f,
        Self: 'f,
    {
        Box::pin(async move { self.inner.put_multipart_opts(location, options).await })
    }

    fn get_opts<'r0, 'r1, 'f>(
        &'r0 self,
        location: &'r1 Path,
        options: GetOptions,
    ) -> Pin<Box<dyn Future<Output = Result<GetResult>> + Send + 'f>>
    where
        'r0: 'f,
        'r1: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let got = self.inner.get_opts(location, options).await;
            self.answer(location).await;
            got
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_delimiter<'r0, 'r1, 'f>(
        &'r0 self,
        prefix: Option<&'r1 Path>,
    ) -> Pin<Box<dyn Future<Output = Result<ListResult>> + Send + 'f>>
    where
        'r0: 'f,
        'r1: 'f,
        Self: 'f,
    {
        Box::pin(async move { self.inner.list_with_delimiter(prefix).await })
    }

    fn copy_opts<'r0, 'r1, 'r2, 'f>(
        &'r0 self,
        from: &'r1 Path,
        to: &'r2 Path,
        options: CopyOptions,
    ) -> Pin<Box<dyn Future<Output = Result<()>> + Send + 'f>>
    where
        'r0: 'f,
        'r1: 'f,
        'r2: 'f,
        Self: 'f,
    {
        Box::pin(async move { self.inner.copy_opts(from, to, options).await })
    }
}
