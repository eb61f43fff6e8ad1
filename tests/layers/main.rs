//! Checks the shape of the library: a module uses only modules of lower layers, no files form an
//! import cycle, inside a module either, and some modules and crates are named in one place alone.
//!
//! A file depends on another when it names something that the other defines, directly or through
//! re-exports. `mod x;` and `pub use` alone are no dependency. Code of tests may use anything.
//!
//! It is a text scan (`tokens`, `module`) with name resolution (`tree`). It knows comments,
//! literals, nested `use` lists and re-exports, but neither types nor the expansion of macros: a
//! method call does not count as a dependency on the file that holds the `impl`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod module;
mod tokens;
mod tree;

use std::{collections::BTreeSet, path::Path};

use tree::Tree;

/// The modules; each may use only those before it. Of several that a path begins with, the longest
/// counts.
const LAYERS: [&str; 16] = [
    "base",
    "config",
    "workload",
    "trace",
    "ledger",
    // What those who speak to a helper share with it.
    "helper::protocol",
    "archive",
    "guard",
    "helper",
    "executor",
    "runner",
    "gitlab",
    "local",
    "daemon",
    "cli",
    "main",
];

/// Modules that still have an import cycle between their files. The list must only shrink.
const KNOWN_CYCLES: &[&str] = &["executor::docker"];

/// Which modules may name what.
const CONFINED: &[Confined] = &[
    Confined { path: "executor::docker", to: Scope::AllBut("runner"), exceptions: &[] },
    Confined { path: "gitlab", to: Scope::AllBut("runner"), exceptions: &[] },
    Confined {
        path: "gitlab::api::wire",
        to: Scope::Only("gitlab"),
        exceptions: &["cli::entries"],
    },
    Confined { path: "bollard", to: Scope::Only("executor::docker"), exceptions: &[] },
];

struct Confined {
    /// A module of the library or another crate, with all that is in it.
    path: &'static str,
    to: Scope,
    /// Modules that still name it although they should not. The list must only shrink.
    exceptions: &'static [&'static str],
}

enum Scope {
    Only(&'static str),
    AllBut(&'static str),
}

impl Scope {
    fn allows(&self, module: &str) -> bool {
        match self {
            Self::Only(own) => is_in(module, own),
            Self::AllBut(other) => !is_in(module, other),
        }
    }
}

fn is_in(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn place(path: &str) -> Option<usize> {
    let layers = LAYERS.iter().enumerate().filter(|(_, layer)| is_in(path, layer));
    layers.max_by_key(|(_, layer)| layer.len()).map(|(place, _)| place)
}

fn library() -> Tree {
    Tree::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

fn upward(tree: &Tree) -> Vec<String> {
    let mut wrong = Vec::new();
    for module in tree.modules().filter(|module| !module.path.is_empty()) {
        let name = module.path.join("::");
        let Some(own) = place(&name) else {
            wrong.push(format!("`{name}` has no place among the layers"));
            continue;
        };
        for used in tree.named(module) {
            if place(&used).is_some_and(|other| other > own) {
                wrong.push(format!("`{name}` uses `{used}`, which comes later"));
            }
        }
    }
    wrong
}

fn circular(tree: &Tree, known: &[&str]) -> Vec<String> {
    let dependencies = tree.dependencies();
    let mut needed = BTreeSet::new();
    let mut wrong = Vec::new();
    for cycle in tree::cycles(&dependencies) {
        let holds = |module: &&&str| cycle.iter().all(|file| is_in(file, module));
        match known.iter().filter(holds).max_by_key(|module| module.len()) {
            Some(module) => drop(needed.insert(*module)),
            None => wrong.push(format!("import cycle:\n{}", tree::explain(&dependencies, &cycle))),
        }
    }
    for module in known.iter().filter(|module| !needed.contains(*module)) {
        wrong.push(format!("`{module}` has no cycle any more: remove it from KNOWN_CYCLES"));
    }
    wrong
}

fn misplaced(tree: &Tree, confined: &Confined) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut needed = BTreeSet::new();
    for module in tree.modules() {
        let name = module.path.join("::");
        let mut named = tree.named(module).into_iter();
        let Some(found) = named.find(|named| is_in(named, confined.path)) else { continue };
        if confined.to.allows(&name) {
            continue;
        }
        match confined.exceptions.iter().find(|exception| is_in(&name, exception)) {
            Some(exception) => drop(needed.insert(*exception)),
            None => wrong.push(format!("`{name}` must not name `{found}`")),
        }
    }
    for exception in confined.exceptions.iter().filter(|exception| !needed.contains(**exception)) {
        let path = confined.path;
        wrong.push(format!("`{exception}` no longer names `{path}`: remove the exception"));
    }
    wrong
}

#[test]
fn no_module_uses_a_later_one() {
    let tree = library();
    assert!(tree.modules().count() > 3);
    let wrong = upward(&tree);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_form_an_import_cycle() {
    let wrong = circular(&library(), KNOWN_CYCLES);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_confined_to_a_module_is_not_named_elsewhere() {
    let tree = library();
    let wrong: Vec<_> = CONFINED.iter().flat_map(|confined| misplaced(&tree, confined)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_later_module_is_reported_however_it_is_named() {
    let of = |module: &str, source: &str| upward(&tree::tree(&[(module, source)])).len();
    assert_eq!(of("workload", "use crate::{base::ids, config::Config};"), 0);
    assert_eq!(of("workload", "use crate::{base::ids, trace::Mask};"), 1);
    assert_eq!(of("workload", "fn f() -> crate::trace::Mask {}"), 1);
    assert_eq!(of("archive", "use crate::helper::protocol::Frame;"), 0);
    assert_eq!(of("archive", "use crate::helper::serve;"), 1);
    assert_eq!(of("workload", "use super::base::ids;"), 0);
    assert_eq!(of("workload", "use super::trace::Mask;"), 1);
    assert_eq!(of("workload::cache", "pub(crate) use super::super::trace::Mask;"), 1);
    assert_eq!(of("workload::cache", "use super::script;"), 0);
    assert_eq!(of("workload", "#[cfg(test)] mod tests { use crate::trace::Mask; }"), 0);
    assert_eq!(of("colour", ""), 1);
}

#[test]
fn a_known_cycle_must_still_be_one() {
    let tree = tree::tree(&[
        ("a", "mod b; use b::B; pub struct A;"),
        ("a::b", "pub struct B(super::A);"),
        ("c", "pub struct C;"),
    ]);
    assert_eq!(circular(&tree, &["a"]), [""; 0]);
    assert_eq!(circular(&tree, &[]).len(), 1);
    assert_eq!(circular(&tree, &["a", "c"]).len(), 1);
}

#[test]
fn a_confined_module_is_found_behind_a_reexport_and_an_exception_must_be_needed() {
    let tree = tree::tree(&[
        ("a", "mod b; pub use b::B;"),
        ("a::b", "pub struct B(bollard::Docker);"),
        ("c", "use crate::a::B;"),
    ]);
    let count = |path, to, exceptions| misplaced(&tree, &Confined { path, to, exceptions }).len();
    assert_eq!(count("a::b", Scope::AllBut("c"), &[]), 1);
    assert_eq!(count("a::b", Scope::Only("a"), &["c"]), 0);
    assert_eq!(count("a::b", Scope::Only("a"), &["c", "a"]), 1);
    assert_eq!(count("bollard", Scope::Only("a::b"), &[]), 0);
    assert_eq!(count("bollard", Scope::Only("c"), &[]), 1);
}
