//! The Helm chart, rendered by Helm: what it must say with its reason, what it refuses, and that the
//! API server and our programs accept it.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use lifeboat_chaos::control_plane;
use lifeboat_chaos::control_plane::identity::Identity;
use lifeboat_chaos::crew;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

use crate::theater;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/lifeboat");
/// Where releases of these tests are: where the plain manifests of the chart are written for.
pub(crate) const NAMESPACE: &str = "lifeboat-system";
const BUCKET: &str = "bucket=checkpoints";
const QUEUE: &str = "queue=https://sqs.eu-central-1.amazonaws.com/123456789012/east";

#[test]
fn a_bucket_and_a_queue_are_enough_and_the_programs_accept_what_comes_of_them() {
    let Some(helm) = helm() else { return };
    let config = configuration(&helm, &[]);
    for expected in [
        "cluster = \"east\"",
        "region = \"eu-central-1\"",
        "account = \"123456789012\"",
        "namespace = \"lifeboat-system\"",
    ] {
        assert!(config.contains(expected), "no `{expected}` in\n{config}");
    }
    check_config(&config);
}

#[test]
fn keys_of_the_configuration_reach_the_programs_as_they_are() {
    let Some(helm) = helm() else { return };
    let values = [
        "config.mode=observe",
        "config.drain.maxGrace=10s",
        "config.queue.pollers=8",
        "config.replacement.enabled=false",
        "config.store.prefix=team/a",
        "cluster=west",
    ];
    let config = configuration(&helm, &values);
    for expected in [
        "mode = \"observe\"",
        "[drain]\nmaxGrace = \"10s\"",
        "pollers = \"8\"",
        "enabled = \"false\"",
        "prefix = \"team/a\"",
        "cluster = \"west\"",
    ] {
        assert!(config.contains(expected), "no `{expected}` in\n{config}");
    }
    check_config(&config);
}

#[test]
fn values_that_do_not_fit_are_refused_with_the_reason() {
    let Some(helm) = helm() else { return };
    for (values, reason) in [
        (&[][..], "at '/bucket'"),
        (&["bucket=b_d", QUEUE], "at '/bucket'"),
        (&[BUCKET, "queue=east"], "at '/queue'"),
        (&[BUCKET, "queue=http://127.0.0.1:9324/q/east"], "the queue's URL names no region"),
        (&[BUCKET, QUEUE, "clutser=east"], "additional properties 'clutser' not allowed"),
        (&[BUCKET, QUEUE, "config.mode=obsrve"], "at '/config/mode'"),
        (&[BUCKET, QUEUE, "config.drain.maxGrace=15"], "at '/config/drain/maxGrace'"),
        (&[BUCKET, QUEUE, "config.queue.pollers=99"], "at '/config/queue/pollers'"),
        (&[BUCKET, QUEUE, "config.agent.hostRoot=/x"], "additional properties 'hostRoot'"),
        // Karpenter would no longer wait for the agent.
        (
            &[BUCKET, QUEUE, "agent.tolerations[0].key=karpenter.sh/disrupted"],
            "at '/agent/tolerations/0/key'",
        ),
        (&[BUCKET, QUEUE, "agent.tolerations[0].operator=Exists"], "missing property 'key'"),
        (&[BUCKET, QUEUE, "agent.nvml.from=hostPath"], "at '/agent/nvml/from'"),
    ] {
        let refusal = template(&helm, values).expect_err(reason);
        assert!(refusal.contains(reason), "{values:?}: {refusal}");
    }
}

