//! All modules of the crate: which file a path leads to, and which files depend on each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use crate::{
    module::{Module, parse},
    tokens::{tokens, without_tests},
};

/// For each file the files that it depends on, each with the paths by which it names something
/// there. A file goes by the path of its module.
pub(crate) type Dependencies = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

#[derive(Default)]
pub(crate) struct Tree(BTreeMap<Vec<String>, Module>);

/// What a path leads to.
#[derive(Debug, PartialEq)]
enum Target {
    Module(Vec<String>),
    /// Something that this file defines.
    Item(String),
    External,
}

/// The limit of steps from re-export to re-export, for imports that lead back to themselves.
const STEPS: usize = 16;

impl Tree {
    /// The modules below `directory`, without those that are for tests alone.
    pub(crate) fn read(directory: &Path) -> Self {
        let mut sources = Vec::new();
        read_files(directory, &[], &mut sources);
        Self::new(&sources)
    }

    /// The modules of files, given as the path of the module and the text.
    pub(crate) fn new(sources: &[(Vec<String>, String)]) -> Self {
        let mut of_tests: Vec<Vec<String>> = Vec::new();
        let mut modules = Vec::new();
        for (path, source) in sources {
            let (kept, declared) = without_tests(&tokens(source));
            of_tests.extend(declared.into_iter().map(|name| [path.as_slice(), &[name]].concat()));
            modules.extend(parse(path, &path.join("::"), &kept));
        }
        // The scan does not see the file of a `#[path = "x_tests.rs"]`, so its name must tell.
        let for_tests = |module: &Module| {
            let named = |part: &String| part == "testing" || part.ends_with("_tests");
            module.path.iter().any(named)
                || of_tests.iter().any(|path| module.path.starts_with(path))
        };
        modules.retain(|module| !for_tests(module));
        Self(modules.into_iter().map(|module| (module.path.clone(), module)).collect())
    }

    pub(crate) fn modules(&self) -> impl Iterator<Item = &Module> {
        self.0.values()
    }

    /// Every path that `module` names, from the crate's root: as it is written, and the module or
    /// file that it leads to. The paths of other crates are as they are written.
    pub(crate) fn named(&self, module: &Module) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for path in module.imports.iter().map(|import| &import.path).chain(&module.paths) {
            match self.resolve(module, path, STEPS) {
                Target::External => drop(found.insert(path.join("::"))),
                Target::Item(file) => drop(found.insert(file)),
                Target::Module(path) => drop(found.insert(path.join("::"))),
            }
            if let Some((start, rest)) = anchor(module, path) {
                found.insert([start, rest.to_vec()].concat().join("::"));
            }
        }
        found
    }

    pub(crate) fn dependencies(&self) -> Dependencies {
        let mut found = Dependencies::new();
        for module in self.modules() {
            let of_file = found.entry(module.file.clone()).or_default();
            let imports = module.imports.iter().filter(|i| !i.reexported && i.name != "*");
            let words = module.words.iter().map(|word| vec![word.clone()]);
            let paths = imports.map(|i| i.path.clone()).chain(module.paths.iter().cloned());
            for path in paths.chain(words) {
                if let Target::Item(file) = self.resolve(module, &path, STEPS)
                    && file != module.file
                {
                    of_file.entry(file).or_default().insert(path.join("::"));
                }
            }
        }
        found
    }

    /// What `path`, as written in `module`, leads to.
    fn resolve(&self, module: &Module, path: &[String], steps: usize) -> Target {
        if let Some((start, rest)) = anchor(module, path) {
            self.walk(&start, rest, steps)
        } else if self.has(module, &path[0], steps) {
            self.walk(&module.path, path, steps)
        } else {
            Target::External
        }
    }

    /// Whether `module` defines, declares or imports `name`.
    fn has(&self, module: &Module, name: &str, steps: usize) -> bool {
        let child = [module.path.as_slice(), &[name.to_owned()]].concat();
        self.0.contains_key(&child)
            || module.defines.contains(name)
            || module.imports.iter().any(|import| import.name == name)
            || self.globs(module, steps).any(|module| self.has(module, name, steps - 1))
    }

    /// The modules that `module` imports by `*`.
    fn globs(&self, module: &Module, steps: usize) -> impl Iterator<Item = &Module> {
        let globs = module.imports.iter().filter(move |import| import.name == "*" && steps > 1);
        globs.filter_map(move |import| match self.resolve(module, &import.path, steps - 1) {
            Target::Module(path) => self.0.get(&path),
            Target::Item(_) | Target::External => None,
        })
    }

    /// What `path`, relative to the module `start`, leads to. A last name that is both a module and
    /// an item is the item.
    fn walk(&self, start: &[String], path: &[String], steps: usize) -> Target {
        let Some(module) = self.0.get(start).filter(|_| steps > 1) else {
            return Target::External;
        };
        let [name, rest @ ..] = path else {
            return Target::Module(start.to_vec());
        };
        let child = [start, std::slice::from_ref(name)].concat();
        if !rest.is_empty() && self.0.contains_key(&child) {
            return self.walk(&child, rest, steps);
        }
        if module.defines.contains(name) {
            return Target::Item(module.file.clone());
        }
        if let Some(import) = module.imports.iter().find(|import| import.name == *name) {
            return match self.resolve(module, &import.path, steps - 1) {
                Target::Module(path) => self.walk(&path, rest, steps - 1),
                found => found,
            };
        }
        if self.0.contains_key(&child) {
            return Target::Module(child);
        }
        match self.globs(module, steps).find(|module| self.has(module, name, steps - 1)) {
            Some(glob) => self.walk(&glob.path, path, steps - 1),
            None => Target::Item(module.file.clone()),
        }
    }
}

