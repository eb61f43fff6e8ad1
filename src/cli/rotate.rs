//! Rotates the tokens of runners that expire, while `run` runs (docs/compatibility.md, "Token
//! rotation"): at three quarters of a token's life, into the file, from where the new one takes
//! effect like any change.

use std::{path::PathBuf, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    entries::{Setting, token_update},
    exit::Failure,
};
use crate::{
    base::{ids::ShortToken, secret::Secret},
    config::{
        Config, RunnerConfig,
        edit::{Editor, TokenUpdate},
    },
    gitlab::api::{Client, ClientSettings},
};

/// The clock is read again at least this often: it may be set, or stop while the machine sleeps.
const LOOK_AGAIN: Duration = Duration::from_hours(1);

/// Between two attempts, of a reset or of saving its result.
const TRY_AGAIN: Duration = Duration::from_mins(10);

/// How long a server may take.
const RESET_TIMEOUT: Duration = Duration::from_mins(2);

const FLAG: &str = "FF_DISABLE_AUTOMATIC_TOKEN_ROTATION";

/// When a token is due; `started` stands in for the time it was issued where the file has none.
fn due(obtained: Option<Timestamp>, expires: Timestamp, started: Timestamp) -> Timestamp {
    let from = obtained.unwrap_or(started);
    from.saturating_add(expires.duration_since(from) / 4 * 3).unwrap_or(expires)
}

/// The runner whose token is due first, and when. Runners that turned rotation off are left out.
fn first<'a>(
    runners: impl IntoIterator<Item = &'a RunnerConfig>,
    started: Timestamp,
) -> Option<(&'a RunnerConfig, Timestamp)> {
    let time = |text: &Option<String>| text.as_deref()?.parse::<Timestamp>().ok();
    runners
        .into_iter()
        .filter(|runner| !runner.gitlab.token.is_empty() && !is_off(runner))
        .filter_map(|runner| {
            let expires = time(&runner.gitlab.token_expires_at)?;
            Some((runner, due(time(&runner.gitlab.token_obtained_at), expires, started)))
        })
        .min_by_key(|(_, due)| *due)
}

fn is_off(runner: &RunnerConfig) -> bool {
    runner.feature_flags.get(FLAG).copied().unwrap_or(false)
}

/// Rotates tokens until `stop`. A reset that has begun is completed: otherwise its token would be
/// lost.
pub(super) async fn rotate(
    file: PathBuf,
    mut config: watch::Receiver<Config>,
    stop: CancellationToken,
) {
    let mut rotation = Rotation {
        setting: Setting { config: file, env: |name| std::env::var(name).ok() },
        started: Timestamp::now(),
        unsaved: Vec::new(),
        not_before: None,
    };
    warn_of_those_that_are_off(&config.borrow());
    loop {
        let current = config.borrow_and_update().clone();
        let wait = rotation.wait(&current, Timestamp::now());
        tokio::select! {
            () = stop.cancelled() => return,
            changed = config.changed() => match changed {
                Ok(()) => warn_of_those_that_are_off(&config.borrow()),
                Err(_) => return,
            },
            () = sleep(wait) => rotation.act(&current, Timestamp::now()).await,
        }
    }
}

fn warn_of_those_that_are_off(config: &Config) {
    for runner in &config.runners {
        if is_off(runner) && runner.gitlab.token_expires_at.is_some() {
            tracing::warn!(
                runner = runner.name.as_str(),
                expires_at = runner.gitlab.token_expires_at,
                "the runner's token expires, and {FLAG} turns off its rotation"
            );
        }
    }
}

/// What is kept between two reads of the clock.
struct Rotation {
    setting: Setting,
    started: Timestamp,
    /// Tokens that are not in the file yet, by those that they replace.
    unsaved: Vec<(Secret, TokenUpdate)>,
    /// After a failure, when to try again.
    not_before: Option<Timestamp>,
}

