//! `environment`: variables for jobs and services.

use crate::config::{file::Section, values};

/// `NAME=value` entries; values are never shown.
pub(super) fn environment(section: &Section<'_>) -> Vec<(String, String)> {
    let mut variables = Vec::new();
    for (number, text) in section.list("environment").iter().enumerate() {
        match values::variable(text) {
            Ok(variable) => variables.push(variable),
            Err(error) => {
                section.problem("environment", None, format!("entry {} {error}", number + 1), "");
            }
        }
    }
    variables
}
