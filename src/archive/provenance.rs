//! The provenance file of an artifact: longshore says how it was made, the helper adds what is in it
//! (docs/compatibility.md, "Provenance").

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::base::ids::hex;

/// Why there is no provenance file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProvenanceError {
    /// What longshore sent is no JSON object.
    #[error("the provenance is not a JSON object")]
    Text,
    /// A file could not be read, or the provenance file not written.
    #[error("cannot describe `{}`", path.display())]
    File {
        /// The file, relative to the project directory.
        path: PathBuf,
        source: io::Error,
    },
}

/// Writes `<stem>-metadata.json` into `project_dir`, `text` with every regular file of `files` as a
/// `subject`, and adds it to `files`, which stay sorted.
pub(crate) fn add(
    project_dir: &Path,
    stem: &str,
    text: &str,
    files: &mut Vec<PathBuf>,
) -> Result<(), ProvenanceError> {
    let Ok(Value::Object(mut statement)) = serde_json::from_str(text) else {
        return Err(ProvenanceError::Text);
    };
    let own = PathBuf::from(format!("{stem}-metadata.json"));
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| ProvenanceError::File { path, source }
    };
    let mut subjects = Vec::new();
    // One that an earlier job left does not describe itself.
    for path in files.iter().filter(|path| **path != own) {
        let whole = project_dir.join(path);
        if !fs::symlink_metadata(&whole).map_err(failed(path))?.is_file() {
            continue;
        }
        let digest = digest(&whole).map_err(failed(path))?;
        subjects.push(json!({ "name": path.to_string_lossy(), "digest": { "sha256": digest } }));
    }
    statement.insert("subject".into(), subjects.into());
    replace(project_dir, &own, &Value::Object(statement).to_string()).map_err(failed(&own))?;
    let bytes = |path: &PathBuf| path.as_os_str().as_encoded_bytes().to_vec();
    if let Err(at) = files.binary_search_by_key(&bytes(&own), bytes) {
        files.insert(at, own);
    }
    Ok(())
}

/// Whole or not at all, and not through a link that has its name.
fn replace(project_dir: &Path, name: &Path, text: &str) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(project_dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
    file.persist(project_dir.join(name)).map_err(|error| error.error)?;
    Ok(())
}

fn digest(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 128 << 10];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        archive::write,
        workload::transfer::{Format, Level},
    };

    #[test]
    fn api_149_the_archive_has_the_provenance_of_its_files() {
        let project = tempfile::tempdir().unwrap();
        fs::create_dir(project.path().join("dir")).unwrap();
        fs::write(project.path().join("dir/a"), "abc").unwrap();
        fs::write(project.path().join("z"), "").unwrap();
        let mut files: Vec<PathBuf> = ["dir", "dir/a", "z"].map(PathBuf::from).to_vec();
        let text = r#"{"_type":"https://in-toto.io/Statement/v0.1","subject":null}"#;
        for _ in 0..2 {
            add(project.path(), "out", text, &mut files).unwrap();
        }
        let names = ["dir", "dir/a", "out-metadata.json", "z"].map(PathBuf::from);
        assert_eq!(files, names);
        let mut zip = Vec::new();
        write::write(Format::Zip, Level::Default, project.path(), &files, &mut zip).unwrap();
        let mut zip = zip::ZipArchive::new(io::Cursor::new(zip)).unwrap();
        let statement: Value =
            serde_json::from_reader(zip.by_name("out-metadata.json").unwrap()).unwrap();
        assert_eq!(statement["_type"], "https://in-toto.io/Statement/v0.1");
        let subject = statement["subject"].as_array().unwrap();
        assert_eq!(subject.len(), 2);
        assert_eq!(subject[0]["name"], "dir/a");
        assert_eq!(
            subject[0]["digest"]["sha256"],
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let project = tempfile::tempdir().unwrap();
        let error = add(project.path(), "out", "[]", &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "the provenance is not a JSON object");
    }
}
