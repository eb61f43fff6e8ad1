//! Changes to the file that keep everything else as the operator wrote it: comments, order and keys
//! that longshore does not know. A save replaces the file at once or not at all.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TableLike, Value};

use super::values;
use crate::base::secret::Secret;

/// Why the file could not be changed. Never shows a line of it, which may hold a token.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not TOML.
    #[error("`{path}` is not TOML: line {line}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// `runners` is something else than an array of tables.
    #[error("`runners` in `{path}` is not an array of tables")]
    Runners {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What identifies a `[[runners]]` entry, as written and with environment references replaced.
/// Read without checking the rest, so that a runner can be taken out of a file that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Description, empty when it has none.
    pub name: String,
    /// GitLab's address, with environment references replaced.
    pub url: String,
    /// Authentication token, with environment references replaced.
    pub token: Secret,
    /// Number at the server; 0 when unknown.
    pub id: i64,
    /// Executor, whether supported or not.
    pub executor: String,
    /// PEM file of CAs that are trusted beside the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// PEM file of the client certificate.
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file of its key.
    pub tls_key_file: Option<PathBuf>,
}

/// A token and what the server said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenUpdate {
    /// The new token.
    pub token: Secret,
    /// When it was issued, RFC 3339.
    pub obtained_at: String,
    /// When it ends, RFC 3339.
    pub expires_at: Option<String>,
}

/// The file, open for changes. Others that edit it wait until this is dropped, so no question and
/// no request belongs between opening and saving.
#[derive(Debug)]
pub struct Editor {
    path: PathBuf,
    document: DocumentMut,
    _lock: Option<File>,
}

impl Editor {
    /// Opens the file; one that does not exist is an empty one. Its directory is made, with mode
    /// 0700, when it is missing.
    pub fn open(path: &Path) -> Result<Self, EditError> {
        let write = |source| EditError::Write { path: path.to_owned(), source };
        let directory = directory_of(path);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(write)?;
        let lock = lock(directory);
        let document = parse(path, &read(path)?)?;
        Ok(Self { path: path.to_owned(), document, _lock: lock })
    }

    /// The runners, in file order; `env` looks up what `url` and `token` refer to.
    pub fn entries(&self, env: &dyn Fn(&str) -> Option<String>) -> Vec<Entry> {
        entries_of(&self.document, env)
    }

    /// Adds a `[[runners]]` entry at the end. A file without anything gets the global keys too.
    pub fn append_runner(&mut self, mut runner: Table) -> Result<(), EditError> {
        if self.document.is_empty() {
            // Comments of a file without a key are all "trailing": they stay on top.
            let comments = self.document.trailing().as_str().unwrap_or_default().to_owned();
            self.document.set_trailing("");
            self.document["concurrent"] = toml_edit::value(1);
            self.document["check_interval"] = toml_edit::value(0);
            if let Some(mut key) = self.document.key_mut("concurrent") {
                key.leaf_decor_mut().set_prefix(comments);
            }
        }
        if runner.decor().prefix().is_none() {
            runner.decor_mut().set_prefix("\n");
        }
        self.runners_mut()?.push(runner);
        Ok(())
    }

    /// Removes the entry with that number, counted from 0.
    pub fn remove_runner(&mut self, number: usize) -> Result<(), EditError> {
        let runners = self.runners_mut()?;
        if number < runners.len() {
            runners.remove(number);
        }
        Ok(())
    }

    /// Gives the entry with that number another token.
    pub fn set_token(&mut self, number: usize, update: &TokenUpdate) -> Result<(), EditError> {
        if let Some(runner) = self.runners_mut()?.get_mut(number) {
            set(runner, "token", update.token.expose().into());
            set(runner, "token_obtained_at", timestamp(&update.obtained_at));
            match &update.expires_at {
                Some(at) => set(runner, "token_expires_at", timestamp(at)),
                None => {
                    runner.remove("token_expires_at");
                }
            }
        }
        Ok(())
    }

    /// The number of the entry with that token, as written or as its environment gives it.
    pub fn position(&self, token: &Secret, env: &dyn Fn(&str) -> Option<String>) -> Option<usize> {
        self.entries(env).iter().position(|entry| entry.token == *token)
    }

    /// Sets a global key.
    pub fn set_global(&mut self, key: &str, value: impl Into<Value>) {
        set(self.document.as_table_mut(), key, value.into());
    }

    /// A global key that is a number; `None` when it is absent or something else.
    #[must_use]
    pub fn global_integer(&self, key: &str) -> Option<i64> {
        let table = self.document.as_table();
        table.get(&spelling(table, key)).and_then(Item::as_integer)
    }

    /// The text as it would be saved.
    #[must_use]
    pub fn text(&self) -> String {
        self.document.to_string()
    }

    /// Replaces the file: a new one beside it is written, synced and renamed. Owner and mode of an
    /// existing file are kept; a new one has mode 0600.
    pub fn save(&self) -> Result<(), EditError> {
        replace(&self.path, self.text().as_bytes())
            .map_err(|source| EditError::Write { path: self.path.clone(), source })
    }

