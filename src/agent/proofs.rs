//! What lets a waiting restore through: the controller's word that the pod before it has ended.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use lifeboat_domain::ids::JobKey;
use lifeboat_domain::ids::Namespace;
use lifeboat_domain::ids::PodUid;
use lifeboat_domain::workload::Proof;
use tracing::debug;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::REQUEST_MAX;
use crate::adapters::cluster::checkpoints;
use crate::agent::bell::Bell;
use crate::crd::workload_checkpoint;
use crate::error::Chain;
use crate::error::Classify;
use crate::metrics;

/// Between two questions for one index. A watch would need the right to list a whole namespace.
const POLL: Duration = Duration::from_secs(1);

/// The proofs that were found, and the questions that are open.
#[derive(Debug, Clone)]
pub struct Proofs {
    book: Arc<Mutex<Book>>,
    bell: Bell,
    wanted: Bell,
}

/// Whose end is waited for, and where it would be written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    /// The namespace of the index.
    pub namespace: Namespace,
    /// The index.
    pub job_key: JobKey,
    /// The pod.
    pub from: PodUid,
}

#[derive(Debug, Default)]
struct Book {
    open: BTreeSet<Question>,
    found: BTreeMap<PodUid, Proof>,
}

impl Proofs {
    /// Nothing asked, nothing found.
    pub fn new(bell: Bell) -> Self {
        Self { book: Arc::default(), bell, wanted: Bell::new() }
    }

    /// The proof that `pod` has ended, if it was found.
    pub fn proof(&self, pod: &PodUid) -> Option<Proof> {
        self.book().found.get(pod).copied()
    }

    /// Asks these questions from now on, and no others.
    pub fn ask(&self, questions: BTreeSet<Question>) {
        let mut book = self.book();
        if book.open != questions {
            book.found.retain(|pod, _| questions.iter().any(|question| question.from == *pod));
            book.open = questions;
            self.wanted.ring();
        }
    }

    /// Looks for answers, for ever.
    pub async fn run(&self, cluster: Cluster) {
        let mut wanted = self.wanted.ear();
        loop {
            let open = self.open();
            for question in &open {
                self.look(&cluster, question).await;
            }
            if open.is_empty() {
                wanted.rung().await;
            } else {
                tokio::time::sleep(POLL).await;
            }
        }
    }

    async fn look(&self, cluster: &Cluster, question: &Question) {
        let (namespace, key) = (question.namespace.as_str(), question.job_key.as_str());
        match checkpoints::read(cluster, namespace, key, REQUEST_MAX).await {
            Ok(Some(row)) => {
                let ended = row.status.ended.get(question.from.as_str());
                if let Some(ended) = ended {
                    self.book().found.insert(question.from.clone(), proof(ended.proof));
                    self.bell.ring();
                }
            }
            Ok(None) => (),
            Err(error) => {
                metrics::error("cluster", error.label());
                debug!(error = %Chain(&error), key, "index not read");
            }
        }
    }

    fn open(&self) -> BTreeSet<Question> {
        let book = self.book();
        let unanswered = book.open.iter().filter(|one| !book.found.contains_key(&one.from));
        unanswered.cloned().collect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing that can panic runs under the lock.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn proof(written: workload_checkpoint::Proof) -> Proof {
    match written {
        workload_checkpoint::Proof::Released => Proof::Released,
        workload_checkpoint::Proof::ContainersEnded => Proof::ContainersEnded,
        workload_checkpoint::Proof::InstanceGone => Proof::InstanceGone,
        workload_checkpoint::Proof::NodeGone => Proof::NodeGone,
        workload_checkpoint::Proof::PastDeadline => Proof::PastDeadline,
        workload_checkpoint::Proof::PodDeleted => Proof::PodDeleted,
        workload_checkpoint::Proof::Unknown => Proof::Unknown,
    }
}
