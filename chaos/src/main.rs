//! The program `chaos`.

fn main() {}