    fn runners_mut(&mut self) -> Result<&mut ArrayOfTables, EditError> {
        let table = self.document.as_table_mut();
        let key = spelling(table, "runners");
        let item = table.entry(&key).or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        if let Some(array) = item.as_array() {
            // Written inline: the same tables, written out.
            let tables = array
                .iter()
                .map(|value| value.as_inline_table().map(|inline| inline.clone().into_table()))
                .collect::<Option<Vec<_>>>();
            if let Some(tables) = tables {
                let mut runners = ArrayOfTables::new();
                for table in tables {
                    runners.push(table);
                }
                *item = Item::ArrayOfTables(runners);
            }
        }
        item.as_array_of_tables_mut().ok_or_else(|| EditError::Runners { path: self.path.clone() })
    }
}

/// The runners of the file, without holding it; none when there is no file.
pub fn entries(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Entry>, EditError> {
    Ok(entries_of(&parse(path, &read(path)?)?, env))
}

fn read(path: &Path) -> Result<String, EditError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(EditError::Read { path: path.to_owned(), source }),
    }
}

fn parse(path: &Path, text: &str) -> Result<DocumentMut, EditError> {
    text.parse::<DocumentMut>().map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or_default();
        EditError::Syntax {
            path: path.to_owned(),
            line: before.matches('\n').count() + 1,
            message: error.message().to_owned(),
        }
    })
}

fn entries_of(document: &DocumentMut, env: &dyn Fn(&str) -> Option<String>) -> Vec<Entry> {
    let key = spelling(document.as_table(), "runners");
    let Some(item) = document.get(&key) else { return Vec::new() };
    let tables: Vec<&dyn TableLike> = match item {
        Item::ArrayOfTables(array) => array.iter().map(|t| t as &dyn TableLike).collect(),
        Item::Value(Value::Array(array)) => array
            .iter()
            .filter_map(|value| value.as_inline_table().map(|t| t as &dyn TableLike))
            .collect(),
        _ => Vec::new(),
    };
    tables.into_iter().map(|table| entry(table, env)).collect()
}

fn entry(table: &dyn TableLike, env: &dyn Fn(&str) -> Option<String>) -> Entry {
    let item = |key: &str| {
        let exact = table.get(key);
        exact.or_else(|| table.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, i)| i))
    };
    let text = |key: &str| item(key).and_then(Item::as_str).unwrap_or_default().to_owned();
    let expanded = |key: &str| values::expand_environment(&text(key), env).0;
    let path = |key: &str| Some(text(key)).filter(|t| !t.is_empty()).map(PathBuf::from);
    Entry {
        name: text("name"),
        url: expanded("url"),
        token: Secret::new(expanded("token").trim()),
        id: item("id").and_then(Item::as_integer).unwrap_or(0),
        executor: text("executor"),
        tls_ca_file: path("tls-ca-file"),
        tls_cert_file: path("tls-cert-file"),
        tls_key_file: path("tls-key-file"),
    }
}

/// The key as the file spells it.
fn spelling(table: &Table, key: &str) -> String {
    let same = |(name, _): (&str, &Item)| name.eq_ignore_ascii_case(key).then(|| name.to_owned());
    if table.contains_key(key) {
        return key.to_owned();
    }
    table.iter().find_map(same).unwrap_or_else(|| key.to_owned())
}

/// Sets a value and keeps what is written around the old one.
fn set(table: &mut Table, key: &str, mut value: Value) {
    let key = spelling(table, key);
    if let Some(old) = table.get_mut(&key).and_then(Item::as_value_mut) {
        *value.decor_mut() = old.decor().clone();
        *old = value;
    } else {
        table.insert(&key, Item::Value(value));
    }
}

