//! `reset-token`: new authentication tokens, into the file at once.

use super::{
    console::Console,
    entries::{Setting, label, token_update},
    exit::{Exit, Failure, Outcome},
};
use crate::{
    base::secret::Secret,
    config::edit::{Entry, TokenUpdate},
};

/// Arguments of `reset-token`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct ResetTokenArgs {
    /// Name of the runner in the file
    #[arg(short = 'n', long, env = "RUNNER_NAME")]
    name: Option<String>,
    /// GitLab's address; with --id
    #[arg(short = 'u', long, env = "CI_SERVER_URL", requires = "id")]
    url: Option<String>,
    /// The runner's number at its server; with --url
    #[arg(short = 'i', long, env = "RUNNER_ID")]
    id: Option<i64>,
    /// All runners of the file
    #[arg(long)]
    all_runners: bool,
    /// Personal access token, where the runner's own does not suffice
    #[arg(long, env = "RESET_TOKEN_PAT", hide_env_values = true)]
    pat: Option<String>,
}

/// Rotates the token of each selected runner. One failure does not stop the others.
pub(super) async fn reset_token(
    setting: &Setting,
    args: &ResetTokenArgs,
    console: &mut Console,
) -> Outcome {
    let entries = selected(setting, args)?;
    let mut failed = 0_usize;
    for entry in entries {
        let name = label(&entry);
        match reset(setting, args, &entry).await {
            Ok(update) => {
                store(setting, &entry, &update, console)?;
                console.say(format!("{name} has a new token"))?;
            }
            Err(failure) => {
                console.say(failure.context(format!("cannot reset the token of {name}")))?;
                failed += 1;
            }
        }
    }
    if failed > 0 {
        return Err(Failure::new(format!("{failed} of the tokens stay as they were")));
    }
    console.say(format!("Updated {}", setting.config.display()))?;
    Ok(Exit::Success)
}

async fn reset(
    setting: &Setting,
    args: &ResetTokenArgs,
    entry: &Entry,
) -> Result<TokenUpdate, Failure> {
    let client = setting.client(entry)?;
    let reply = match &args.pat {
        Some(pat) => client.reset_token_with_pat(entry.id, &Secret::new(pat.as_str())).await?,
        None => client.reset_token().await?,
    };
    Ok(token_update(reply.token, reply.token_expires_at))
}

/// Writes the new token. The old one is invalid by now, so a new one that cannot be written is
/// printed; otherwise it would be lost.
fn store(
    setting: &Setting,
    entry: &Entry,
    update: &TokenUpdate,
    console: &mut Console,
) -> Result<(), Failure> {
    let write = || -> Result<(), Failure> {
        let mut editor = setting.editor()?;
        if let Some(number) = editor.position(&entry.token, &setting.env) {
            editor.set_token(number, update)?;
            editor.save()?;
            return Ok(());
        }
        Err(Failure::new("the runner is no longer in the file"))
    };
    write().or_else(|failure| {
        console.data(update.token.expose())?;
        Err(failure
            .context(format!("cannot keep the new token of {}", label(entry)))
            .hint("it is printed above and the old one is void: write it into the file by hand"))
    })
}

fn selected(setting: &Setting, args: &ResetTokenArgs) -> Result<Vec<Entry>, Failure> {
    let entries = setting.entries()?;
    if args.all_runners {
        return Ok(entries);
    }
    let fits = |entry: &Entry| match (&args.name, &args.url, args.id) {
        (Some(name), ..) => *name == entry.name,
        (None, Some(url), Some(id)) => {
            entry.id == id && url.trim_end_matches('/') == entry.url.trim_end_matches('/')
        }
        _ => false,
    };
    if args.name.is_none() && (args.url.is_none() || args.id.is_none()) {
        return Err(Failure::new("no runner was named")
            .hint("use --name, --url and --id together, or --all-runners"));
    }
    match entries.into_iter().find(fits) {
        Some(entry) => Ok(vec![entry]),
        None => Err(Failure::new(format!("no such runner in `{}`", setting.config.display()))
            .hint("`longshore list` shows the runners of the file")),
    }
}
