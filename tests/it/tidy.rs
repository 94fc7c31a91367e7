//! What reviewers would otherwise have to look for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use crate::sources::files;
use crate::sources::root;
use crate::sources::rust_files;

/// Words that say less than the field's own, or nothing.
const BANNED: &[&str] = &[
    concat!("c", "nt"),
    concat!("c", "tx"),
    concat!("e", "vt"),
    concat!("i", "dx"),
    concat!("m", "gr"),
    concat!("m", "sg"),
    concat!("r", "eq"),
    concat!("r", "esp"),
    concat!("s", "vc"),
    concat!("u", "til"),
    concat!("u", "tils"),
    concat!("hel", "per"),
    concat!("hel", "pers"),
];

/// Crates whose names have such words in them, and the domain of Kubernetes' Services.
const CRATES: &[&str] = &["http_body_util", "hyper_util", concat!("s", "vc")];

/// What a function's name does not begin with.
const BANNED_STARTS: &[&str] = &["get_", "handle_", "process_", "do_"];

/// Names that the standard library and `object_store` gave, and one that is plain English.
const OTHERS_NAMES: &[&str] = &["get_mut", "get_opts", "get_ranges", "get_ready"];

/// What must not be left behind. Put together here, so that this file is clean itself.
const LEFT_BEHIND: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("db", "g!("),
    concat!("to", "do!("),
    concat!("unimpl", "emented!("),
    concat!("(to be ", "written)"),
    concat!("#[ig", "nore"),
];

#[test]
fn every_file_is_named_by_a_mod() {
    let mut reached = BTreeSet::new();
    for start in starts() {
        follow(&start, start.parent().unwrap(), &mut reached);
    }
    let lost: Vec<PathBuf> = rust_files(&root())
        .into_iter()
        .filter(|file| !reached.contains(file))
        .map(|file| file.strip_prefix(root()).unwrap().to_owned())
        .collect();
    assert!(lost.is_empty(), "no `mod` names {lost:?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    complain(|text| {
        let opens = text.starts_with("//! ") && text.len() > 20;
        (!opens).then(|| "does not open with a sentence".to_owned())
    });
}

#[test]
fn nothing_is_left_behind() {
    complain(|text| {
        LEFT_BEHIND.iter().find(|word| text.contains(**word)).map(|word| format!("has `{word}`"))
    });
}

#[test]
fn names_are_whole_words() {
    complain(|text| {
        // Comments may say what others call it, and so must imports.
        let ours = |line: &&str| !["//", "use "].iter().any(|start| line.starts_with(start));
        let code = text.lines().map(str::trim_start).filter(ours);
        let words: BTreeSet<&str> =
            code.flat_map(words).filter(|word| !CRATES.contains(word)).collect();
        let banned = words.iter().find(|word| {
            word.split('_').any(|part| BANNED.contains(&part.to_ascii_lowercase().as_str()))
        });
        banned.map(|word| format!("has `{word}`"))
    });
}

#[test]
fn functions_say_what_they_do() {
    complain(|text| {
        let names = text.split("fn ").skip(1);
        let mut names = names
            .filter(|name| BANNED_STARTS.iter().any(|start| name.starts_with(start)))
            .filter(|name| !OTHERS_NAMES.contains(&words(name).next().unwrap_or_default()));
        names.next().map(|name| format!("has `fn {}`", words(name).next().unwrap_or_default()))
    });
}

#[test]
fn every_crate_keeps_the_lints() {
    for manifest in manifests() {
        let table: toml::Table = fs::read_to_string(&manifest).unwrap().parse().unwrap();
        let kept = table.get("lints").and_then(|lints| lints.get("workspace"));
        assert_eq!(kept, Some(&toml::Value::Boolean(true)), "{}", manifest.display());
    }
}

#[test]
fn the_tree_names_no_machine() {
    let homes = [concat!("/ro", "ot/"), concat!("/ho", "me/"), concat!("/wo", "rk/")];
    for file in files(&root()) {
        let Ok(text) = fs::read_to_string(&file) else { continue };
        for home in homes {
            assert!(!text.contains(home), "{} names {home}", file.display());
        }
    }
}

#[track_caller]
fn complain(fault: impl Fn(&str) -> Option<String>) {
    let mut wrong = Vec::new();
    for file in rust_files(&root()) {
        let text = fs::read_to_string(&file).unwrap();
        let shown = file.strip_prefix(root()).unwrap().display().to_string();
        wrong.extend(fault(&text).map(|fault| format!("{shown} {fault}")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| letter != '_' && !letter.is_alphanumeric())
        .filter(|word| !word.is_empty())
}

/// Files that cargo builds by their place: each begins a tree of modules.
fn starts() -> Vec<PathBuf> {
    let by_place = |file: &PathBuf| {
        let folder = file.parent().and_then(Path::file_name).unwrap_or_default();
        let name = file.file_name().unwrap_or_default();
        let root = name == "lib.rs" || name == "main.rs" || name == "build.rs";
        let alone = folder == "examples" || folder == "benches" || folder == "bin";
        root || alone || (folder == "tests" && name != "main.rs")
    };
    rust_files(&root()).into_iter().filter(by_place).collect()
}

/// Follows a file's modules, which lie in `inside`.
fn follow(file: &Path, inside: &Path, reached: &mut BTreeSet<PathBuf>) {
    if !reached.insert(file.to_owned()) {
        return;
    }
    let text = fs::read_to_string(file).unwrap();
    let folder = file.parent().unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (line, name) in
        lines.iter().enumerate().filter_map(|(at, line)| Some((at, declared(line)?)))
    {
        let elsewhere = line.checked_sub(1).and_then(|before| path_named(lines[before]));
        let flat = inside.join(format!("{name}.rs"));
        let nested = inside.join(name).join("mod.rs");
        // What is named by its path has its modules beside it, as what begins a tree has.
        let (next, inside) = match elsewhere {
            Some(path) => (plain(&folder.join(path)), None),
            None if flat.exists() => (flat, Some(inside.join(name))),
            None => (nested, None),
        };
        assert!(next.exists(), "{}: `mod {name}` has no file", file.display());
        let inside = inside.unwrap_or_else(|| next.parent().unwrap().to_owned());
        follow(&next, &inside, reached);
    }
}

/// A path without `..`.
fn plain(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The name in `mod name;`, whatever stands before it.
fn declared(line: &str) -> Option<&str> {
    let line = line.trim().strip_suffix(';')?;
    let (before, name) = line.rsplit_once("mod ")?;
    let before = before.trim();
    (before.is_empty() || before.starts_with("pub")).then_some(name)
}

/// The path in `#[path = "…"]`, which says where the module of the next line is.
fn path_named(line: &str) -> Option<&str> {
    line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]")
}

fn manifests() -> Vec<PathBuf> {
    files(&root())
        .into_iter()
        .filter(|file| file.file_name().is_some_and(|name| name == "Cargo.toml"))
        .collect()
}
