//! The rules of Kubernetes that Lifeboat stands on, each said once and asked of any API server.
//!
//! A rule sends requests and notes what was answered. What the real server answers is recorded
//! beside it (`<chapter>.txt`), and both the real server and the simulated one are held to that.

use std::fmt::Write;
use std::path::PathBuf;

use futures::future::BoxFuture;

pub(crate) mod witness;

mod applying;
mod controllers;
mod creation;
mod definitions;
mod deletion;
mod eviction;
mod lists;
mod patches;
mod product;
mod restarts;
mod saying;
mod updates;
mod watches;

pub(crate) use witness::Levers;
use witness::Witness;

/// What one rule is about: all that is asked under one heading.
pub(crate) struct Chapter {
    /// The name of its record.
    pub(crate) name: &'static str,
    rules: &'static [Rule],
}

/// One rule.
pub(crate) struct Rule {
    name: &'static str,
    ask: fn(&mut Witness) -> BoxFuture<'_, ()>,
}

/// What was noted under each rule of a chapter, in its order.
pub(crate) type Told = Vec<(String, Vec<String>)>;

/// Lists the rules of a chapter by their functions.
macro_rules! rules {
    ($($name:ident,)+) => {
        pub(super) const RULES: &[crate::rules::Rule] =
            &[$(crate::rules::Rule::new(stringify!($name), |witness| Box::pin($name(witness))),)+];
    };
}
use rules;

/// All that is claimed.
pub(crate) const CHAPTERS: &[Chapter] = &[
    Chapter { name: "creation", rules: creation::RULES },
    Chapter { name: "updates", rules: updates::RULES },
    Chapter { name: "patches", rules: patches::RULES },
    Chapter { name: "applying", rules: applying::RULES },
    Chapter { name: "definitions", rules: definitions::RULES },
    Chapter { name: "lists", rules: lists::RULES },
    Chapter { name: "watches", rules: watches::RULES },
    Chapter { name: "deletion", rules: deletion::RULES },
    Chapter { name: "eviction", rules: eviction::RULES },
    Chapter { name: "saying", rules: saying::RULES },
    Chapter { name: "product", rules: product::RULES },
    Chapter { name: "restarts", rules: restarts::RULES },
];

/// What is claimed of Kubernetes' controllers: asked with them, the rest without.
pub(crate) const CONTROLLERS: Chapter = Chapter { name: "controllers", rules: controllers::RULES };

impl Rule {
    const fn new(name: &'static str, ask: fn(&mut Witness) -> BoxFuture<'_, ()>) -> Self {
        Self { name, ask }
    }

    fn sentence(&self) -> String {
        self.name.replace('_', " ")
    }
}

impl Chapter {
    /// Asks every rule of one server. `levers` gives each rule the server that it is asked of.
    pub(crate) async fn ask(&self, mut levers: impl AsyncFnMut() -> Levers) -> Told {
        let mut told = Told::new();
        for (index, rule) in self.rules.iter().enumerate() {
            let mut witness = Witness::new(levers().await, &format!("{}{index}", self.name)).await;
            (rule.ask)(&mut witness).await;
            told.push((rule.sentence(), witness.said()));
        }
        told
    }

    /// What the real server was recorded to say.
    pub(crate) fn recorded(&self) -> Told {
        let text = std::fs::read_to_string(self.path()).unwrap_or_default();
        let mut told = Told::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            match (line.strip_prefix("  "), told.last_mut()) {
                (Some(line), Some((_, lines))) => lines.push(line.to_owned()),
                (None, _) | (Some(_), None) => told.push((line.to_owned(), Vec::new())),
            }
        }
        told
    }

    /// Where that is recorded.
    pub(crate) fn path(&self) -> PathBuf {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/cluster/contract");
        folder.join(format!("{}.txt", self.name))
    }
}

/// Where two differ, for people; empty where they don't.
pub(crate) fn differences(recorded: &Told, told: &Told) -> String {
    let mut text = String::new();
    for (rule, lines) in told {
        let wanted = recorded.iter().find(|(known, _)| known == rule);
        let wanted = wanted.map_or(&[][..], |(_, lines)| lines);
        if wanted == lines {
            continue;
        }
        writeln!(text, "{rule}").unwrap();
        for index in 0..wanted.len().max(lines.len()) {
            let (wanted, line) = (wanted.get(index), lines.get(index));
            if wanted != line {
                writeln!(text, "  - {}", wanted.map_or("", String::as_str)).unwrap();
                writeln!(text, "  + {}", line.map_or("", String::as_str)).unwrap();
            }
        }
    }
    text
}