#[test]
fn the_agent_outlives_its_workloads_and_hears_imds() {
    let Some(helm) = helm() else { return };
    let agent = pod_of(&helm, "DaemonSet", &[]);
    // EC2 leaves two minutes; Karpenter and kubelet wait for the agent as long.
    assert_eq!(agent["terminationGracePeriodSeconds"], 120);
    let longer = pod_of(&helm, "DaemonSet", &["config.agent.grace=3m"]);
    assert_eq!(longer["terminationGracePeriodSeconds"], 180);
    // kubelet and Karpenter end critical pods after all others.
    assert_eq!(agent["priorityClassName"], "system-node-critical");
    // The metadata service answers through no second hop; processes are named as the host does.
    assert_eq!((&agent["hostNetwork"], &agent["hostPID"]), (&json!(true), &json!(true)));
    assert_eq!(agent["dnsPolicy"], "ClusterFirstWithHostNet");
    // Each named: a toleration of everything would tolerate `karpenter.sh/disrupted`, and Karpenter
    // would take the node without waiting.
    let tolerated = agent["tolerations"].as_array().unwrap();
    let keys: Vec<&str> = tolerated.iter().map(|one| one["key"].as_str().unwrap()).collect();
    let ours = ["lifeboat.dev/interrupted", "lifeboat.dev/at-risk", "lifeboat.dev/agent-not-ready"];
    assert_eq!(keys, [&["nvidia.com/gpu"], &ours[..]].concat());
}

#[test]
fn the_agent_has_no_right_on_its_node_that_it_does_not_use() {
    let Some(helm) = helm() else { return };
    let agent = pod_of(&helm, "DaemonSet", &[]);
    let context = &agent["containers"][0]["securityContext"];
    // Folders of directory mode belong to the users of pods.
    let needed = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SYS_PTRACE"];
    assert_eq!(context["capabilities"], json!({"drop": ["ALL"], "add": needed}));
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["readOnlyRootFilesystem"], true);
    assert!(context["privileged"].is_null() && agent["hostIPC"].is_null());
    // The folders that it has to do with, and neither the host's root nor all of kubelet's.
    let paths = agent["volumes"].as_array().unwrap().iter();
    let mut paths: Vec<&str> = paths.filter_map(|one| one["hostPath"]["path"].as_str()).collect();
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "/proc",
            "/sys/fs/cgroup",
            "/var/lib/kubelet/plugins/lifeboat.dev",
            "/var/lib/kubelet/plugins_registry",
            "/var/lib/kubelet/pod-resources",
            "/var/lib/kubelet/pods",
            "/var/lib/lifeboat",
        ]
    );
    // Nothing is mounted for others: what it makes are folders and sockets.
    let mounts = agent["containers"][0]["volumeMounts"].as_array().unwrap();
    assert!(mounts.iter().all(|mount| mount["mountPropagation"].is_null()));
}

#[test]
fn the_spool_is_a_folder_of_the_node_where_one_is_named() {
    let Some(helm) = helm() else { return };
    for (values, expected) in [
        (&[][..], None),
        (
            &["config.agent.spool=/mnt/nvme/lifeboat"],
            Some(("/mnt/nvme/lifeboat", "/host/mnt/nvme/lifeboat")),
        ),
    ] {
        let agent = pod_of(&helm, "DaemonSet", values);
        let named = |list: &Value, path: &str| {
            let all = list.as_array().unwrap().iter();
            all.filter(|one| one["name"] == "spool")
                .find_map(|one| one.pointer(path).and_then(Value::as_str).map(str::to_owned))
        };
        let folder = named(&agent["volumes"], "/hostPath/path");
        let mount = named(&agent["containers"][0]["volumeMounts"], "/mountPath");
        let expected = expected.map(|(folder, mount)| (folder.to_owned(), mount.to_owned()));
        assert_eq!(folder.zip(mount), expected);
    }
}

#[test]
fn the_agents_memory_holds_all_that_it_may_lend_and_is_its_own() {
    let Some(helm) = helm() else { return };
    for (values, expected) in [
        (&[][..], "1536Mi"),
        (&["config.agent.ringBudget=8GiB", "config.store.inFlight=512MiB"], "8960Mi"),
    ] {
        let agent = pod_of(&helm, "DaemonSet", values);
        let resources = &agent["containers"][0]["resources"];
        // Request and limit are the same: a save never waits for memory, nor dies of it.
        assert_eq!(resources["requests"]["memory"], expected);
        assert_eq!(resources["limits"]["memory"], expected);
        // Processor time is not limited: a save takes what there is.
        assert!(resources["limits"]["cpu"].is_null());
    }
}