/// For a path that begins with `crate`, `self` or `super`: the module where it starts, and the rest.
fn anchor<'a>(module: &Module, path: &'a [String]) -> Option<(Vec<String>, &'a [String])> {
    match path[0].as_str() {
        "crate" => Some((Vec::new(), &path[1..])),
        "self" => Some((module.path.clone(), &path[1..])),
        "super" => {
            let up = path.iter().take_while(|part| *part == "super").count();
            let start = module.path.len().saturating_sub(up);
            Some((module.path[..start].to_vec(), &path[up..]))
        }
        _ => None,
    }
}

fn read_files(directory: &Path, path: &[String], found: &mut Vec<(Vec<String>, String)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let file = entry.unwrap().path();
        let name = file.file_stem().unwrap().to_str().unwrap();
        let own = match name {
            "mod" => path.to_vec(),
            "lib" if path.is_empty() => Vec::new(),
            _ => [path, &[name.to_owned()]].concat(),
        };
        if file.is_dir() {
            read_files(&file, &own, found);
        } else if file.extension().is_some_and(|extension| extension == "rs") {
            found.push((own, fs::read_to_string(&file).unwrap()));
        }
    }
}

/// The sets of files that depend on each other, directly or through others of the set.
pub(crate) fn cycles(dependencies: &Dependencies) -> BTreeSet<BTreeSet<String>> {
    let reached: BTreeMap<_, _> =
        dependencies.keys().map(|file| (file, reached_from(dependencies, file))).collect();
    let mutual = |file: &String| {
        let back = |other: &&String| reached.get(other).is_some_and(|r| r.contains(file));
        reached[file].iter().filter(back).cloned().collect::<BTreeSet<_>>()
    };
    dependencies.keys().map(mutual).filter(|cycle| !cycle.is_empty()).collect()
}

fn reached_from(dependencies: &Dependencies, start: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![start];
    while let Some(file) = waiting.pop() {
        for next in dependencies.get(file).into_iter().flat_map(BTreeMap::keys) {
            if found.insert(next.clone()) {
                waiting.push(next);
            }
        }
    }
    found
}

