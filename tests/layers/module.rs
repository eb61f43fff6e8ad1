//! What one module of the library defines, imports and names, read from its tokens.

use std::collections::BTreeSet;

use crate::tokens::closing;

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Module {
    /// From the crate's root, empty for the root itself.
    pub(crate) path: Vec<String>,
    /// The file by the path of its module, which is not `path` for an inline `mod x { … }`.
    pub(crate) file: String,
    /// The names of the items, without methods and nested functions.
    pub(crate) defines: BTreeSet<String>,
    pub(crate) imports: Vec<Import>,
    /// The paths of more than one name outside `use`, as written.
    pub(crate) paths: BTreeSet<Vec<String>>,
    /// The single names outside `use` that look like those of types, constants, called functions
    /// or macros.
    pub(crate) words: BTreeSet<String>,
}

/// One name that a `use` brings into its module.
#[derive(Debug, PartialEq)]
pub(crate) struct Import {
    /// `*` for all names of a module.
    pub(crate) name: String,
    pub(crate) path: Vec<String>,
    /// Whether it has a `pub`, of whatever scope.
    pub(crate) reexported: bool,
}

/// The module at `path` that consists of `tokens`, followed by the inline modules in it.
pub(crate) fn parse(path: &[String], file: &str, tokens: &[String]) -> Vec<Module> {
    let mut module = Module { path: path.to_vec(), file: file.to_owned(), ..Module::default() };
    let mut inline = Vec::new();
    let at = |i: usize| tokens.get(i).map_or("", String::as_str);
    let (mut i, mut depth) = (0, 0);
    while i < tokens.len() {
        let before = if i == 0 { "" } else { at(i - 1) };
        let of_a_value = before == "." && (i < 2 || at(i - 2) != ".");
        match at(i) {
            "use" if at(i + 1) != "<" => {
                let end = (i..tokens.len()).find(|i| at(*i) == ";").unwrap_or(tokens.len());
                let reexported = before == "pub" || before == ")";
                imports(&[], &tokens[i + 1..end], reexported, &mut module.imports);
                i = end;
            }
            "mod" if at(i + 2) == "{" => {
                let end = closing(tokens, i + 2);
                let inner = [path, &[at(i + 1).to_owned()]].concat();
                inline.extend(parse(&inner, file, &tokens[i + 3..end]));
                i = end;
            }
            "mod" if at(i + 2) == ";" => i += 2,
            "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static"
                if depth == 0 =>
            {
                module.defines.insert(at(i + 1).to_owned());
            }
            "macro_rules" if depth == 0 => {
                module.defines.insert(at(i + 2).to_owned());
            }
            "{" => depth += 1,
            "}" => depth -= 1,
            name if is_name(name) && !of_a_value && !matches!(before, "::" | "fn" | "$") => {
                let mut path = vec![name.to_owned()];
                while at(i + 1) == "::" && is_name(at(i + 2)) {
                    path.push(at(i + 2).to_owned());
                    i += 2;
                }
                if path.len() > 1 {
                    module.paths.insert(path);
                } else if name.starts_with(char::is_uppercase) || matches!(at(i + 1), "(" | "!") {
                    module.words.insert(name.to_owned());
                }
            }
            _ => {}
        }
        i += 1;
    }
    inline.insert(0, module);
    inline
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
}

/// The imports of the `use` tree `tree`, all below `prefix`.
fn imports(prefix: &[String], tree: &[String], reexported: bool, found: &mut Vec<Import>) {
    let mut path = prefix.to_vec();
    for (i, token) in tree.iter().enumerate() {
        match token.as_str() {
            "::" => {}
            "{" => {
                let list = &tree[i + 1..closing(tree, i)];
                let (mut depth, mut start) = (0, 0);
                for (j, token) in list.iter().enumerate() {
                    match token.as_str() {
                        "{" => depth += 1,
                        "}" => depth -= 1,
                        "," if depth == 0 => {
                            imports(&path, &list[start..j], reexported, found);
                            start = j + 1;
                        }
                        _ => {}
                    }
                }
                return imports(&path, &list[start..], reexported, found);
            }
            "as" => {
                let name = tree.get(i + 1).cloned().unwrap_or_default();
                return found.push(Import { name, path, reexported });
            }
            "*" => return found.push(Import { name: "*".to_owned(), path, reexported }),
            "self" if !path.is_empty() => {}
            _ => path.push(token.clone()),
        }
    }
    if let Some(name) = path.last().filter(|_| !tree.is_empty()) {
        found.push(Import { name: name.clone(), path, reexported });
    }
}

#[cfg(test)]
fn parsed(source: &str) -> Vec<Module> {
    parse(&["a".to_owned()], "a", &crate::tokens::tokens(source))
}

#[test]
fn lists_and_nested_lists_are_imported() {
    let names = |source: &str| {
        let imports = parsed(source).remove(0).imports;
        imports.iter().map(|i| format!("{}={}", i.name, i.path.join("::"))).collect::<Vec<_>>()
    };
    assert_eq!(names("use crate::ids::JobId;"), ["JobId=crate::ids::JobId"]);
    assert_eq!(
        names("use crate::{\n  docker::{a::{b, c}, self},\n  plan as p,\n  trace::*,\n};"),
        [
            "b=crate::docker::a::b",
            "c=crate::docker::a::c",
            "docker=crate::docker",
            "p=crate::plan",
            "*=crate::trace"
        ]
    );
    assert_eq!(names("use crate::{{job}, ledger,};"), ["job=crate::job", "ledger=crate::ledger"]);
    let reexported: Vec<_> =
        parsed("use b::C; pub use d::E; pub(crate) use f::G; fn h() -> impl I + use<'a> {}")
            .remove(0)
            .imports
            .into_iter()
            .map(|import| import.reexported)
            .collect();
    assert_eq!(reexported, [false, true, true]);
}

#[test]
fn definitions_paths_and_words_are_told_apart() {
    let modules = parsed(
        "mod child;
        struct A { b: Vec<C>, d: e::F }
        impl A { fn method(&self) { self.g(); h(self.i); j!(); k::l::<M>(); $crate::n(); 0..o::p; } }
        mod inline { fn o() -> super::A {} }",
    );
    let words = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(words(&modules[0].defines), "A");
    assert_eq!(words(&modules[0].words), "A C M Vec h j");
    let paths: Vec<_> = modules[0].paths.iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["e::F", "k::l", "o::p"]);
    assert_eq!(modules[1].path, ["a", "inline"]);
    assert_eq!(modules[1].file, "a");
    assert_eq!(words(&modules[1].defines), "o");
}
