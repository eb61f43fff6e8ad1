//! From the file as written to [`Config`]: everything is checked at once, and every problem is
//! reported with its place and what to do, so that one edit can fix them all.

mod cache;
mod dind;
mod docker;
mod globs;
mod labels;
mod runner;
mod socket;
mod variables;

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub(crate) use self::runner::SUPPORTED_EXECUTORS;
use super::{
    file::{Notes, Section},
    global::Config,
    problem::{Problem, Problems, Warning},
};

/// A file that can be used.
#[derive(Debug, Clone)]
pub struct Checked {
    /// The checked configuration.
    pub config: Config,
    /// What to tell the operator, in file order.
    pub warnings: Vec<Warning>,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is there and cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It can be read and is wrong.
    #[error(transparent)]
    Check(#[from] Problems),
}

/// Reads and checks the file; one that does not exist is an empty one.
pub fn load(path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Checked, LoadError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(source) => return Err(LoadError::Read { path: path.to_owned(), source }),
    };
    Ok(check(&text, path, env)?)
}

/// Checks `text`, the content of `path`, as a whole. `env` looks up what `url` and `token` refer
/// to.
pub fn check(
    text: &str,
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Checked, Problems> {
    check_and_list_keys(text, path, env).map(|(checked, _)| checked)
}

/// The same, and the keys that were read: all that longshore knows of the tables in the file.
fn check_and_list_keys(
    text: &str,
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<(Checked, BTreeSet<String>), Problems> {
    let notes = Notes::new(text);
    let document = match toml_edit::Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            // Not the error's own display: it shows the line, which may hold a token.
            let problem = Problem {
                key: String::new(),
                line: notes.line(error.span()),
                value: None,
                why: format!("not TOML: {}", error.message()),
                hint: None,
            };
            return Err(Problems {
                path: path.to_owned(),
                problems: vec![problem],
                warnings: Vec::new(),
            });
        }
    };
    let config = global(&Section::root(&notes, document.as_table()), env);
    let (problems, warnings, asked) = notes.into_parts();
    if problems.is_empty() {
        Ok((Checked { config, warnings }, asked))
    } else {
        Err(Problems { path: path.to_owned(), problems, warnings })
    }
}

fn global(file: &Section<'_>, env: &dyn Fn(&str) -> Option<String>) -> Config {
    let labels = labels::labels(file);
    let config = Config {
        concurrent: concurrent(file),
        check_interval: Duration::from_secs(file.positive("check_interval").unwrap_or(3)),
        log_level: log_level(file),
        log_format: log_format(file),
        listen_address: listen_address(file),
        shutdown_timeout: Duration::from_secs(file.positive("shutdown_timeout").unwrap_or(30)),
        connection_max_age: match file.duration("connection_max_age") {
            None => Duration::from_mins(15),
            Some((true, _)) => Duration::ZERO,
            Some((false, age)) => age,
        },
        runners: file
            .tables("runners")
            .into_iter()
            .map(|section| Arc::new(runner::runner(section, &labels, env)))
            .collect(),
    };
    let session = file.table("session_server");
    if session.text("listen_address").is_some() {
        session.warn("listen_address", "interactive terminals are not supported");
    }
    let _ = (session.has("advertise_address"), session.has("session_timeout"));
    session.finish();
    file.unsupported("user", "the shell executor is not supported, so this has no effect");
    file.unsupported("sentry_dsn", "error tracking by Sentry is not supported");
    for table in ["machine", "experimental"] {
        file.unsupported(table, "this table is not supported");
    }
    file.clone().finish();
    config
}

fn concurrent(file: &Section<'_>) -> usize {
    let Some(number) = file.integer("concurrent") else { return 1 };
    match usize::try_from(number) {
        Ok(number) if number >= 1 => number,
        _ => {
            let hint = "write how many jobs may run at once";
            file.problem("concurrent", Some(&number.to_string()), "must be at least 1", hint);
            1
        }
    }
}

fn log_level(file: &Section<'_>) -> Option<String> {
    file.parsed("log_level", "", |text| match text {
        "panic" | "fatal" | "error" | "warn" | "warning" | "info" | "debug" | "trace" => {
            Ok(text.to_owned())
        }
        _ => Err("must be debug, info, warn, error, fatal or panic"),
    })
}

fn log_format(file: &Section<'_>) -> Option<String> {
    file.parsed("log_format", "", |text| match text {
        "runner" | "text" | "json" => Ok(text.to_owned()),
        _ => Err("must be runner, text or json"),
    })
}

/// The port of the metrics when the file names none (GitLab Runner: `defaultMetricsServerPort`).
const METRICS_PORT: u16 = 9252;

fn listen_address(file: &Section<'_>) -> Option<String> {
    file.parsed("listen_address", "write for example \":9252\"", parse_listen_address)
}

/// `host:port` from `host[:port]`; a scheme is refused.
pub(crate) fn parse_listen_address(text: &str) -> Result<String, &'static str> {
    if text.contains("://") {
        return Err("must not begin with a scheme");
    }
    match text.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        Some((_, _)) if text.starts_with('[') && text.ends_with(']') => {
            Ok(format!("{text}:{METRICS_PORT}"))
        }
        Some(_) => Err("the port is not a number"),
        None => Ok(format!("{text}:{METRICS_PORT}")),
    }
}

#[cfg(test)]
mod tests;
