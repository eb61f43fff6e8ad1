//! `parallel`: one job as written becomes several.

use serde_yaml::{Mapping, Value};

use super::value;
use crate::workload::variable::Variable;

/// GitLab: `Gitlab::Ci::Config::Entry::Product::Parallel`.
const MAX_JOBS: usize = 200;

/// One of the jobs that `parallel` makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) name: String,
    /// Variables of its cell of the matrix.
    pub(crate) variables: Vec<(String, String)>,
    /// `CI_NODE_INDEX` and `CI_NODE_TOTAL`, where `parallel` is set.
    pub(crate) node: Option<(usize, usize)>,
}

/// The instances of the job `name`; the error says what is wrong with `parallel`.
pub(crate) fn instances(name: &str, parallel: Option<&Value>) -> Result<Vec<Instance>, String> {
    let Some(parallel) = parallel else {
        let one = Instance { name: name.to_owned(), variables: Vec::new(), node: None };
        return Ok(vec![one]);
    };
    if let Some(total) = parallel.as_u64().and_then(|n| usize::try_from(n).ok()) {
        if total == 0 || total > MAX_JOBS {
            return Err(format!("must be between 1 and {MAX_JOBS}"));
        }
        return Ok((1..=total)
            .map(|index| Instance {
                name: format!("{name} {index}/{total}"),
                variables: Vec::new(),
                node: Some((index, total)),
            })
            .collect());
    }
    let cells =
        cells(parallel.get("matrix").ok_or("must be a number or a mapping with `matrix`")?)?;
    if cells.is_empty() || cells.len() > MAX_JOBS {
        return Err(format!("makes {} jobs; it must be between 1 and {MAX_JOBS}", cells.len()));
    }
    let total = cells.len();
    Ok(cells
        .into_iter()
        .enumerate()
        .map(|(index, variables)| Instance {
            name: cell_name(name, &variables),
            variables,
            node: Some((index + 1, total)),
        })
        .collect())
}

fn cell_name(name: &str, variables: &[(String, String)]) -> String {
    let values: Vec<&str> = variables.iter().map(|(_, value)| value.as_str()).collect();
    format!("{name}: [{}]", values.join(", "))
}

/// Whether `full` is the name of an instance of the job `name`.
pub(crate) fn is_instance(full: &str, name: &str) -> bool {
    let Some(rest) = full.strip_prefix(name) else { return false };
    let number = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit());
    let numbered = |rest: &str| rest.split_once('/').is_some_and(|(a, b)| number(a) && number(b));
    rest.is_empty() || rest.starts_with(": [") || rest.strip_prefix(' ').is_some_and(numbered)
}

/// Replaces `$[[ matrix.NAME ]]` by the variables of a job's own cell
/// (GitLab: `doc/ci/yaml/matrix_expressions.md`).
pub(crate) fn fill(text: &str, variables: &[Variable]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("$[[") {
        let Some((name, after)) = after.split_once("]]") else { break };
        let name = name.trim();
        let value = name
            .strip_prefix("matrix.")
            .and_then(|name| variables.iter().rev().find(|variable| variable.key == name));
        out.push_str(before);
        // A name that is not known stays as it is, and so matches nothing.
        let whole = &rest[before.len()..rest.len() - after.len()];
        out.push_str(value.map_or(whole, |variable| &variable.value));
        rest = after;
    }
    out + rest
}

/// The variables of every cell; the first variable changes slowest.
pub(crate) fn cells(matrix: &Value) -> Result<Vec<Vec<(String, String)>>, String> {
    let rows = value::items(matrix).ok_or("`matrix` must be a list of mappings")?;
    let mut out = Vec::new();
    for row in rows {
        let row = row.as_mapping().ok_or("`matrix` must be a list of mappings")?;
        out.extend(product(row)?);
    }
    Ok(out)
}

fn product(row: &Mapping) -> Result<Vec<Vec<(String, String)>>, String> {
    let mut cells = vec![Vec::new()];
    for (key, values) in row {
        let key = value::text(key).ok_or("the name of a variable must be a string")?;
        let values = value::texts(values)
            .ok_or_else(|| format!("`{key}` must be a value or a list of values"))?;
        let mut next = Vec::with_capacity(cells.len() * values.len());
        for cell in &cells {
            for value in &values {
                let mut cell = cell.clone();
                cell.push((key.clone(), value.clone()));
                next.push(cell);
            }
        }
        if next.len() > MAX_JOBS {
            return Err(format!("makes more than {MAX_JOBS} jobs"));
        }
        cells = next;
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(parallel: &str) -> Result<Vec<String>, String> {
        let value: Value = serde_yaml::from_str(parallel).unwrap();
        Ok(instances("test", Some(&value))?.into_iter().map(|i| i.name).collect())
    }

    #[test]
    fn a_number_makes_numbered_jobs() {
        assert_eq!(names("3").unwrap(), ["test 1/3", "test 2/3", "test 3/3"]);
        assert!(names("0").is_err() && names("201").is_err() && names("many").is_err());
    }

    #[test]
    fn a_matrix_makes_the_product_of_each_row() {
        let names = names("matrix: [{OS: [linux, bsd], V: [1, 2.5]}, {OS: mac}]").unwrap();
        assert_eq!(
            names,
            [
                "test: [linux, 1]",
                "test: [linux, 2.5]",
                "test: [bsd, 1]",
                "test: [bsd, 2.5]",
                "test: [mac]"
            ]
        );
    }

    #[test]
    fn instances_are_known_by_their_names() {
        assert!(is_instance("a", "a") && is_instance("a 1/2", "a") && is_instance("a: [x]", "a"));
        assert!(!is_instance("a b", "a") && !is_instance("ab", "a") && !is_instance("a 1/x", "a"));
    }

    #[test]
    fn a_matrix_that_explodes_is_refused_early() {
        let list = format!("[{}]", (0..100).map(|n| n.to_string()).collect::<Vec<_>>().join(","));
        assert!(
            names(&format!("matrix: [{{A: {list}, B: {list}, C: {list}, D: {list}}}]")).is_err()
        );
    }

    #[test]
    fn instances_know_their_number() {
        let value: Value = serde_yaml::from_str("matrix: [{A: [x, y]}]").unwrap();
        let made = instances("t", Some(&value)).unwrap();
        assert_eq!(made[1].node, Some((2, 2)));
        assert_eq!(made[1].variables, [("A".to_owned(), "y".to_owned())]);
        assert_eq!(instances("t", None).unwrap()[0].node, None);
    }
}
