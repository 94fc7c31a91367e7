//! The program `lifeboat`.

fn main() {}
