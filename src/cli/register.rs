//! `register`: makes a runner known here, and at its server where a registration token is used.
//! Whatever fails after the server knows us is undone there, an interrupt too.

mod template;

use std::{future::Future, path::PathBuf};

use clap::ArgAction;
use toml_edit::{Array, ArrayOfTables, DocumentMut, Item, Table};

use super::{
    console::Console,
    entries::{Setting, info_of, is_created_runner, now},
    exit::{Exit, Failure, Outcome},
    runner_options::{RunnerOptions, boolean, set},
    unregister::delete,
};
use crate::{
    base::{ids::ShortToken, secret::Secret},
    config::{
        Warning,
        check::{SUPPORTED_EXECUTORS, check},
        edit::{Entry, timestamp},
        volume::Volume,
    },
    gitlab::api::{Client, Registration, Verification},
};

/// Arguments of `register`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RegisterArgs {
    /// Asks no questions; a missing answer is an error
    #[arg(short = 'n', long, env = "REGISTER_NON_INTERACTIVE")]
    non_interactive: bool,
    /// Keeps the runner registered when a later step fails
    #[arg(long, env = "REGISTER_LEAVE_RUNNER")]
    leave_runner: bool,
    /// File with one `[[runners]]` entry, for all that no option sets
    #[arg(long, env = "TEMPLATE_CONFIG_FILE", value_name = "FILE")]
    template_config: Option<PathBuf>,
    /// Registration token (deprecated: create the runner in GitLab and use --token)
    #[arg(short = 'r', long, env = "REGISTRATION_TOKEN", hide_env_values = true)]
    registration_token: Option<String>,
    #[command(flatten)]
    reserved: Reserved,
    /// Keys of the runner.
    #[command(flatten)]
    options: RunnerOptions,
}

/// What only a registration token can set; a created runner has it from GitLab.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "With a registration token only")]
struct Reserved {
    /// Tags, separated by commas
    #[arg(long, env = "RUNNER_TAG_LIST", default_value = "")]
    tag_list: String,
    /// Takes untagged jobs; always true when there are no tags
    #[arg(
        long, env = "REGISTER_RUN_UNTAGGED", value_name = "BOOL", action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = boolean,
    )]
    run_untagged: bool,
    /// Locks the runner to this project
    #[arg(
        long, env = "REGISTER_LOCKED", value_name = "BOOL", action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "true",
        default_missing_value = "true", value_parser = boolean,
    )]
    locked: bool,
    /// Access level: `not_protected` or `ref_protected`
    #[arg(
        long, env = "REGISTER_ACCESS_LEVEL", default_value = "",
        value_parser = ["", "not_protected", "ref_protected"],
    )]
    access_level: String,
    /// Maximum timeout of a job in seconds; 0 for no limit
    #[arg(long, env = "REGISTER_MAXIMUM_TIMEOUT", default_value_t = 0, value_name = "SECONDS")]
    maximum_timeout: u64,
    /// Registers the runner as paused
    #[arg(
        long, env = "REGISTER_PAUSED", value_name = "BOOL", action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", value_parser = boolean,
    )]
    paused: bool,
    /// Maintenance note for administrators
    #[arg(long, env = "REGISTER_MAINTENANCE_NOTE", default_value = "")]
    maintenance_note: String,
}

impl Reserved {
    /// The options that differ from their defaults.
    fn given(&self) -> Vec<&'static str> {
        let given = [
            ("--tag-list", !self.tag_list.is_empty()),
            ("--run-untagged", self.run_untagged),
            ("--locked", !self.locked),
            ("--access-level", !self.access_level.is_empty()),
            ("--maximum-timeout", self.maximum_timeout != 0),
            ("--paused", self.paused),
            ("--maintenance-note", !self.maintenance_note.is_empty()),
        ];
        given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect()
    }
}

/// How the runner is registered at the server.
enum Way {
    /// The runner was created in GitLab: the token is verified.
    Created(Secret),
    /// The authentication token of a legacy runner: the same.
    Legacy(Secret),
    /// A registration token: makes the runner.
    Register(Secret),
}

/// Registers a runner. `interrupt` ends it at any point.
pub(super) async fn register(
    setting: &Setting,
    args: &RegisterArgs,
    console: &mut Console,
    interrupt: impl Future<Output = ()>,
) -> Outcome {
    let entry = args.options.entry.clone();
    let mut registering =
        Registering { setting, args, console, entry, system_id: String::new(), undo: None };
    let result = tokio::select! {
        result = registering.run() => result,
        () = interrupt => Err(Failure::new("the registration was interrupted")),
    };
    match result {
        Ok(()) => Ok(Exit::Success),
        Err(failure) => Err(registering.take_back(failure).await),
    }
}