#[test]
fn how_the_nvml_library_comes_is_a_value() {
    let Some(helm) = helm() else { return };
    for (values, environment, mount, class) in [
        (&[][..], true, false, Value::Null),
        (&["agent.nvml.from=none"], false, false, Value::Null),
        (&["agent.nvml.from=volume-mounts"], false, true, Value::Null),
        (&["agent.nvml.runtimeClassName=nvidia"], true, false, json!("nvidia")),
    ] {
        let agent = pod_of(&helm, "DaemonSet", values);
        let container = agent["containers"][0].to_string();
        assert_eq!(container.contains("NVIDIA_VISIBLE_DEVICES"), environment, "{values:?}");
        assert_eq!(container.contains("nvidia-container-devices/all"), mount, "{values:?}");
        assert_eq!(agent["runtimeClassName"], class);
    }
}

#[test]
fn the_controller_is_never_on_spot_and_never_only_on_one_node() {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, &[]);
    let deployment = of_kind(&objects, "Deployment");
    assert_eq!(deployment["spec"]["replicas"], 2);
    let controller = &deployment["spec"]["template"]["spec"];
    let terms = &controller["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        ["nodeSelectorTerms"];
    let wanted = terms[0]["matchExpressions"].as_array().unwrap();
    // The labels by which the programs know Spot: all of them must be absent or another.
    for (label, spot) in [
        ("karpenter.sh/capacity-type", "spot"),
        ("eks.amazonaws.com/capacityType", "SPOT"),
        ("node.kubernetes.io/lifecycle", "spot"),
    ] {
        let not = json!({"key": label, "operator": "NotIn", "values": [spot]});
        assert!(wanted.contains(&not), "{label}");
    }
    let spread = &controller["topologySpreadConstraints"][0];
    assert_eq!(spread["topologyKey"], "kubernetes.io/hostname");
    // A second replica on the same node is none; but the old ones do not keep new ones away.
    assert_eq!(spread["whenUnsatisfiable"], "DoNotSchedule");
    assert_eq!(spread["matchLabelKeys"], json!(["pod-template-hash"]));
    assert_eq!(of_kind(&objects, "PodDisruptionBudget")["spec"]["maxUnavailable"], 1);
}

#[test]
fn the_controller_needs_no_right_on_its_node_at_all() {
    let Some(helm) = helm() else { return };
    for kind in ["Deployment", "Pod", "Job"] {
        let pod = pod_of(&helm, kind, &[]);
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{kind}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{kind}");
        let context = &pod["containers"][0]["securityContext"];
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{kind}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{kind}");
        assert_eq!(context["allowPrivilegeEscalation"], false, "{kind}");
        assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null(), "{kind}");
    }
}

#[test]
fn definitions_are_upgraded_with_the_release_and_stay_when_it_goes() {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, &[]);
    let mut seen = 0;
    for (_, ours) in lifeboat::commands::crds::definitions() {
        let ours = serde_json::to_value(&ours).unwrap();
        let mut theirs = objects
            .iter()
            .find(|one| one["kind"] == "CustomResourceDefinition" && is_named_as(one, &ours))
            .cloned()
            .unwrap();
        let annotations = theirs["metadata"].as_object_mut().unwrap().remove("annotations");
        assert_eq!(annotations, Some(json!({"helm.sh/resource-policy": "keep"})));
        assert_eq!(theirs["spec"]["versions"], ours["spec"]["versions"]);
        seen += 1;
    }
    assert_eq!(seen, 2);
}

