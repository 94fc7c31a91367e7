//! Starting a control plane, without the programs: what goes wrong is said in one line.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use jiff::SignedDuration;
use lifeboat_chaos::control_plane::ControlPlane;
use lifeboat_chaos::control_plane::Settings;
use lifeboat_chaos::control_plane::audit;

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let folder = programs(&[]);
    let said = failure(folder.path()).await;
    assert!(said.ends_with("/etcd` is not there. `make cluster-up` builds it"), "{said}");
}

#[tokio::test]
async fn a_program_that_ends_at_once_is_quoted() {
    let says =
        "#!/bin/sh\necho starting\necho 'listen tcp 127.0.0.1:2379: address in use'\nexit 1\n";
    let folder = programs(&[("etcd", says)]);
    let said = failure(folder.path()).await;
    let expected = "`etcd` ended before it was ready: listen tcp 127.0.0.1:2379: address in use. ";
    assert!(said.starts_with(expected), "{said}");
    assert!(!said.contains('\n'), "{said}");
}

#[test]
fn a_line_of_the_audit_log_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.log");
    let line = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"x","stage":"ResponseComplete","requestURI":"/api/v1/nodes/gpu-1?fieldManager=x","verb":"patch","user":{"username":"system:serviceaccount:lifeboat:controller","groups":["a"]},"sourceIPs":["127.0.0.1"],"userAgent":"lifeboat/0.1","objectRef":{"resource":"nodes","name":"gpu-1","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":422},"requestReceivedTimestamp":"2026-11-23T00:00:00.000001Z","stageTimestamp":"2026-11-23T00:00:00.004001Z"}"#;
    fs::write(&path, format!("{line}\n{{\"kind\":\"Ev")).unwrap();
    let entries = audit::read(&path).unwrap();
    let [entry] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((entry.verb.as_str(), entry.resource.as_str()), ("patch", "nodes"));
    assert_eq!((entry.name.as_str(), entry.code), ("gpu-1", 422));
    assert_eq!(entry.user_agent, "lifeboat/0.1");
    assert!(entry.writes());
    assert_eq!(entry.answered.duration_since(entry.received), SignedDuration::from_millis(4));
}

/// A folder of programs that are scripts.
fn programs(scripts: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("stages")).unwrap();
    for name in ["node-initialize", "node-heartbeat-with-lease", "pod-ready"] {
        fs::write(folder.path().join("stages").join(format!("{name}.yaml")), "").unwrap();
    }
    for (name, text) in scripts {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

async fn failure(programs: &Path) -> String {
    let settings = Settings::new(programs, &programs.join("state"));
    ControlPlane::start(settings).await.err().unwrap().to_string()
}
