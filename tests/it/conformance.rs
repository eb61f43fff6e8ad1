//! Compares `tests/conformance.md` with the sources. The name of a test that shows numbered statements
//! begins with them (`docker_130_134_…`, `api_60_config_5_…`); the table must name exactly those tests.
//! `UPDATE_CONFORMANCE=1` rewrites its last column, except where it has a reason in words.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Prefix of a contract's tests, and how many statements it has.
const CONTRACTS: [(&str, usize); 3] = [("api", 157), ("docker", 200), ("config", 48)];

/// Test names by contract and number.
type Tests = BTreeMap<(String, usize), BTreeSet<String>>;

/// The statements that a test's name begins with. A number that no statement has is a word of the
/// sentence, such as a status.
fn statements(name: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut contract = None;
    for word in name.split('_') {
        if let Some(known) = CONTRACTS.iter().find(|(prefix, _)| *prefix == word) {
            contract = Some(known);
            continue;
        }
        match (contract, word.parse()) {
            (Some((prefix, count)), Ok(number)) if (1..=*count).contains(&number) => {
                found.push(((*prefix).to_owned(), number));
            }
            _ => break,
        }
    }
    found
}

fn collect(directory: &Path, tests: &mut Tests) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, tests);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            for line in fs::read_to_string(&path).unwrap().lines() {
                let line = line.trim_start();
                let line = line.strip_prefix("async ").unwrap_or(line);
                let Some(rest) = line.strip_prefix("fn ") else { continue };
                let name = rest.split(['(', '<']).next().unwrap();
                for statement in statements(name) {
                    tests.entry(statement).or_default().insert(name.to_owned());
                }
            }
        }
    }
}

/// `table` with its last column as `tests` has it; words stay where there is no test.
fn with_tests(table: &str, tests: &Tests) -> String {
    let mut contract = String::new();
    let mut out = String::new();
    for line in table.lines() {
        if let Some(name) = line.strip_prefix("## ") {
            name.split(':').next().unwrap().clone_into(&mut contract);
        }
        let columns: Vec<&str> = line.splitn(4, '|').collect();
        let number = columns.get(1).and_then(|column| column.trim().parse::<usize>().ok());
        let (Some(number), Some((head, last))) =
            (number, line.trim_end_matches('|').rsplit_once('|'))
        else {
            out += line;
            out.push('\n');
            continue;
        };
        let names = tests.get(&(contract.clone(), number));
        let words = if last.trim().starts_with('`') { "later" } else { last.trim() };
        let last = names.map_or_else(
            || words.to_owned(),
            |names| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
        );
        out.extend([head, "| ", &last, " |\n"]);
    }
    out
}

#[test]
fn the_table_of_statements_names_the_tests_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut tests = Tests::new();
    collect(&root.join("src"), &mut tests);
    collect(&root.join("tests"), &mut tests);
    let path = root.join("tests/conformance.md");
    let table = fs::read_to_string(&path).unwrap();
    for (contract, count) in CONTRACTS {
        let section = table.split("\n## ").find(|part| part.starts_with(&format!("{contract}:")));
        let rows = section.unwrap().lines().filter(|line| line.starts_with("| ")).count();
        assert_eq!(rows, count + 1, "rows of {contract} and the heading");
    }
    let wanted = with_tests(&table, &tests);
    if std::env::var_os("UPDATE_CONFORMANCE").is_some() {
        fs::write(&path, wanted).unwrap();
        return;
    }
    for (found, wanted) in table.lines().zip(wanted.lines()) {
        assert_eq!(found, wanted, "run `UPDATE_CONFORMANCE=1 cargo test --test it conformance`");
    }
}

#[test]
fn names_begin_with_their_statements() {
    let of = |name: &str| statements(name).into_iter().map(|(c, n)| format!("{c} {n}")).collect();
    let found: Vec<String> = of("api_99_100_docker_5_a_name_of_6");
    assert_eq!(found, ["api 99", "api 100", "docker 5"]);
    let found: Vec<String> = of("api_8_501_is_not_tried_again");
    assert_eq!(found, ["api 8"]);
    let none: Vec<String> = of("a_docker_5_image");
    assert!(none.is_empty());
    let table = "## api: x\n| 1 | a | later |\n| 2 | b | `gone` |\n| 3 | c \\| d | why not |\n";
    let tests = Tests::from([(("api".to_owned(), 1), BTreeSet::from(["api_1_x".to_owned()]))]);
    let expected =
        "## api: x\n| 1 | a | `api_1_x` |\n| 2 | b | later |\n| 3 | c \\| d | why not |\n";
    assert_eq!(with_tests(table, &tests), expected);
}
