//! The image: what its Dockerfile copies is there, and is sent to the builder.

use std::collections::BTreeSet;
use std::fs;

use crate::sources::root;
use crate::sources::rust_files;

/// The words of an instruction's lines.
fn instructions(name: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("Dockerfile")).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix(&format!("{name} ")));
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn what_is_copied_is_there_and_is_sent_to_the_builder() {
    let ignored = fs::read_to_string(root().join(".dockerignore")).unwrap();
    let sent: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    let mut copied = BTreeSet::new();
    for words in instructions("COPY") {
        if !words[0].starts_with("--from") {
            copied.extend(words[..words.len() - 1].to_vec());
        }
    }
    assert!(copied.len() > 5, "{copied:?}");
    for path in &copied {
        assert!(root().join(path).exists(), "`{path}` is not there");
    }
    let copied: BTreeSet<&str> = copied.iter().map(String::as_str).collect();
    assert_eq!(sent, copied);
}

#[test]
fn every_member_of_the_workspace_is_copied() {
    let manifest: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let copied: Vec<String> = instructions("COPY").into_iter().flatten().collect();
    for member in manifest["workspace"]["members"].as_array().unwrap() {
        let member = member.as_str().unwrap();
        let is_below = |path: &&String| member.starts_with(path.as_str());
        assert!(member == "." || copied.iter().any(|path| is_below(&path)), "`{member}`");
    }
}

#[test]
fn what_the_program_includes_is_copied() {
    let copied: Vec<String> = instructions("COPY").into_iter().flatten().collect();
    let mut included = 0;
    for file in rust_files(&root().join("src")) {
        let text = fs::read_to_string(&file).unwrap();
        for named in text.split("include_str!(\"").skip(1) {
            let named = named.split('"').next().unwrap();
            let path = file.parent().unwrap().join(named).canonicalize().unwrap();
            let path = path.strip_prefix(root().canonicalize().unwrap()).unwrap().to_owned();
            assert!(copied.iter().any(|one| path.starts_with(one)), "{}", path.display());
            included += 1;
        }
    }
    assert!(included > 0);
}

#[test]
fn stages_are_pinned_and_build_with_the_compiler_of_the_tree() {
    let toolchain: toml::Table =
        fs::read_to_string(root().join("rust-toolchain.toml")).unwrap().parse().unwrap();
    let channel = toolchain["toolchain"]["channel"].as_str().unwrap().to_owned();
    let images: Vec<String> = instructions("FROM").iter().map(|words| words[0].clone()).collect();
    assert_eq!(images.len(), 2);
    for image in &images {
        let version = image.split_once(':').map_or("", |(_, version)| version);
        assert!(version.starts_with(|letter: char| letter.is_ascii_digit()), "{image}");
        assert!(version.contains('.') && !version.contains("latest"), "{image}");
    }
    assert!(images[0].starts_with(&format!("rust:{channel}")), "{images:?} beside {channel}");
}

#[test]
fn it_runs_as_nobody_and_starts_the_program() {
    assert_eq!(instructions("USER"), [["65532:65532"]]);
    assert_eq!(instructions("ENTRYPOINT"), [[r#"["/usr/local/bin/lifeboat"]"#]]);
    let build = instructions("RUN").concat();
    // What the docs say of it: the profile for images, and without the EC2 API.
    for word in ["--locked", "dist", "--no-default-features"] {
        assert!(build.iter().any(|one| one == word), "{build:?} lacks {word}");
    }
}