/// A point in time as TOML has it; text when it is no valid one.
pub(crate) fn timestamp(text: &str) -> Value {
    match text.parse::<toml_edit::Datetime>() {
        Ok(time) => time.into(),
        Err(_) => text.into(),
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Keeps two commands from overwriting each other's change. On file systems without locks it has no
/// effect.
fn lock(directory: &Path) -> Option<File> {
    let file = File::open(directory).ok()?;
    file.lock().ok()?;
    Some(file)
}

/// Replaces the file's content at once, keeping its owner and mode.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    // A link stays one; what it points to is replaced.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = directory_of(&path);
    let mut file = tempfile::Builder::new().prefix(".longshore-").tempfile_in(directory)?;
    file.write_all(content)?;
    if let Ok(old) = fs::metadata(&path) {
        let mine = file.as_file().metadata()?;
        if (mine.uid(), mine.gid()) != (old.uid(), old.gid()) {
            // Only root may give a file away; a file of one's own is better than none.
            let _ = fchown(file.as_file(), Some(old.uid()), Some(old.gid()));
        }
        file.as_file().set_permissions(fs::Permissions::from_mode(old.mode() & 0o7777))?;
    }
    file.as_file().sync_all()?;
    match file.persist(&path) {
        Ok(_) => File::open(directory)?.sync_all(),
        // A file that is itself a mount (as containers get it) cannot be renamed over.
        Err(error) if error.error.kind() == io::ErrorKind::ResourceBusy => {
            let mut in_place = File::options().write(true).truncate(true).open(&path)?;
            in_place.write_all(content)?;
            in_place.sync_all()
        }
        Err(error) => Err(error.error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"# ours
concurrent = 4 # four
unknown = "kept"

[session_server]
  session_timeout = 1800

# the first
[[runners]]
  name = "one"
  url = "https://a.example"
  token = "glrt-one" # secret
  executor = "shell"
  [runners.machine]
    IdleCount = 3

# the second
[[runners]]
  name = "two"
  url = "$URL"
  token = "${TOKEN}"
  executor = "docker"
  [runners.docker]
    image = "alpine"
"#;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        fs::write(&path, FILE).unwrap();
        (directory, path)
    }

    fn env(name: &str) -> Option<String> {
        match name {
            "URL" => Some("https://b.example".to_owned()),
            "TOKEN" => Some("glrt-two".to_owned()),
            _ => None,
        }
    }

    fn no_env(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn config_47_an_edit_keeps_comments_unknown_keys_and_other_tables() {
        let (_directory, path) = file();
        let mut editor = Editor::open(&path).unwrap();
        let mut runner = Table::new();
        runner["name"] = toml_edit::value("three");
        editor.append_runner(runner).unwrap();
        editor.save().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("{FILE}\n[[runners]]\nname = \"three\"\n"));
    }

    #[test]
    fn a_removed_runner_goes_with_its_tables_and_its_comment_alone() {
        let (_directory, path) = file();
        let mut editor = Editor::open(&path).unwrap();
        editor.remove_runner(0).unwrap();
        editor.save().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let (first, second) = (FILE.find("\n# the first").unwrap(), FILE.find("\n# the second"));
        assert_eq!(text, format!("{}{}", &FILE[..first], &FILE[second.unwrap()..]));
    }

    #[test]
    fn a_new_token_is_the_only_change() {
        let (_directory, path) = file();
        let mut editor = Editor::open(&path).unwrap();
        let number = editor.position(&Secret::new("glrt-one"), &env).unwrap();
        let update = TokenUpdate {
            token: Secret::new("glrt-new"),
            obtained_at: "2026-01-02T03:04:05Z".to_owned(),
            expires_at: Some("2026-02-02T03:04:05Z".to_owned()),
        };
        editor.set_token(number, &update).unwrap();
        let text = editor.text();
        assert!(text.contains("token = \"glrt-new\" # secret\n"), "{text}");
        assert!(text.contains("token_expires_at = 2026-02-02T03:04:05Z\n"), "{text}");
        assert!(text.contains("token = \"${TOKEN}\"\n"), "{text}");
        let none = TokenUpdate { expires_at: None, ..update };
        editor.set_token(number, &none).unwrap();
        assert!(!editor.text().contains("token_expires_at"));
    }

    #[test]
    fn config_7_entries_have_their_environment_replaced_and_the_file_keeps_it() {
        let (_directory, path) = file();
        let found = entries(&path, &env).unwrap();
        assert_eq!(found[1].url, "https://b.example");
        assert_eq!(found[1].token.expose(), "glrt-two");
        assert_eq!(found[0].executor, "shell");
        let editor = Editor::open(&path).unwrap();
        editor.save().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), FILE);
    }

    #[test]
    fn config_48_a_save_replaces_the_file_and_keeps_its_mode_and_its_link() {
        let (directory, path) = file();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = directory.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let before = fs::metadata(&path).unwrap().ino();
        Editor::open(&link).unwrap().save().unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_ne!(before, after.ino(), "written in place");
        assert_eq!(after.mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2, "nothing is left over");
    }

    #[test]
    fn a_new_file_is_the_owners_alone_and_so_is_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/deep/config.toml");
        let mut editor = Editor::open(&path).unwrap();
        editor.append_runner(Table::new()).unwrap();
        editor.save().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "concurrent = 1\ncheck_interval = 0\n\n[[runners]]\n");
    }

    #[test]
    fn a_file_of_comments_alone_keeps_them_on_top() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        let comments = "# the reference\n#concurrent = 1\n";
        fs::write(&path, comments).unwrap();
        let mut editor = Editor::open(&path).unwrap();
        editor.append_runner(Table::new()).unwrap();
        assert_eq!(
            editor.text(),
            format!("{comments}concurrent = 1\ncheck_interval = 0\n\n[[runners]]\n")
        );
    }

    #[test]
    fn runners_written_inline_are_written_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        fs::write(&path, "runners = [{ name = \"a\", token = \"t\" }]\n").unwrap();
        let mut editor = Editor::open(&path).unwrap();
        editor.append_runner(Table::new()).unwrap();
        editor.save().unwrap();
        assert_eq!(entries(&path, &no_env).unwrap().len(), 2);
    }

    #[test]
    fn an_error_of_syntax_names_the_line_and_shows_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        fs::write(&path, "concurrent = 1\n[[runners]]\ntoken = \"glrt-secret\n").unwrap();
        let error = Editor::open(&path).unwrap_err().to_string();
        assert!(error.contains("line 3"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }
}