#[test]
fn each_program_has_a_service_account_that_takes_a_role_of_aws() {
    let Some(helm) = helm() else { return };
    let arn = "arn:aws:iam::123456789012:role/lifeboat-agent";
    let value = format!("agent.serviceAccountAnnotations.eks\\.amazonaws\\.com/role-arn={arn}");
    let objects = objects(&helm, &[&value]);
    let accounts = objects.iter().filter(|one| one["kind"] == "ServiceAccount");
    let accounts: Vec<(&Value, &Value)> = accounts
        .map(|one| {
            (
                &one["metadata"]["name"],
                &one["metadata"]["annotations"]["eks.amazonaws.com/role-arn"],
            )
        })
        .collect();
    let (controller, agent) = (json!("lifeboat-controller"), json!("lifeboat-agent"));
    let (cleanup, role) = (json!("lifeboat-cleanup"), json!(arn));
    let expected = [(&controller, &Value::Null), (&agent, &role), (&cleanup, &Value::Null)];
    assert_eq!(accounts, expected);
}

#[test]
fn agents_are_updated_five_of_a_hundred_at_a_time() {
    let Some(helm) = helm() else { return };
    let objects = objects(&helm, &[]);
    let strategy = &of_kind(&objects, "DaemonSet")["spec"]["updateStrategy"];
    let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "5%"}});
    assert_eq!(strategy, &rolling);
}

#[test]
fn the_webhook_never_stands_in_a_pods_way() {
    let Some(helm) = helm() else { return };
    let with = objects(&helm, &[]);
    let configuration = of_kind(&with, "MutatingWebhookConfiguration");
    let webhooks = configuration["webhooks"].as_array().unwrap();
    assert_eq!(webhooks.len(), 1);
    let webhook = &webhooks[0];
    assert_eq!(
        (&webhook["failurePolicy"], &webhook["timeoutSeconds"]),
        (&json!("Ignore"), &json!(2))
    );
    let excluded = &webhook["namespaceSelector"]["matchExpressions"][0];
    assert_eq!(
        (&excluded["operator"], &excluded["values"]),
        (&json!("NotIn"), &json!(["kube-system", NAMESPACE]))
    );
    assert!(
        webhook["matchConditions"][0]["expression"]
            .as_str()
            .unwrap()
            .contains("lifeboat.dev/checkpoint")
    );
    assert_eq!(webhook["rules"][0]["operations"], json!(["CREATE"]));
    // The port that the configuration names is that of the container, the Service and the policy.
    let config = configuration_of(&with);
    assert!(config.contains("[webhook]\nlisten = \"0.0.0.0:9843\""), "{config}");
    let ports =
        of_kind(&with, "Deployment")["spec"]["template"]["spec"]["containers"][0]["ports"].clone();
    assert!(ports.as_array().unwrap().contains(&json!({"name": "webhook", "containerPort": 9843})));
    assert_eq!(of_kind(&with, "Service")["spec"]["ports"][0]["targetPort"], "webhook");
    assert!(of_kind(&with, "NetworkPolicy")["spec"]["ingress"].to_string().contains("9843"));

    let without = objects(&helm, &["webhook.enabled=false"]);
    for kind in ["MutatingWebhookConfiguration", "Service", "Secret"] {
        assert!(without.iter().all(|object| object["kind"] != kind), "{kind}");
    }
    assert!(!configuration_of(&without).contains("webhook"));
}

#[test]
fn uninstalling_takes_everything_back_first() {
    let Some(helm) = helm() else { return };
    let job = of_kind(&objects(&helm, &[]), "Job");
    assert_eq!(job["metadata"]["annotations"]["helm.sh/hook"], "pre-delete");
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["args"], json!(["cleanup", "--end-controller"]));
    assert_eq!(job["spec"]["template"]["spec"]["serviceAccountName"], "lifeboat-cleanup");
}

#[test]
fn the_api_server_accepts_every_manifest() {
    let Some(helm) = helm() else { return };
    theater::on_stage(async |turn| {
        let admin = turn.plane().client();
        // No pod is accepted without its account, and a dry run makes none.
        let account = Identity::account(NAMESPACE, "lifeboat-controller");
        turn.plane().kubeconfig_of(&account).await.unwrap();
        let mut refused = Vec::new();
        for object in objects(&helm, &["networkPolicy.enabled=true"]) {
            refused.extend(try_out(&admin, &object, "&dryRun=All").await.err());
        }
        assert!(refused.is_empty(), "{refused:#?}");
    });
}