impl Rotation {
    /// How long to wait until the clock is read again.
    fn wait(&self, config: &Config, now: Timestamp) -> Duration {
        let due =
            if self.unsaved.is_empty() { self.next(config).map(|(_, due)| due) } else { Some(now) };
        let Some(due) = due.max(self.not_before.filter(|_| due.is_some())) else {
            return LOOK_AGAIN;
        };
        Duration::try_from(due.duration_since(now)).unwrap_or_default().min(LOOK_AGAIN)
    }

    /// The next token that is due and not replaced already.
    fn next<'a>(&self, config: &'a Config) -> Option<(&'a RunnerConfig, Timestamp)> {
        let replaced =
            |runner: &RunnerConfig| self.unsaved.iter().any(|(t, _)| *t == runner.gitlab.token);
        let runners = config.runners.iter().map(AsRef::as_ref);
        first(runners.filter(|runner| !replaced(runner)), self.started)
    }

    /// Does what is due by now.
    async fn act(&mut self, config: &Config, now: Timestamp) {
        let due = self.next(config).filter(|(_, due)| *due <= now).map(|(runner, _)| runner);
        if let Some(runner) = due {
            match self.reset(runner, config.connection_max_age).await {
                Ok(update) => self.unsaved.push((runner.gitlab.token.clone(), update)),
                Err(failure) => {
                    tracing::warn!(
                        runner = runner.name.as_str(), error = %failure,
                        "the runner's token could not be renewed; the one before stays in use"
                    );
                    self.put_off(now);
                    return;
                }
            }
        }
        self.not_before = None;
        if self.unsaved.is_empty() {
            return;
        }
        if let Err(failure) = self.save().await {
            tracing::error!(
                error = %failure,
                "a new token is not in the file, and the old one is void; it will be tried again"
            );
            self.put_off(now);
        }
    }

    fn put_off(&mut self, now: Timestamp) {
        let pause = SignedDuration::try_from(TRY_AGAIN).unwrap_or(SignedDuration::MAX);
        self.not_before = now.saturating_add(pause).ok();
    }

    async fn reset(
        &self,
        runner: &RunnerConfig,
        max_age: Duration,
    ) -> Result<TokenUpdate, Failure> {
        let settings = ClientSettings::of(runner, Some(&self.setting.certs_dir()), max_age);
        let client = Client::new(settings)?;
        let reply = timeout(RESET_TIMEOUT, client.reset_token())
            .await
            .map_err(|_| Failure::new("the server did not answer in time"))??;
        tracing::info!(
            runner = runner.name.as_str(),
            old = %ShortToken::of(runner.gitlab.token.expose()),
            new = %ShortToken::of(reply.token.expose()),
            expires_at = reply.token_expires_at,
            "the runner has a new token"
        );
        Ok(token_update(reply.token, reply.token_expires_at))
    }

    /// Writes all new tokens into the file.
    async fn save(&mut self) -> Result<(), Failure> {
        let (setting, updates) = (self.setting.clone(), self.unsaved.clone());
        // Opening waits for others that edit the file.
        let saved = tokio::task::spawn_blocking(move || {
            let mut editor = Editor::open(&setting.config)?;
            for (old, update) in &updates {
                match editor.position(old, &setting.env) {
                    Some(number) => editor.set_token(number, update)?,
                    None => tracing::warn!("a runner with a new token is no longer in the file"),
                }
            }
            editor.save()
        });
        saved.await.map_err(|error| Failure::new(error.to_string()))??;
        self.unsaved.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{config::check, gitlab::test_server::Server};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn api_42_a_token_is_due_at_three_quarters_of_its_life() {
        let (obtained, expires) = (at("2026-01-01T10:00:00Z"), at("2026-01-01T11:40:00Z"));
        let started = at("2026-01-01T10:20:00Z");
        assert_eq!(due(Some(obtained), expires, started), at("2026-01-01T11:15:00Z"));
        assert_eq!(due(None, expires, started), at("2026-01-01T11:20:00Z"));
    }

    /// A file with a runner that has these keys too.
    fn file(directory: &std::path::Path, url: &str, keys: &str) -> (PathBuf, Config) {
        let path = directory.join("config.toml");
        let text = format!(
            "# ours\n[[runners]]\nname = \"one\"\nurl = \"{url}\"\ntoken = \"glrt-one\"\n\
             executor = \"docker\"\n{keys}\n[runners.docker]\nimage = \"a\"\n"
        );
        fs::write(&path, text).unwrap();
        let config = check::load(&path, &|_| None).unwrap().config;
        (path, config)
    }

    fn rotation(path: PathBuf, started: &str) -> Rotation {
        let setting = Setting { config: path, env: |_| None };
        Rotation { setting, started: at(started), unsaved: Vec::new(), not_before: None }
    }

    const LIFE: &str = "token_obtained_at = 2026-01-01T10:00:00Z\n\
                        token_expires_at = 2026-01-01T11:40:00Z";

    #[test]
    fn api_43_without_an_end_or_with_the_flag_nothing_is_due() {
        let directory = tempfile::tempdir().unwrap();
        let off = format!("{LIFE}\n[runners.feature_flags]\n{FLAG} = true");
        for keys in ["", &off] {
            let (path, config) = file(directory.path(), "https://gitlab.example", keys);
            let rotation = rotation(path, "2026-01-01T10:00:00Z");
            assert!(rotation.next(&config).is_none(), "{keys}");
            assert_eq!(rotation.wait(&config, at("2027-01-01T10:00:00Z")), LOOK_AGAIN);
        }
    }

    #[tokio::test]
    async fn api_42_config_29_a_due_token_is_renewed_and_kept_in_the_file() {
        let answer = r#"{"token": "glrt-new", "token_expires_at": "2026-02-01T00:00:00Z"}"#;
        let server = Server::scripted(&[(403, "{}"), (201, answer)]).await;
        let directory = tempfile::tempdir().unwrap();
        let (path, config) = file(directory.path(), server.url(), LIFE);
        let before = fs::read_to_string(&path).unwrap();
        let mut rotation = rotation(path.clone(), "2026-01-01T10:00:00Z");
        let early = at("2026-01-01T11:14:00Z");
        assert_eq!(rotation.wait(&config, early), Duration::from_mins(1));
        rotation.act(&config, early).await;
        assert!(server.lines().is_empty());

        // The first answer refuses: nothing changes, and it is tried again later.
        let now = at("2026-01-01T11:15:00Z");
        rotation.act(&config, now).await;
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        assert_eq!(rotation.wait(&config, now), TRY_AGAIN);

        rotation.act(&config, at("2026-01-01T11:25:00Z")).await;
        assert_eq!(server.lines(), ["POST /api/v4/runners/reset_authentication_token"; 2]);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# ours\n") && text.contains("token = \"glrt-new\""), "{text}");
        assert!(text.contains("token_expires_at = 2026-02-01T00:00:00Z"), "{text}");
        assert!(check::load(&path, &|_| None).is_ok());
    }

    #[tokio::test]
    async fn a_token_that_cannot_be_kept_is_tried_again_and_not_renewed_twice() {
        let server = Server::scripted(&[(201, r#"{"token": "glrt-new"}"#)]).await;
        let directory = tempfile::tempdir().unwrap();
        let (path, config) = file(directory.path(), server.url(), LIFE);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, "not toml").unwrap();
        let mut rotation = rotation(path.clone(), "2026-01-01T10:00:00Z");
        let now = at("2026-01-01T12:00:00Z");
        rotation.act(&config, now).await;
        assert_eq!(rotation.wait(&config, now), TRY_AGAIN);
        fs::write(&path, text).unwrap();
        rotation.act(&config, at("2026-01-01T12:10:00Z")).await;
        assert!(fs::read_to_string(&path).unwrap().contains("token = \"glrt-new\""));
        assert_eq!(server.lines().len(), 1);
    }
}
