//! What is generated from the code, and must stand in the repository as the code says it.

use lifeboat::commands::crds;

use crate::sources::golden;

#[test]
fn the_table_of_configuration_is_the_one_that_the_program_prints() {
    golden("docs/configuration.md", &lifeboat::config::document());
}

#[test]
fn the_definitions_are_the_ones_that_the_program_prints() {
    for (name, definition) in crds::definitions() {
        golden(&format!("deploy/crds/{name}"), &crds::document(&definition));
    }
}
