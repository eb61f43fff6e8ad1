//! Lists of globs of images.

use globset::GlobBuilder;

use crate::config::file::Section;

pub(super) fn glob(text: &str) -> Result<String, String> {
    match GlobBuilder::new(text).literal_separator(true).build() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("not a pattern: {}", error.kind())),
    }
}

pub(super) fn globs(section: &Section<'_>, key: &str) -> Vec<String> {
    section.parsed_list(key, "", glob)
}
