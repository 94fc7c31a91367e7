//! The job key of a pod that names none: what stands above it, and its role in that.

use std::time::Duration;

use lifeboat_domain::ids::JobKey;
use serde_json::Value;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::owners;
use crate::adapters::cluster::owners::Owner;

/// How long one look above a Job may take: the API server waits two seconds for us.
const LOOK: Duration = Duration::from_millis(700);

/// What tells the pods of one owner apart, by the labels that its controllers put on them: which
/// part, which Job of that part, which pod of that Job.
///
/// Source: `JobSet`, Kubeflow training operator, `KubeRay` and Kubernetes, well-known labels.
const ROLES: [&str; 9] = [
    "jobset.sigs.k8s.io/replicatedjob-name",
    "jobset.sigs.k8s.io/job-index",
    "training.kubeflow.org/replica-type",
    "training.kubeflow.org/replica-index",
    "ray.io/node-type",
    "ray.io/group",
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/job-completion-index",
    "training.kubeflow.org/job-role",
];
/// Said twice by the operator that says `replica-type`.
const ROLE_OF_JOB: &str = "training.kubeflow.org/job-role";
const REPLICA_TYPE: &str = "training.kubeflow.org/replica-type";

/// The job key of a pod, or why it has none.
pub async fn find(cluster: &Cluster, namespace: &str, pod: &Value) -> Result<JobKey, String> {
    let Some(owner) = owners::of(pod) else {
        return Err("nothing stands above the pod that would start it again".to_owned());
    };
    let at = (namespace, owner.name.as_str());
    let above = match (owner.group(), owner.kind.as_str()) {
        ("batch", "Job") => owners::of_job(cluster, at, LOOK).await,
        ("ray.io", "RayCluster") => owners::of_ray_cluster(cluster, at, LOOK).await,
        _ => Ok(None),
    };
    let above = above
        .map_err(|error| format!("what stands above {} was not read: {error}", named(&owner)))?;
    key(pod, &owner, above.as_ref())
}

/// The job key of a pod below `owner`, which is below `above`.
fn key(pod: &Value, owner: &Owner, above: Option<&Owner>) -> Result<JobKey, String> {
    let whose = above.filter(|above| is_work(above)).or_else(|| is_work(owner).then_some(owner));
    let Some(whose) = whose else {
        return Err(format!("the pods of {} are not told apart", named(owner)));
    };
    let key = [whose.uid.as_str()].into_iter().chain(roles(pod)).collect::<Vec<_>>().join(".");
    key.parse().map_err(|error| format!("{error}"))
}

/// Whether it is one piece of work, which goes on where it stopped. A CronJob or a Workflow is many,
/// a RayCluster none.
fn is_work(owner: &Owner) -> bool {
    matches!(
        (owner.group(), owner.kind.as_str()),
        ("batch", "Job")
            | ("jobset.x-k8s.io", "JobSet")
            | ("kubeflow.org", "PyTorchJob" | "MPIJob")
            | ("ray.io", "RayJob")
            | ("apps", "StatefulSet")
    )
}

fn roles(pod: &Value) -> impl Iterator<Item = &str> {
    let labels = &pod["metadata"]["labels"];
    let said = ROLES.iter().filter_map(move |label| Some((*label, labels[*label].as_str()?)));
    said.filter(move |(label, _)| *label != ROLE_OF_JOB || labels[REPLICA_TYPE].is_null())
        .map(|(_, role)| role)
}

fn named(owner: &Owner) -> String {
    format!("{} `{}`", owner.kind, owner.name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn owner(api_version: &str, kind: &str, uid: &str) -> Owner {
        let (api_version, kind) = (api_version.to_owned(), kind.to_owned());
        Owner { api_version, kind, name: "train".to_owned(), uid: uid.to_owned() }
    }

    #[track_caller]
    fn check(labels: &[(&str, &str)], owner: &Owner, above: Option<&Owner>, expected: &str) {
        let mut pod = json!({"metadata": {"labels": {}}});
        for (key, value) in labels {
            pod["metadata"]["labels"][*key] = json!(value);
        }
        let key = key(&pod, owner, above).map(|key| key.to_string());
        assert_eq!(key.unwrap_or_else(|why| why), expected);
    }

    #[test]
    fn a_job_is_its_uid_and_the_index_in_it() {
        let job = owner("batch/v1", "Job", "u-job");
        check(&[], &job, None, "u-job");
        check(&[("batch.kubernetes.io/job-completion-index", "3")], &job, None, "u-job.3");
        let cron = owner("batch/v1", "CronJob", "u-cron");
        check(&[], &job, Some(&cron), "u-job");
        let workflow = owner("argoproj.io/v1alpha1", "Workflow", "u-flow");
        check(&[], &job, Some(&workflow), "u-job");
    }

    #[test]
    fn a_job_set_makes_its_jobs_anew_and_keeps_its_key() {
        let (job, set) =
            (owner("batch/v1", "Job", "x"), owner("jobset.x-k8s.io/v1alpha2", "JobSet", "u"));
        let labels = [
            ("jobset.sigs.k8s.io/replicatedjob-name", "workers"),
            ("jobset.sigs.k8s.io/job-index", "1"),
            ("batch.kubernetes.io/job-completion-index", "0"),
        ];
        check(&labels, &job, Some(&set), "u.workers.1.0");
    }

    #[test]
    fn parts_of_a_training_job_are_told_apart() {
        let torch = owner("kubeflow.org/v1", "PyTorchJob", "u");
        let labels = [
            ("training.kubeflow.org/replica-type", "worker"),
            ("training.kubeflow.org/replica-index", "2"),
            ("training.kubeflow.org/job-role", "master"),
        ];
        check(&labels, &torch, None, "u.worker.2");
        let (job, mpi) =
            (owner("batch/v1", "Job", "x"), owner("kubeflow.org/v2beta1", "MPIJob", "u"));
        check(&[("training.kubeflow.org/job-role", "launcher")], &job, Some(&mpi), "u.launcher");
        let (cluster, ray) =
            (owner("ray.io/v1", "RayCluster", "x"), owner("ray.io/v1", "RayJob", "u"));
        let labels = [("ray.io/node-type", "worker"), ("ray.io/group", "gpu")];
        check(&labels, &cluster, Some(&ray), "u.worker.gpu");
    }

    #[test]
    fn a_stateful_set_is_its_uid_and_the_ordinal() {
        let set = owner("apps/v1", "StatefulSet", "u");
        check(&[("apps.kubernetes.io/pod-index", "4")], &set, None, "u.4");
    }

    #[test]
    fn whose_pods_are_alike_has_no_key() {
        let replicas = owner("apps/v1", "ReplicaSet", "u");
        check(&[], &replicas, None, "the pods of ReplicaSet `train` are not told apart");
        let cluster = owner("ray.io/v1", "RayCluster", "u");
        check(&[], &cluster, None, "the pods of RayCluster `train` are not told apart");
        // A kind of this name in somebody else's group is not ours to know.
        check(
            &[],
            &owner("example.com/v1", "Job", "u"),
            None,
            "the pods of Job `train` are not told apart",
        );
    }
}