/// Applies an object, by which the server looks at every field of it.
pub(crate) async fn try_out(admin: &kube::Client, object: &Value, how: &str) -> Result<(), String> {
    let at = path(object);
    let at = format!("{at}?fieldManager=chart&force=true&fieldValidation=Strict{how}");
    let request = http::Request::patch(&at)
        .header("content-type", "application/apply-patch+yaml")
        .body(object.to_string().into_bytes());
    let answer = admin.request_text(request.unwrap()).await;
    answer.map(drop).map_err(|error| format!("{at}: {error}"))
}

/// Where an object is: the plurals of its kind are regular.
fn path(object: &Value) -> String {
    let (version, kind) =
        (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let metadata = &object["metadata"];
    let root = if version.contains('/') { "apis" } else { "api" };
    let lower = kind.to_lowercase();
    let plural = match lower.strip_suffix('y') {
        Some(stem) if !stem.ends_with('a') => format!("{stem}ies"),
        _ if lower.ends_with('s') => format!("{lower}es"),
        _ => format!("{lower}s"),
    };
    let within = metadata["namespace"].as_str().map(|name| format!("/namespaces/{name}"));
    let name = metadata["name"].as_str().unwrap();
    format!("/{root}/{version}{}/{plural}/{name}", within.unwrap_or_default())
}

fn is_named_as(one: &Value, other: &Value) -> bool {
    one["metadata"]["name"] == other["metadata"]["name"]
}

/// The configuration file in the rendered ConfigMap.
fn configuration(helm: &Path, values: &[&str]) -> String {
    configuration_of(&objects(helm, values))
}

fn configuration_of(objects: &[Value]) -> String {
    let map = of_kind(objects, "ConfigMap");
    map["data"]["lifeboat.toml"].as_str().unwrap().to_owned()
}

/// What the rendered configuration is to both programs, where they are built.
fn check_config(config: &str) {
    let programs = match crew::built() {
        Ok(programs) => programs,
        Err(missing) => return eprintln!("skipped: {missing}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lifeboat.toml");
    std::fs::write(&file, config).unwrap();
    for (flags, own) in
        [(&[][..], "LIFEBOAT_LEASE_IDENTITY"), (&["--agent"][..], "LIFEBOAT_AGENT_NODE_NAME")]
    {
        let mut command = Command::new(programs.join("lifeboat"));
        let command = command.arg("check-config").args(flags).arg("--config").arg(&file);
        let output = command.env(own, "gpu-1").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn pod_of(helm: &Path, kind: &str, values: &[&str]) -> Value {
    let object = of_kind(&objects(helm, values), kind);
    if kind == "Pod" { object["spec"].clone() } else { object["spec"]["template"]["spec"].clone() }
}

#[track_caller]
fn of_kind(objects: &[Value], kind: &str) -> Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap().clone()
}

/// What the chart renders with these values beside the two that it needs.
#[track_caller]
pub(crate) fn objects(helm: &Path, values: &[&str]) -> Vec<Value> {
    let rendered = template(helm, &[&[BUCKET, QUEUE], values].concat()).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&rendered);
    let objects = documents.map(|document| Value::deserialize(document).unwrap());
    objects.filter(|object| !object.is_null()).collect()
}

/// `helm template`, or what it says against it.
fn template(helm: &Path, values: &[&str]) -> Result<String, String> {
    let mut command = Command::new(helm);
    command.args(["template", "lifeboat", CHART, "--namespace", NAMESPACE]);
    command.args(values.iter().flat_map(|value| ["--set", value]));
    let output = command.output().unwrap();
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Helm, as `tests/cluster/helm/build` built it; `None`, said aloud, where it did not.
pub(crate) fn helm() -> Option<PathBuf> {
    let found = control_plane::cache().map(|cache| cache.join("helm")).filter(|it| it.exists());
    if found.is_none() {
        eprintln!("skipped: Helm is not built (`make cluster-test` does it)");
    }
    found
}
