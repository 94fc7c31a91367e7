//! What pods come in and go out as.

use super::*;

const KEY: &str = "5a6e1c0e-0000-4000-8000-000000000001";

fn pod(annotations: &Value) -> Value {
    json!({
        "metadata": {"name": "train-0", "namespace": "team", "annotations": annotations},
        "spec": {
            "terminationGracePeriodSeconds": 90,
            "priority": 10,
            "containers": [{"name": "train", "image": "train"}],
        },
    })
}

#[expect(clippy::unnecessary_wraps, reason = "as the injection takes it")]
fn job() -> Result<JobKey, String> {
    Ok(KEY.parse().unwrap())
}

/// What comes out, after the patch itself has been applied, and again.
#[track_caller]
fn injected(pod: &Value, key: &Result<JobKey, String>) -> Injection {
    let injection = inject(pod, key, Hold::Always);
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &injection.patch(pod)).unwrap();
    assert_eq!(patched, injection.pod);
    let again = inject(&patched, key, Hold::Always);
    assert_eq!(again.patch(&patched).0, [], "the same again changes something");
    injection
}

#[test]
fn a_pod_of_the_sdk_gets_volume_mount_variables_key_and_hold() {
    let out = injected(&pod(&json!({"lifeboat.dev/checkpoint": "sdk"})), &job());
    assert_eq!(out.faults, [""; 0]);
    assert_eq!(
        out.pod["metadata"]["annotations"],
        json!({
            "lifeboat.dev/checkpoint": "sdk",
            "lifeboat.dev/job-key": KEY,
            "lifeboat.dev/held": "admission",
            "karpenter.sh/do-not-disrupt": "true",
        })
    );
    let attributes = json!({
        "lifeboat.dev/checkpoint": "sdk",
        "lifeboat.dev/job-key": KEY,
        "lifeboat.dev/grace": "90",
        "lifeboat.dev/pod-priority": "10",
    });
    let csi = json!({"driver": "lifeboat.dev", "volumeAttributes": attributes});
    assert_eq!(out.pod["spec"]["volumes"], json!([{"name": "lifeboat", "csi": csi}]));
    let container = &out.pod["spec"]["containers"][0];
    let mount = json!({"name": "lifeboat", "mountPath": "/run/lifeboat"});
    assert_eq!(container["volumeMounts"], json!([mount]));
    assert_eq!(
        container["env"],
        json!([
            {"name": "LIFEBOAT_SOCKET", "value": "/run/lifeboat/agent.sock"},
            {"name": "LIFEBOAT_REQUIRED", "value": "1"},
        ])
    );
}

#[test]
fn a_pod_that_is_not_protected_is_left_alone() {
    for annotations in [json!({}), json!({"lifeboat.dev/checkpoint": "none"}), Value::Null] {
        let before = pod(&annotations);
        assert_eq!(inject(&before, &job(), Hold::Always).patch(&before).0, []);
    }
}

