//! The id of this installation, which GitLab shows as the runner's manager: one for each
//! configuration file, kept beside it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use super::edit;
use crate::base::{
    hash::hmac_sha256,
    ids::{hex, random_hex},
};

/// Name of the file beside the configuration.
const FILE_NAME: &str = ".runner_system_id";

/// Where the machine's id may be, in order (GitLab Runner: `denisbrodbeck/machineid`).
const MACHINE_ID_FILES: &[&str] = &["/var/lib/dbus/machine-id", "/etc/machine-id"];

/// How many characters follow `s_` or `r_`.
const LENGTH: usize = 12;

/// `s_` and twelve hex digits of the machine's id, or `r_` and twelve random characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SystemId(String);

impl SystemId {
    /// Takes a text that has the form of an id, blanks around it aside.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let rest = text.strip_prefix("s_").or_else(|| text.strip_prefix("r_"))?;
        let valid = rest.len() == LENGTH && rest.chars().all(|c| c.is_ascii_alphanumeric());
        valid.then(|| Self(text.to_owned()))
    }

    /// The id as GitLab gets it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of a machine: the beginning of a keyed hash, so that the machine's own id stays
    /// private.
    fn of_machine(machine_id: &str) -> Self {
        let hash = hmac_sha256(machine_id.as_bytes(), b"gitlab-runner");
        Self(format!("s_{}", hex(&hash[..LENGTH / 2])))
    }

    fn random() -> Self {
        Self(format!("r_{}", random_hex::<{ LENGTH / 2 }>()))
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The file is there and cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the system id `{path}`")]
pub struct SystemIdError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// The id, and why it could not be saved, which is a warning: it is then used until the process ends.
#[derive(Debug)]
pub struct Loaded {
    /// The id.
    pub id: SystemId,
    /// The file that could not be written, and why.
    pub not_saved: Option<(PathBuf, io::Error)>,
}

/// The id beside the configuration file `config`; made and kept when there is none or no valid one.
pub fn load_or_create(config: &Path) -> Result<Loaded, SystemIdError> {
    load_or_create_with(config, machine_id().as_deref())
}

fn load_or_create_with(config: &Path, machine: Option<&str>) -> Result<Loaded, SystemIdError> {
    let path = config.with_file_name(FILE_NAME);
    match fs::read(&path) {
        Ok(bytes) => {
            if let Some(id) = SystemId::parse(&String::from_utf8_lossy(&bytes)) {
                return Ok(Loaded { id, not_saved: None });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(SystemIdError { path, source }),
    }
    let id = machine.map_or_else(SystemId::random, SystemId::of_machine);
    let not_saved = save(&path, &id).err().map(|error| (path, error));
    Ok(Loaded { id, not_saved })
}

fn save(path: &Path, id: &SystemId) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    edit::replace(path, id.as_str().as_bytes())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
}

fn machine_id() -> Option<String> {
    let read = |path: &&str| fs::read_to_string(path).ok();
    MACHINE_ID_FILES.iter().find_map(read).map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn api_25_a_first_start_makes_an_id_and_saves_it_without_a_newline() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("new/config.toml");
        let loaded = load_or_create_with(&config, Some("0123456789abcdef")).unwrap();
        assert!(loaded.not_saved.is_none());
        let path = config.with_file_name(FILE_NAME);
        assert_eq!(fs::read_to_string(&path).unwrap(), loaded.id.as_str());
        assert!(loaded.id.as_str().starts_with("s_"));
        assert_eq!(SystemId::parse(loaded.id.as_str()), Some(loaded.id));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_id_of_a_machine_is_the_keyed_hash_of_its_id() {
        // printf gitlab-runner | openssl dgst -sha256 -hmac 0123456789abcdef
        let id = SystemId::of_machine("0123456789abcdef");
        assert_eq!(id.as_str(), "s_7a8ab7a73253");
    }

    #[test]
    fn api_26_a_valid_id_followed_by_a_newline_is_used_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.toml");
        fs::write(directory.path().join(FILE_NAME), "r_aB3dE6gH9jK2\n").unwrap();
        let loaded = load_or_create_with(&config, Some("x")).unwrap();
        assert_eq!(loaded.id.as_str(), "r_aB3dE6gH9jK2");
        let kept = fs::read_to_string(directory.path().join(FILE_NAME)).unwrap();
        assert_eq!(kept, "r_aB3dE6gH9jK2\n");
    }

    #[test]
    fn api_27_api_28_config_37_garbage_is_replaced_and_then_stays() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.toml");
        for garbage in ["", "s_short", "x_aB3dE6gH9jK2", "r_aB3dE6gH9jK2x", "\u{fffd}"] {
            fs::write(directory.path().join(FILE_NAME), garbage).unwrap();
            let first = load_or_create_with(&config, None).unwrap().id;
            assert!(first.as_str().starts_with("r_"));
            assert_eq!(load_or_create_with(&config, None).unwrap().id, first);
        }
    }

    #[test]
    fn an_id_that_cannot_be_saved_is_used_and_one_that_cannot_be_read_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let inside_a_file = directory.path().join("file/config.toml");
        assert!(load_or_create_with(&inside_a_file, None).is_err());
        fs::create_dir(directory.path().join(FILE_NAME)).unwrap();
        let error = load_or_create_with(&directory.path().join("config.toml"), None).unwrap_err();
        assert!(error.to_string().contains(FILE_NAME));
    }
}
