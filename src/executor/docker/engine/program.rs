//! What a program of this host needs to run elsewhere: its loader and its libraries, or its
//! interpreter.

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::tree::{TreeError, read_error};

/// A shared library as the loader finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Library {
    /// The name that programs ask for.
    pub(super) name: String,
    /// Where it is on the host.
    pub(super) path: PathBuf,
}

/// What a dynamically linked program needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Linkage {
    /// Its loader.
    pub(super) loader: PathBuf,
    /// All libraries, also those that libraries need.
    pub(super) libraries: Vec<Library>,
}

/// What kind of program a file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// Needs nothing.
    Static,
    /// Needs a loader, at this path.
    Dynamic { loader: PathBuf },
    /// A script for this interpreter.
    Script { interpreter: PathBuf },
}

impl Program {
    /// Looks at the beginning of the file (System V ABI, "ELF Header", "Program Header"; 64 bit).
    pub(super) fn of(path: &Path) -> Result<Self, TreeError> {
        let failed = || read_error(path);
        let not_elf = || TreeError::NotElf { path: path.to_owned() };
        let mut file = File::open(path).map_err(failed())?;
        let mut start = Vec::new();
        (&mut file).take(4096).read_to_end(&mut start).map_err(failed())?;
        if let Some(rest) = start.strip_prefix(b"#!") {
            let line = rest.split(|b| *b == b'\n').next().unwrap_or_default();
            let line = String::from_utf8_lossy(line);
            let interpreter = line.split_whitespace().next().ok_or_else(not_elf)?;
            return Ok(Self::Script { interpreter: interpreter.into() });
        }
        let header = Elf::of(&start).ok_or_else(not_elf)?;
        for index in 0..header.segments {
            let at = header.table + index * header.segment_size;
            let segment = start.get(at..at + header.segment_size).ok_or_else(not_elf)?;
            if header.number(segment, 0, 4) != Some(PT_INTERP) {
                continue;
            }
            let offset = header.number(segment, 8, 8).ok_or_else(not_elf)?;
            let length = header.number(segment, 32, 8).ok_or_else(not_elf)?;
            let name = start.get(offset..offset + length).ok_or_else(not_elf)?;
            let name = name.split(|b| *b == 0).next().unwrap_or_default();
            let loader = PathBuf::from(String::from_utf8_lossy(name).into_owned());
            return Ok(Self::Dynamic { loader });
        }
        Ok(Self::Static)
    }
}

/// Type of the segment that names the loader.
const PT_INTERP: usize = 3;

struct Elf {
    big_endian: bool,
    table: usize,
    segment_size: usize,
    segments: usize,
}

impl Elf {
    fn of(start: &[u8]) -> Option<Self> {
        let rest = start.strip_prefix(b"\x7fELF")?;
        let big_endian = match rest.get(..2)? {
            [2, 1] => false,
            [2, 2] => true,
            _ => return None,
        };
        let mut elf = Self { big_endian, table: 0, segment_size: 0, segments: 0 };
        elf.table = elf.number(start, 0x20, 8)?;
        elf.segment_size = elf.number(start, 0x36, 2)?;
        elf.segments = elf.number(start, 0x38, 2)?;
        Some(elf)
    }

    fn number(&self, bytes: &[u8], at: usize, length: usize) -> Option<usize> {
        let bytes = bytes.get(at..at + length)?;
        let add = |sum: usize, byte: &u8| (sum << 8) | usize::from(*byte);
        Some(if self.big_endian {
            bytes.iter().fold(0, add)
        } else {
            bytes.iter().rev().fold(0, add)
        })
    }
}

/// Asks the program's own loader for its libraries, as `ldd` does; the program is not run.
pub(super) fn linkage(path: &Path, loader: &Path) -> Result<Linkage, TreeError> {
    let failed = |message: String| TreeError::Loader {
        loader: loader.to_owned(),
        path: path.to_owned(),
        message,
    };
    let output = Command::new(loader)
        .arg("--list")
        .arg(path)
        .env_clear()
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        let Some((name, rest)) = line.split_once(" => ") else { continue };
        if rest.starts_with("not found") {
            let library = name.to_owned();
            return Err(TreeError::MissingLibrary { path: path.to_owned(), library });
        }
        let found = rest.rsplit_once(" (").map_or(rest, |(found, _)| found);
        if found.starts_with('/') && Path::new(name) != loader {
            libraries.push(Library { name: name.to_owned(), path: found.into() });
        }
    }
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(Linkage { loader: loader.to_owned(), libraries })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn programs_are_told_from_scripts_and_name_their_loader() {
        let this = std::env::current_exe().unwrap();
        let Program::Dynamic { loader } = Program::of(&this).unwrap() else {
            panic!("tests are linked dynamically")
        };
        let linkage = linkage(&this, &loader).unwrap();
        assert!(linkage.libraries.iter().any(|l| l.name == "libc.so.6" && l.path.is_absolute()));
        let host = tempfile::tempdir().unwrap();
        let script = host.path().join("s");
        fs::write(&script, "#! /bin/sh -e\n").unwrap();
        assert_eq!(
            Program::of(&script).unwrap(),
            Program::Script { interpreter: "/bin/sh".into() }
        );
        fs::write(&script, "text").unwrap();
        assert!(matches!(Program::of(&script), Err(TreeError::NotElf { .. })));
    }
}