#[test]
fn what_the_pod_says_itself_stands() {
    let mut own = pod(&json!({
        "lifeboat.dev/checkpoint": "sdk",
        "lifeboat.dev/job-key": "bert",
        "karpenter.sh/do-not-disrupt": "30m",
    }));
    own["spec"]["volumes"] = json!([{"name": "boat", "csi": {
        "driver": "lifeboat.dev", "volumeAttributes": {"lifeboat.dev/grace": "600"},
    }}]);
    own["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "boat", "mountPath": "/elsewhere"}]);
    own["spec"]["containers"][0]["env"] =
        json!([{"name": "LIFEBOAT_SOCKET", "value": "/elsewhere/agent.sock"}]);
    let out = injected(&own, &job());
    assert_eq!(out.faults, [""; 0]);
    assert_eq!(out.pod["metadata"]["annotations"], own["metadata"]["annotations"]);
    let container = &out.pod["spec"]["containers"][0];
    assert_eq!(container["volumeMounts"], own["spec"]["containers"][0]["volumeMounts"]);
    assert_eq!(container["env"][0], own["spec"]["containers"][0]["env"][0]);
    own["spec"]["containers"][0]["env"] = json!([]);
    let found = &injected(&own, &job()).pod["spec"]["containers"][0]["env"][0];
    assert_eq!(found["value"], "/elsewhere/agent.sock");
    assert_eq!(out.pod["spec"]["volumes"].as_array().unwrap().len(), 1);
    let attributes = &out.pod["spec"]["volumes"][0]["csi"]["volumeAttributes"];
    assert_eq!(attributes["lifeboat.dev/grace"], "600");
    assert_eq!(attributes["lifeboat.dev/job-key"], "bert");
}

#[test]
fn a_hold_on_signal_is_not_set_at_admission() {
    let said = pod(&json!({"lifeboat.dev/checkpoint": "sdk", "lifeboat.dev/hold": "on-signal"}));
    let out = injected(&said, &job());
    assert!(!annotations(&out.pod).contains_key(marks::DO_NOT_DISRUPT));
    let silent = pod(&json!({"lifeboat.dev/checkpoint": "sdk"}));
    let out = inject(&silent, &job(), Hold::OnSignal);
    assert!(!annotations(&out.pod).contains_key(marks::HELD));
}

#[test]
fn a_folder_is_the_volume_and_needs_its_path() {
    let said =
        json!({"lifeboat.dev/checkpoint": "directory", "lifeboat.dev/checkpoint-path": "/ckpt/"});
    let out = injected(&pod(&said), &job());
    let container = &out.pod["spec"]["containers"][0];
    assert_eq!(container["volumeMounts"], json!([{"name": "lifeboat", "mountPath": "/ckpt"}]));
    assert_eq!(container["env"], Value::Null);
    let out = injected(&pod(&json!({"lifeboat.dev/checkpoint": "directory"})), &job());
    assert_eq!(
        out.faults,
        ["no folder is saved. Name it by the annotation `lifeboat.dev/checkpoint-path`"]
    );
    assert_eq!(out.pod["spec"]["volumes"], Value::Null);
}

#[test]
fn a_pod_that_is_called_or_saves_itself_has_no_volume() {
    for mode in ["http", "sigterm"] {
        let out = injected(&pod(&json!({"lifeboat.dev/checkpoint": mode})), &job());
        assert_eq!(out.pod["spec"]["volumes"], Value::Null, "{mode}");
        assert_eq!(annotations(&out.pod)["lifeboat.dev/held"], "admission");
    }
}

#[test]
fn sidecars_see_the_socket_and_init_containers_do_not() {
    let mut with = pod(&json!({"lifeboat.dev/checkpoint": "sdk"}));
    with["spec"]["initContainers"] =
        json!([{"name": "fetch"}, {"name": "proxy", "restartPolicy": "Always"}]);
    let out = injected(&with, &job());
    let mounts: Vec<bool> = out.pod["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["volumeMounts"].is_array())
        .collect();
    assert_eq!(mounts, [false, true]);
}

#[test]
fn what_cannot_be_done_is_said_and_the_rest_is_done() {
    let unknown = Err("the pod has nothing above it".to_owned());
    let mut before = pod(&json!({"lifeboat.dev/checkpoint": "sdk"}));
    before["spec"]["volumes"] = json!([{"name": "lifeboat", "emptyDir": {}}]);
    let out = injected(&before, &unknown);
    let expected = [
        "nothing is restored: the pod has nothing above it. \
         Name a job key by the annotation `lifeboat.dev/job-key`",
        "a volume of another kind is called `lifeboat`. Call it otherwise",
    ];
    assert_eq!(out.faults, expected);
    assert_eq!(annotations(&out.pod)["lifeboat.dev/not-injected"], expected.join("; "));
    assert_eq!(annotations(&out.pod)["lifeboat.dev/held"], "admission");

    let mut before = pod(&json!({"lifeboat.dev/checkpoint": "sdk"}));
    before["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "mine", "mountPath": "/run/lifeboat/"}]);
    let out = injected(&before, &job());
    let expected = "volume `mine` is mounted at `/run/lifeboat`, \
                    where container `train` needs Lifeboat's";
    assert_eq!(out.faults, [expected]);

    let misspelt = injected(&pod(&json!({"lifeboat.dev/checkpoint": "skd"})), &job());
    assert_eq!(misspelt.faults.len(), 1);
    assert_eq!(misspelt.pod["spec"]["volumes"], Value::Null);

    let mut windows = pod(&json!({"lifeboat.dev/checkpoint": "sdk"}));
    windows["spec"]["os"] = json!({"name": "windows"});
    let out = injected(&windows, &job());
    assert_eq!(out.faults, ["Windows is not supported"]);
    assert_eq!(out.pod["spec"], windows["spec"]);
}

#[test]
fn a_container_that_another_webhook_adds_is_served_when_we_are_asked_again() {
    let first = injected(&pod(&json!({"lifeboat.dev/checkpoint": "sdk"})), &job()).pod;
    let mut second = first.clone();
    second["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "added"}));
    let out = injected(&second, &job());
    assert_eq!(out.pod["spec"]["containers"][0], first["spec"]["containers"][0]);
    assert!(out.pod["spec"]["containers"][1]["volumeMounts"].is_array());
    assert_eq!(out.pod["spec"]["volumes"], first["spec"]["volumes"]);
}
