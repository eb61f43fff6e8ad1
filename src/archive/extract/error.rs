//! The results of an extraction.

use std::io;

use super::tree::Refusal;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extracted {
    /// Files, directories and links.
    pub(crate) entries: u64,
}

/// Why an archive was not extracted, or not to its end: what was extracted before stays.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExtractError {
    /// The archive cannot be read.
    #[error("cannot read the archive `{path}`")]
    Open { path: String, source: io::Error },
    /// The directory cannot be opened.
    #[error("cannot open the directory `{path}`")]
    Into { path: String, source: io::Error },
    /// Gzip holds single files and no directory; nothing says where they belong.
    #[error("a gzip file cannot be extracted")]
    Gzip,
    /// It is no zip, or a broken one.
    #[error("not a zip archive, or a broken one")]
    Zip { source: zip::result::ZipError },
    /// It is a broken tar.
    #[error("broken tar archive")]
    Tar { source: io::Error },
    /// An entry would be made outside the directory.
    #[error("entry `{entry}` leaves the directory: {how}")]
    Escapes {
        /// Its name in the archive.
        entry: String,
        how: &'static str,
    },
    /// An entry could not be read or made.
    #[error("cannot extract `{entry}`")]
    Entry {
        /// Its name in the archive.
        entry: String,
        source: io::Error,
    },
}

impl ExtractError {
    pub(super) fn entry(name: &[u8]) -> impl FnOnce(Refusal) -> Self {
        let entry = String::from_utf8_lossy(name).into_owned();
        move |refusal| match refusal {
            Refusal::Escapes(how) => Self::Escapes { entry, how },
            Refusal::Io(source) => Self::Entry { entry, source },
        }
    }
}