/// The dependencies between the files of `cycle`, one a line.
pub(crate) fn explain(dependencies: &Dependencies, cycle: &BTreeSet<String>) -> String {
    let mut lines = Vec::new();
    for file in cycle {
        for (other, paths) in dependencies[file].iter().filter(|(other, _)| cycle.contains(*other))
        {
            let paths: Vec<_> = paths.iter().map(String::as_str).collect();
            lines.push(format!("  {file} -> {other}: {}", paths.join(", ")));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
pub(crate) fn tree(sources: &[(&str, &str)]) -> Tree {
    let sources: Vec<_> = std::iter::once(&("", ""))
        .chain(sources)
        .map(|(path, source)| {
            let path = path.split("::").filter(|part| !part.is_empty()).map(str::to_owned);
            (path.collect(), (*source).to_owned())
        })
        .collect();
    Tree::new(&sources)
}

/// The dependencies of the file `a` of these as `file by name`.
#[cfg(test)]
fn of_a(sources: &[(&str, &str)]) -> Vec<String> {
    let dependencies = tree(sources).dependencies();
    dependencies["a"].iter().map(|(file, paths)| format!("{file} by {paths:?}")).collect()
}

#[test]
fn a_file_depends_on_those_that_define_what_it_names() {
    let found = of_a(&[
        ("a", "mod b; use self::b::B; use super::c::C; fn f() -> crate::d::D { b::e::E }"),
        ("a::b", "pub struct B; mod e;"),
        ("a::b::e", "pub struct E;"),
        ("c", "pub struct C;"),
        ("d", "pub struct D;"),
    ]);
    assert_eq!(
        found,
        [
            r#"a::b by {"self::b::B"}"#,
            r#"a::b::e by {"b::e::E"}"#,
            r#"c by {"super::c::C"}"#,
            r#"d by {"crate::d::D"}"#
        ]
    );
}

#[test]
fn a_reexport_is_no_dependency_and_stands_for_what_it_exports() {
    let b = ("a::b", "pub use self::c::{C, D as E}; use std::fmt::Debug;");
    let c = ("a::b::c", "pub struct C; pub use super::d::*;");
    let d = ("a::b::d", "pub struct D; pub struct F;");
    assert!(of_a(&[("a", "mod b; pub use b::{C, E};"), b, c, d]).is_empty());
    assert_eq!(
        of_a(&[("a", "mod b; pub use b::C; fn f(c: C) {}"), b, c, d]),
        [r#"a::b::c by {"C"}"#]
    );
    assert_eq!(of_a(&[("a", "mod b; use b::E;"), b, c, d]), [r#"a::b::d by {"b::E"}"#]);
    assert_eq!(of_a(&[("a", "use b::c; fn f(f: c::F) {}"), b, c, d]), [r#"a::b::d by {"c::F"}"#]);
    assert_eq!(of_a(&[("a", "use b::*; fn f(c: C) {}"), b, c, d]), [r#"a::b::c by {"C"}"#]);
    assert!(of_a(&[("a", "use b::Debug; use serde::E; use e::e;"), b, c, d]).is_empty());
}

#[test]
fn a_function_may_bear_its_modules_name() {
    let run = ("a::run", "use super::Slots; pub fn run() {}");
    let a = "mod run; pub use run::run; struct Slots;";
    assert!(cycles(&tree(&[("a", a), run]).dependencies()).is_empty());
    let used = format!("{a} fn f() {{ run() }}");
    assert_eq!(cycles(&tree(&[("a", &used), run]).dependencies()).len(), 1);
}

#[test]
fn cycles_are_found_and_explained() {
    let dependencies = tree(&[
        ("a", "use crate::b::B; use crate::d::D; pub struct A;"),
        ("b", "pub use crate::c::C; pub struct B; fn f() { C }"),
        ("c", "pub struct C(super::a::A);"),
        ("d", "pub struct D;"),
    ])
    .dependencies();
    let found = cycles(&dependencies);
    let cycle = ["a", "b", "c"].map(str::to_owned).into();
    assert_eq!(found, [cycle].into());
    assert_eq!(
        explain(&dependencies, found.first().unwrap()),
        "  a -> b: crate::b::B\n  b -> c: C\n  c -> a: super::a::A"
    );
}

#[test]
fn tests_may_use_anything() {
    let found = of_a(&[
        ("a", "#[cfg(test)] mod fake; mod testing; #[cfg(test)] mod t { use crate::b::B; }"),
        ("a::fake", "use crate::b::B; mod deeper;"),
        ("a::fake::deeper", "use crate::b::B;"),
        ("a::testing", "use crate::b::B;"),
        ("a_tests", "use crate::b::B;"),
        ("b", "pub struct B;"),
    ]);
    assert!(found.is_empty(), "{found:?}");
}