struct Registering<'a> {
    setting: &'a Setting,
    args: &'a RegisterArgs,
    console: &'a mut Console,
    entry: Table,
    system_id: String,
    /// The client that takes back what was done at the server.
    undo: Option<(Client, Secret)>,
}

impl Registering<'_> {
    async fn run(&mut self) -> Result<(), Failure> {
        // What can be known to fail is to fail before the server hears of us.
        self.setting.entries()?;
        self.apply_template()?;
        self.check_reserved()?;
        self.check_entry("docker")?;
        self.system_id = self.setting.system_id()?;

        let question = "Enter the GitLab instance URL (for example, https://gitlab.com/):";
        self.ask_key("url", question, "").await?;
        match self.way().await? {
            Way::Created(token) => {
                self.verify(token, true).await?;
                self.ask_name("Enter a name for the runner:").await?;
            }
            Way::Legacy(token) => {
                self.verify(token, false).await?;
                self.ask_name("Enter a name for the runner:").await?;
            }
            Way::Register(token) => {
                self.ask_name("Enter a description for the runner:").await?;
                self.make(token).await?;
            }
        }
        self.ask_executor().await?;
        let question = "Enter the default Docker image (for example, ruby:3.3):";
        self.ask_key("docker.image", question, "").await?;
        self.add_cache_volume();
        for warning in self.check_entry("")? {
            self.console.say(format!("warning: {warning}"))?;
        }
        self.save()
    }

    fn text(&self, key: &str) -> String {
        let options = RunnerOptions { entry: self.entry.clone() };
        options.text(key).to_owned()
    }

    fn apply_template(&mut self) -> Result<(), Failure> {
        if let Some(path) = &self.args.template_config {
            let template = template::read(path)?;
            template::fill(&mut self.entry, &template);
        }
        Ok(())
    }

    fn check_reserved(&self) -> Result<(), Failure> {
        let given = self.args.reserved.given();
        if given.is_empty() || !is_created_runner(&self.text("token")) {
            return Ok(());
        }
        let message =
            format!("{} cannot be set with a runner's authentication token", given.join(", "));
        Err(Failure::new(message).hint("set it in GitLab, where the runner was made"))
    }

    /// Checks the entry as it stands; with a stand-in for what is yet to come when `executor` is
    /// given.
    fn check_entry(&self, executor: &str) -> Result<Vec<Warning>, Failure> {
        let mut entry = self.entry.clone();
        if !executor.is_empty() {
            entry["executor"] = toml_edit::value(executor);
            entry["token"] = toml_edit::value("glrt-");
            entry["url"] = toml_edit::value("https://gitlab.example.com");
        }
        if !entry.contains_key("docker") {
            entry["docker"] = Item::Table(Table::new());
        }
        let mut runners = ArrayOfTables::new();
        runners.push(entry);
        let mut document = DocumentMut::new();
        document["runners"] = Item::ArrayOfTables(runners);
        let path = std::path::Path::new("the new entry");
        Ok(check(&document.to_string(), path, &self.setting.env)?.warnings)
    }

    /// The token, and what to do with it.
    async fn way(&mut self) -> Result<Way, Failure> {
        let token = self.text("token");
        if is_created_runner(&token) {
            return Ok(Way::Created(Secret::new(token)));
        }
        if !token.is_empty() {
            return Ok(Way::Legacy(Secret::new(token)));
        }
        let given = self.args.registration_token.clone().unwrap_or_default();
        let question = "Enter the registration token:";
        let token = self.answer("--token or --registration-token", question, &given, "").await?;
        if !is_created_runner(&token) {
            return Ok(Way::Register(Secret::new(token)));
        }
        let ignored = self.args.reserved.given();
        if !ignored.is_empty() {
            let message = "warning: this is a runner's authentication token, so GitLab has its \
                           settings; ignored:";
            self.console.say(format!("{message} {}", ignored.join(", ")))?;
        }
        Ok(Way::Created(Secret::new(token)))
    }

    fn client(&self, token: &Secret) -> Result<Client, Failure> {
        let path = |key| Some(self.text(key)).filter(|t| !t.is_empty()).map(PathBuf::from);
        let entry = Entry {
            name: self.text("name"),
            url: self.text("url"),
            token: token.clone(),
            id: 0,
            executor: self.text("executor"),
            tls_ca_file: path("tls-ca-file"),
            tls_cert_file: path("tls-cert-file"),
            tls_key_file: path("tls-key-file"),
        };
        Ok(self.setting.client(&entry)?)
    }

    async fn verify(&mut self, token: Secret, created: bool) -> Result<(), Failure> {
        let client = self.client(&token)?;
        let executor = self.text("executor");
        let executor = if executor.is_empty() { SUPPORTED_EXECUTORS[0] } else { &executor };
        let info = info_of(executor, &self.text("shell"));
        let short = ShortToken::of(token.expose());
        let details = match client.verify(&info, &self.system_id).await {
            Verification::Valid(details) => details,
            Verification::Unclear(error) if created => {
                return Err(Failure::from(error).context(format!("cannot verify runner {short}")));
            }
            // A legacy token is kept unless the server says no.
            Verification::Unclear(_) => crate::gitlab::api::RunnerDetails::default(),
            Verification::Invalid(error) => {
                return Err(Failure::from(error)
                    .context(format!("the server does not know runner {short}"))
                    .hint("check the token and the address"));
            }
        };
        if created && details.id == 0 {
            return Err(Failure::new(format!("the server did not say which runner {short} is")));
        }
        self.console.say(format!("Runner {short} is valid"))?;
        self.entry["token"] = toml_edit::value(token.expose());
        if created {
            self.note_identity(details.id, details.token_expires_at.as_deref());
            self.undo = Some((client, token));
        }
        Ok(())
    }

    /// Makes the runner at the server, with a registration token.
    async fn make(&mut self, token: Secret) -> Result<(), Failure> {
        let reserved = &self.args.reserved;
        let (tags, note) = (reserved.tag_list.clone(), reserved.maintenance_note.clone());
        let tag_list = self.optional("Enter tags for the runner (comma-separated):", &tags).await?;
        let maintenance_note = self.optional("Enter a maintenance note:", &note).await?;
        let registration = Registration {
            token: token.clone(),
            description: self.text("name"),
            maintenance_note,
            run_untagged: reserved.run_untagged || tag_list.is_empty(),
            tag_list,
            locked: reserved.locked,
            access_level: reserved.access_level.clone(),
            maximum_timeout: reserved.maximum_timeout,
            paused: reserved.paused,
        };
        let details = self.client(&token)?.register(&registration).await.map_err(|error| {
            Failure::from(error)
                .context("cannot register the runner")
                .hint("registration tokens are deprecated: make the runner in GitLab, use --token")
        })?;
        let token = details.token;
        self.undo = Some((self.client(&token)?, token.clone()));
        self.entry["token"] = toml_edit::value(token.expose());
        self.note_identity(details.id, details.token_expires_at.as_deref());
        Ok(())
    }

    fn note_identity(&mut self, id: i64, expires_at: Option<&str>) {
        self.entry["id"] = toml_edit::value(id);
        self.entry["token_obtained_at"] = Item::Value(timestamp(&now()));
        if let Some(at) = expires_at {
            self.entry["token_expires_at"] = Item::Value(timestamp(at));
        }
    }

    async fn ask_name(&mut self, question: &str) -> Result<(), Failure> {
        self.ask_key("name", question, &host_name()).await
    }

    async fn ask_executor(&mut self) -> Result<(), Failure> {
        let supported = SUPPORTED_EXECUTORS.join(", ");
        loop {
            self.ask_key("executor", &format!("Enter an executor: {supported}:"), "").await?;
            let executor = self.text("executor");
            if SUPPORTED_EXECUTORS.contains(&executor.as_str()) {
                return Ok(());
            }
            let message = format!("the executor `{executor}` is not supported");
            if self.args.non_interactive {
                return Err(Failure::new(message).hint(format!("supported: {supported}")));
            }
            self.console.say(message)?;
            self.entry.remove("executor");
        }
    }

    /// Asks for a key of the entry.
    async fn ask_key(&mut self, key: &str, question: &str, default: &str) -> Result<(), Failure> {
        let given = self.text(key);
        let option = match key {
            "docker.image" => "--docker-image".to_owned(),
            key => format!("--{key}"),
        };
        let answer = self.answer(&option, question, &given, default).await?;
        set(&mut self.entry, key, toml_edit::value(answer));
        Ok(())
    }

    /// Asks, with what was given as the answer to an empty line, until there is one. Without
    /// questions, what was given or the default is the answer.
    async fn answer(
        &mut self,
        option: &str,
        question: &str,
        given: &str,
        default: &str,
    ) -> Result<String, Failure> {
        let offered = if given.is_empty() { default } else { given };
        if self.args.non_interactive {
            if offered.is_empty() {
                return Err(Failure::new(format!("{option} is missing")));
            }
            return Ok(offered.to_owned());
        }
        // A token is not shown again.
        let shown = if option.contains("token") && !offered.is_empty() { "…" } else { offered };
        loop {
            match self.console.ask(question, shown).await? {
                None => return Err(Failure::new(format!("{option} was not answered"))),
                Some(answer) if answer.is_empty() => {}
                Some(answer) if answer == shown => return Ok(offered.to_owned()),
                Some(answer) => return Ok(answer),
            }
        }
    }

    async fn optional(&mut self, question: &str, given: &str) -> Result<String, Failure> {
        if self.args.non_interactive {
            return Ok(given.to_owned());
        }
        Ok(self.console.ask(question, given).await?.unwrap_or_default())
    }

    /// Local caches outlive a job only where a volume covers their directory.
    fn add_cache_volume(&mut self) {
        let Some(docker) = self.entry.get_mut("docker").and_then(Item::as_table_like_mut) else {
            return;
        };
        let disabled = docker.get("disable_cache").and_then(Item::as_bool).unwrap_or(false);
        let item = docker.entry("volumes").or_insert_with(|| toml_edit::value(Array::new()));
        let Some(volumes) = item.as_array_mut() else { return };
        let covers = |text: &str| {
            Volume::parse(text).is_ok_and(|v| v.destination.trim_end_matches('/') == "/cache")
        };
        if !disabled && !volumes.iter().filter_map(toml_edit::Value::as_str).any(covers) {
            volumes.push("/cache");
        }
        if volumes.is_empty() {
            docker.remove("volumes");
        }
    }

    fn save(&mut self) -> Result<(), Failure> {
        const FIRST: [&str; 7] =
            ["name", "url", "id", "token", "token_obtained_at", "token_expires_at", "executor"];
        let mut ordered = Table::new();
        for key in FIRST {
            if let Some(item) = self.entry.remove(key) {
                ordered.insert(key, item);
            }
        }
        ordered.extend(std::mem::take(&mut self.entry));
        let (name, token) = (ordered["name"].clone(), ordered["token"].clone());
        let number = |key: &str| ordered.get(key).and_then(Item::as_integer).unwrap_or(0);
        let wanted =
            [("limit", number("limit")), ("request_concurrency", number("request_concurrency"))];

        let mut editor = self.setting.editor()?;
        let same = token.as_str().map(Secret::new).unwrap_or_default();
        if let Some(number) = editor.position(&same, &self.setting.env) {
            let other = &editor.entries(&self.setting.env)[number].name;
            self.console.say(format!("warning: the runner `{other}` has this token already"))?;
        }
        editor.append_runner(ordered)?;
        editor.save()?;
        let concurrent = editor.global_integer("concurrent").unwrap_or(1);
        drop(editor);
        self.undo = None;

        let name = name.as_str().unwrap_or_default();
        let short = ShortToken::of(token.as_str().unwrap_or_default());
        self.console.say(format!(
            "Runner `{name}` ({short}) is registered; a longshore that runs already takes it up"
        ))?;
        let path = self.setting.config.display();
        self.console.say(format!("The configuration, with the token, was saved in {path}"))?;
        for (key, value) in wanted {
            if value > concurrent {
                let over = format!("`{key}` is {value}, but `concurrent` is {concurrent}");
                self.console.say(format!("warning: {over}: raise `concurrent` in {path}"))?;
            }
        }
        Ok(())
    }

    /// Undoes at the server what was done there.
    async fn take_back(mut self, failure: Failure) -> Failure {
        let Some((client, token)) = self.undo.take() else { return failure };
        let short = ShortToken::of(token.expose());
        if self.args.leave_runner {
            return failure
                .hint(format!("runner {short} stays at its server, as --leave-runner says"));
        }
        match delete(&client, &token, &self.system_id).await {
            Ok(()) => failure,
            Err(error) => failure.hint(format!(
                "runner {short} is still known to its server and could not be removed: {error}"
            )),
        }
    }
}

/// The machine's name, for runners that are given none.
fn host_name() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname");
    text.map(|text| text.trim().to_owned())
        .ok()
        .filter(|t| !t.is_empty())
        .unwrap_or("runner".into())
}

#[cfg(test)]
mod tests;
