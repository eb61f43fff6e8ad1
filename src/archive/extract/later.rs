//! What both formats of archives have in common.

use super::{
    error::ExtractError,
    tree::{Attributes, EntryPath, Tree},
};

/// Room for reading: a few times what a decompressor gives at once.
pub(super) const BUFFER: usize = 128 << 10;

/// What must wait until all files are there.
#[derive(Default)]
pub(super) struct Later {
    pub(super) directories: Vec<(EntryPath, Vec<u8>, Attributes)>,
    pub(super) links: Vec<(EntryPath, Vec<u8>, Target, Attributes)>,
}

pub(super) enum Target {
    Symbolic(Vec<u8>),
    Hard(EntryPath),
}

impl Later {
    pub(super) fn run(mut self, tree: &mut Tree) -> Result<(), ExtractError> {
        // Hard links first: once symbolic ones are there, a hard link could be to one of them.
        self.links.sort_by_key(|(_, _, target, _)| matches!(target, Target::Symbolic(_)));
        for (path, name, target, attributes) in &self.links {
            match target {
                Target::Hard(target) => tree.make_hard_link(path, target),
                Target::Symbolic(target) => tree.make_link(path, target, *attributes),
            }
            .map_err(ExtractError::entry(name))?;
        }
        // The deepest first: a directory's mode may forbid to enter it.
        self.directories.sort_by_key(|(path, _, _)| std::cmp::Reverse(path.depth()));
        for (path, name, attributes) in self.directories {
            tree.finish_directory(&path, attributes).map_err(ExtractError::entry(&name))?;
        }
        Ok(())
    }
}
