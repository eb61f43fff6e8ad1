//! Lists of globs of images.

use crate::{
    base::glob::{self, Wildcards},
    config::file::Section,
};

pub(super) fn glob(text: &str) -> Result<String, String> {
    match glob::compile(text, Wildcards::WithinComponent) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("not a pattern: {error}")),
    }
}

pub(super) fn globs(section: &Section<'_>, key: &str) -> Vec<String> {
    section.parsed_list(key, "", glob)
}
