//! What comes into a trainer with the SDK: no runtime, no HTTP, no store.

use std::process::Command;

#[test]
fn the_sdk_brings_no_runtime_into_a_trainer() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "-p", "lifeboat-sdk", "-e", "normal", "--prefix", "none", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(tree.contains("rustix"));
    for heavy in ["tokio", "reqwest", "object_store", "hyper", "kube"] {
        let named = tree.lines().any(|line| line.starts_with(&format!("{heavy} ")));
        assert!(!named, "{heavy} is in the tree:\n{tree}");
    }
}
