//! `lifeboat check-config`: what the configuration comes to.

use std::fmt::Write;

use crate::config::Config;

/// A few lines for a person whose configuration is right.
pub fn summary(config: &Config) -> String {
    let mut text = String::from("the configuration is right\n");
    let lines = [
        ("cluster", config.cluster.clone()),
        ("region", config.region.clone()),
        ("mode", config.policy().mode.label().to_owned()),
        ("queue", config.queue.url.clone()),
        ("bucket", format!("{}/{}", config.store.bucket, config.store.prefix)),
    ];
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        writeln!(text, "  {name:<8} {value}").expect("writing to a string does not fail");
    }
    for warning in &config.warnings {
        writeln!(text, "warning: {warning}").expect("writing to a string does not fail");
    }
    text
}
