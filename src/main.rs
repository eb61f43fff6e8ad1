//! The `longshore` program: arguments in, exit code out.

fn main() {}
