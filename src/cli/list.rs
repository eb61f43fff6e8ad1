//! `list`: the runners of the file, one a line, with their whole tokens.

use super::{
    console::Console,
    entries::Setting,
    exit::{Exit, Outcome},
};

/// Prints every runner; always succeeds when the file can be read.
pub(super) fn list(setting: &Setting, console: &mut Console) -> Outcome {
    let entries = setting.entries()?;
    console.say(format!("Runners in {}:", setting.config.display()))?;
    for entry in entries {
        // The shape of gitlab-runner's line, which scripts take apart.
        let (name, executor) = (&entry.name, &entry.executor);
        let (token, url) = (entry.token.expose(), &entry.url);
        console.data(format!("{name:50}  Executor={executor} Token={token} URL={url}"))?;
    }
    Ok(Exit::Success)
}
