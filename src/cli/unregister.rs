//! `unregister`: takes runners off their servers and out of the file.

use super::{
    console::Console,
    entries::{Selector, Setting, is_created_runner, label},
    exit::{Exit, Failure, Outcome},
    verify::remove,
};
use crate::{
    base::secret::Secret,
    config::edit::Entry,
    gitlab::api::{Client, RequestError},
};

/// Arguments of `unregister`.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct UnregisterArgs {
    #[command(flatten)]
    select: Selector,
    /// All runners of the file
    #[arg(long, env = "ALL_RUNNERS")]
    all_runners: bool,
}

/// Unregisters the selected runners. Those that a server refuses to unregister stay in the file, and
/// make the command fail.
pub(super) async fn unregister(
    setting: &Setting,
    args: &UnregisterArgs,
    console: &mut Console,
) -> Outcome {
    let entries = selected(setting, args)?;
    let system_id = setting.system_id()?;
    let mut gone = Vec::new();
    let mut kept = 0_usize;
    for entry in entries {
        let name = label(&entry);
        let result = match setting.client(&entry) {
            Ok(client) => delete(&client, &entry.token, &system_id).await.map_err(Failure::from),
            Err(error) => Err(error.into()),
        };
        match result {
            Ok(()) => {
                console.say(format!("{name} is unregistered"))?;
                gone.push(entry);
            }
            Err(failure) => {
                console.say(failure.context(format!("cannot unregister {name}")))?;
                kept += 1;
            }
        }
    }
    if !gone.is_empty() {
        remove(setting, &gone)?;
        console.say(format!("Updated {}", setting.config.display()))?;
    }
    if kept > 0 {
        return Err(Failure::new(format!("{kept} of the runners stay registered"))
            .hint("to take a runner out of the file alone, `verify --delete` or edit the file"));
    }
    Ok(Exit::Success)
}

fn selected(setting: &Setting, args: &UnregisterArgs) -> Result<Vec<Entry>, Failure> {
    let entries = setting.entries()?;
    let select = &args.select;
    if args.all_runners {
        return Ok(entries);
    }
    match (&select.name, &select.url, &select.token) {
        (None, Some(url), Some(token)) => {
            let found: Vec<_> = entries.into_iter().filter(|e| select.fits(e)).collect();
            if !found.is_empty() {
                return Ok(found);
            }
            // A runner that is in no file can be taken off its server all the same.
            Ok(vec![Entry {
                name: String::new(),
                url: url.clone(),
                token: Secret::new(token.as_str()),
                id: 0,
                executor: String::new(),
                tls_ca_file: None,
                tls_cert_file: None,
                tls_key_file: None,
            }])
        }
        (Some(_), ..) => {
            let found = entries.into_iter().find(|entry| select.fits(entry));
            found.map(|entry| vec![entry]).ok_or_else(|| select.no_match(&setting.config))
        }
        _ => Err(Failure::new("no runner was named")
            .hint("use --name, --url and --token together, or --all-runners")),
    }
}

/// Deletes what belongs to this machine from the server: its runner manager, or all of a legacy
/// runner.
pub(super) async fn delete(
    client: &Client,
    token: &Secret,
    system_id: &str,
) -> Result<(), RequestError> {
    if is_created_runner(token.expose()) {
        client.unregister_manager(system_id).await
    } else {
        client.unregister_runner().await
    }
}
