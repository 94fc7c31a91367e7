//! The simulated world of Lifeboat: simulators on the wire, faults, scenarios, checkers, the demo.
#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "who reads the chronicle looks for the events it is about"
)]

pub mod aws;
pub mod bench;
pub mod cast;
pub mod checkers;
pub mod chronicle;
pub mod company;
pub mod control_plane;
pub mod crew;
pub mod demo;
pub mod faults;
pub mod installation;
pub mod interrupt;
pub mod keeper;
pub mod kill;
pub mod node;
pub mod open;
pub mod processes;
pub mod programs;
pub mod scenario;
pub mod script;
pub mod serve;
pub mod stage;
pub mod swarm;
pub mod wire;
pub mod world;
