//! `verify`: asks each runner's server whether it knows the runner.

use super::{
    console::Console,
    entries::{Selector, Setting, info_of, label},
    exit::{Exit, Failure, Outcome},
};
use crate::{config::edit::Entry, gitlab::api::Verification};

/// Arguments of `verify`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    select: Selector,
    /// Removes runners from the file that their server does not know
    #[arg(long, env = "VERIFY_DELETE")]
    delete: bool,
}

/// Verifies each selected runner. Only a clear "not known" counts against one: it makes the command
/// fail, or, with `--delete`, removes the runner from the file.
pub(super) async fn verify(setting: &Setting, args: &VerifyArgs, console: &mut Console) -> Outcome {
    let system_id = setting.system_id()?;
    let entries: Vec<Entry> =
        setting.entries()?.into_iter().filter(|entry| args.select.fits(entry)).collect();
    if entries.is_empty() && !args.select.is_empty() {
        return Err(args.select.no_match(&setting.config));
    }
    let mut unknown = Vec::new();
    for entry in entries {
        let name = label(&entry);
        let client = match setting.client(&entry) {
            Ok(client) => client,
            Err(error) => {
                console.say(format!("{name} cannot be asked for: {error}"))?;
                continue;
            }
        };
        match client.verify(&info_of(&entry.executor, ""), &system_id).await {
            Verification::Valid(_) => console.say(format!("{name} is valid"))?,
            Verification::Unclear(error) => {
                console.say(format!("{name} is kept, its server did not say: {error}"))?;
            }
            Verification::Invalid(error) => {
                console.say(format!("{name} is not valid: {error}"))?;
                unknown.push(entry);
            }
        }
    }
    if unknown.is_empty() {
        return Ok(Exit::Success);
    }
    if !args.delete {
        let count = unknown.len();
        let message = format!("{count} of the runners are not known to their server");
        return Err(Failure::new(message).hint("`verify --delete` takes them out of the file"));
    }
    remove(setting, &unknown)?;
    console.say(format!("Updated {}", setting.config.display()))?;
    Ok(Exit::Success)
}

/// Removes entries from the file, found again by address and token.
pub(super) fn remove(setting: &Setting, entries: &[Entry]) -> Result<(), Failure> {
    let mut editor = setting.editor()?;
    for entry in entries {
        let same = |other: &Entry| other.url == entry.url && other.token == entry.token;
        let found = editor.entries(&setting.env).iter().position(same);
        if let Some(number) = found {
            editor.remove_runner(number)?;
        }
    }
    Ok(editor.save()?)
}
