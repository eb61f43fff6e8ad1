//! Where things are when nobody says: pure functions of the user, the home directory and what
//! exists.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::base::ids::hex;

/// Who runs the program.
#[derive(Debug, Clone)]
pub struct User {
    /// Whether it is root.
    pub is_root: bool,
    /// The home directory.
    pub home: Option<PathBuf>,
}

impl User {
    /// The user of this process.
    #[must_use]
    pub fn current() -> Self {
        let is_root = rustix::process::geteuid().is_root();
        Self { is_root, home: std::env::home_dir().filter(|home| !home.as_os_str().is_empty()) }
    }

    /// The configuration file: longshore's own if it exists, else gitlab-runner's if that exists,
    /// else longshore's own, to be made.
    pub fn config_path(&self, exists: &dyn Fn(&Path) -> bool) -> PathBuf {
        let (own, incumbent) = match &self.home {
            Some(home) if !self.is_root => (
                home.join(".config/longshore/config.toml"),
                home.join(".gitlab-runner/config.toml"),
            ),
            _ => (
                PathBuf::from("/etc/longshore/config.toml"),
                PathBuf::from("/etc/gitlab-runner/config.toml"),
            ),
        };
        if !exists(&own) && exists(&incumbent) { incumbent } else { own }
    }

    /// Where the ledger, running jobs and caches are.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        match &self.home {
            Some(home) if !self.is_root => home.join(".local/state/longshore"),
            _ => PathBuf::from("/var/lib/longshore"),
        }
    }

    /// The state directory of a configuration file: one of its own for each, as two longshores
    /// cannot use the same. Files where nobody had to name them share [`User::state_dir`].
    #[must_use]
    pub fn state_dir_of(&self, config: &Path) -> PathBuf {
        let usual = config == self.config_path(&|path| path == config);
        if usual {
            return self.state_dir();
        }
        let digest = Sha256::digest(config.as_os_str().as_encoded_bytes());
        self.state_dir().join("configs").join(hex(&digest[..6]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_incumbents_file_is_taken_when_it_is_the_only_one() {
        let root = User { is_root: true, home: Some("/root".into()) };
        let user = User { is_root: false, home: Some("/home/u".into()) };
        let path = |user: &User, there: &[&str]| {
            user.config_path(&|path| there.iter().any(|there| Path::new(there) == path))
        };
        let (own, other) = ("/etc/longshore/config.toml", "/etc/gitlab-runner/config.toml");
        assert_eq!(path(&root, &[]), Path::new(own));
        assert_eq!(path(&root, &[other]), Path::new(other));
        assert_eq!(path(&root, &[own, other]), Path::new(own));
        let (own, other) =
            ("/home/u/.config/longshore/config.toml", "/home/u/.gitlab-runner/config.toml");
        assert_eq!(path(&user, &[]), Path::new(own));
        assert_eq!(path(&user, &[other]), Path::new(other));
        assert_eq!(user.state_dir(), Path::new("/home/u/.local/state/longshore"));
        let of = |config: &str| root.state_dir_of(Path::new(config));
        assert_eq!(of("/etc/longshore/config.toml"), Path::new("/var/lib/longshore"));
        assert_eq!(of("/etc/gitlab-runner/config.toml"), Path::new("/var/lib/longshore"));
        assert!(of("/srv/a.toml").starts_with("/var/lib/longshore/configs"));
        assert_ne!(of("/srv/a.toml"), of("/srv/b.toml"));
    }
}
