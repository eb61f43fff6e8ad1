//! Volumes, and the options that a tmpfs has wherever it is mounted.

use serde_json::{Map, Value, json};

use crate::guard::{parse::size::bytes, policy::context::PolicyContext, refusal::Refusal};

use super::{
    fields::{Rule, apply, object, text},
    judging::{Judging, Table},
    values::labels,
};

const VOLUME: Table = &[
    ("Name", Rule::Text),
    ("Driver", Rule::Judge(local_driver)),
    ("DriverOpts", Rule::Judge(driver_opts)),
    ("Labels", Rule::Judge(labels)),
    ("ClusterVolumeSpec", Rule::Empty("G-1")),
];

/// `POST /volumes/create`.
///
/// # Errors
/// When something in it is refused.
pub fn volume_create(
    body: &Map<String, Value>,
    context: &PolicyContext,
) -> Result<Map<String, Value>, Refusal> {
    let out = apply(VOLUME, body, "", &mut Judging::new(context))?;
    let name = out.get("Name").and_then(Value::as_str).unwrap_or_default();
    if !name.is_empty() && !context.owned.volumes.contains(name) {
        context.settings.may_name(name)?;
    }
    let most = context.settings.limits.volumes;
    if context.owned.volumes.count() >= most && !context.owned.volumes.contains(name) {
        return Err(Refusal::limit("volumes", most));
    }
    Ok(out)
}

/// Nothing, or a tmpfs: with other words the engine mounts anything the host has.
fn driver_opts(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let options = object(value, path)?;
    if options.is_empty() {
        return Ok(None);
    }
    let of = |name: &str| options.get(name).map_or(Ok(""), |value| text(value, path));
    let known = options.keys().all(|key| ["type", "device", "o"].contains(&&**key));
    if !known || of("type")? != "tmpfs" || !["", "tmpfs"].contains(&of("device")?) {
        return Err(Refusal::because(
            &format!(
                "{path} is not available here but for a tmpfs; bind a directory of the project instead"
            ),
            "G-1",
        ));
    }
    let most = judging.settings().limits.tmpfs;
    for word in of("o")?.split(',').filter(|word| !word.is_empty()) {
        if !["size", "mode", "uid", "gid", "nr_inodes"]
            .contains(&word.split('=').next().unwrap_or_default())
        {
            return Err(Refusal::denied(&format!("{path}.o: {word}"), "G-1"));
        }
    }
    let o = tmpfs_options(of("o")?, most, path)?;
    Ok(Some(json!({ "type": "tmpfs", "device": "tmpfs", "o": o })))
}

pub(super) fn local_driver<C>(
    _: &mut C,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" | "local" => Ok(None),
        // An unknown driver is not sent on only to fail there: the engine would look for its socket.
        _ => Err(Refusal::denied(&format!("{path} other than local"), "G-1")),
    }
}

/// A tmpfs's options as far as they are allowed, with a size of at most `most` bytes.
pub(super) fn tmpfs_options(options: &str, most: i64, path: &str) -> Result<String, Refusal> {
    let denied = |word: &str| Refusal::denied(&format!("{path}: the option {word}"), "G-1");
    let mut out = Vec::new();
    let mut size = most;
    for word in options.split(',').filter(|word| !word.is_empty()) {
        match word.split_once('=') {
            None if ["rw", "ro", "exec", "noexec", "suid", "nosuid", "nodev"].contains(&word) => {
                out.push(word.to_owned());
            }
            Some(("size", value)) => {
                size =
                    bytes(value).filter(|n| (1..=most).contains(n)).ok_or_else(|| denied(word))?;
            }
            Some(("mode" | "uid" | "gid" | "nr_inodes", value))
                if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric()) =>
            {
                out.push(word.to_owned());
            }
            _ => return Err(denied(word)),
        }
    }
    out.push(format!("size={size}"));
    Ok(out.join(","))
}
