//! What a container mounts: binds of the workspace, volumes, tmpfs.

use serde_json::{Map, Value};

use crate::guard::{
    parse::json,
    policy::{
        bind_source::{BindSource, bind_source},
        body::{
            fields::{Rule, apply, flag, items, join, object, text, texts},
            judging::{Judging, Table},
            needs::BindNeed,
            values::{labels, some, strings},
            volume::{local_driver, tmpfs_options},
        },
    },
    refusal::Refusal,
};

use super::limits;

/// Notes a source that must be pinned, and gives what stands for it in the body.
pub(super) fn bind(
    judging: &mut Judging,
    source: &str,
    make: bool,
    is_mount: bool,
) -> Result<(String, bool), Refusal> {
    let leads_to = bind_source(source, judging.settings())?;
    let read_only = match &leads_to {
        BindSource::Socket => false,
        BindSource::Mapped { mapping, .. } => judging.settings().workspace[*mapping].read_only,
    };
    let number = judging.needs.binds.len();
    judging.needs.binds.push(BindNeed { job: source.to_owned(), source: leads_to, make, is_mount });
    Ok((format!("@bind-{number}@"), read_only))
}

/// Notes a volume that must be the job's.
pub(super) fn volume(judging: &mut Judging, name: &str) -> Result<(), Refusal> {
    if !judging.context.owned.volumes.contains(name) {
        judging.settings().may_name(name)?;
        if !judging.needs.volumes.iter().any(|known| known == name) {
            judging.needs.volumes.push(name.to_owned());
        }
        let most = judging.settings().limits.volumes;
        if judging.context.owned.volumes.count() + judging.needs.volumes.len() > most {
            return Err(Refusal::limit("volumes", most));
        }
    }
    Ok(())
}

pub(super) fn binds(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for bind_text in texts(value, path)? {
        let parts: Vec<&str> = bind_text.split(':').collect();
        let (source, target, mode) = match parts[..] {
            [target] => ("", target, ""),
            [source, target] => (source, target, ""),
            [source, target, mode] => (source, target, mode),
            _ => {
                return Err(Refusal::malformed(
                    &format!("{path}: {bind_text} is not source:target[:mode]"),
                    "G-38",
                ));
            }
        };
        if !target.starts_with('/') {
            return Err(Refusal::malformed(
                &format!("{path}: the target of {bind_text} must be absolute"),
                "G-38",
            ));
        }
        let mut words = Vec::new();
        for word in mode.split(',').filter(|word| !word.is_empty()) {
            match word {
                "ro" | "rw" | "nocopy" => words.push(word),
                "cached" | "delegated" | "consistent" | "private" | "rprivate" => {}
                word => return Err(Refusal::denied(&format!("{path}: the mode {word}"), "G-1")),
            }
        }
        let mut source = source.to_owned();
        if source.starts_with('/') {
            let (token, read_only) = bind(judging, &source, true, false)?;
            source = token;
            words.retain(|word| *word != "nocopy");
            if read_only {
                words = vec!["ro"];
            }
        } else if source.is_empty() {
            // The engine takes an entry without source for an anonymous volume.
            if parts.len() > 1 {
                return Err(Refusal::malformed(
                    &format!("{path}: {bind_text} has no source"),
                    "G-38",
                ));
            }
            out.push(target.to_owned());
            continue;
        } else {
            volume(judging, &source)?;
        }
        let mode = if words.is_empty() { "rw".to_owned() } else { words.join(",") };
        out.push(format!("{source}:{target}:{mode}"));
    }
    Ok(strings(out))
}

const BIND_OPTIONS: Table = &[
    ("Propagation", Rule::Judge(propagation)),
    ("NonRecursive", Rule::Drop),
    ("CreateMountpoint", Rule::Drop),
    ("ReadOnlyNonRecursive", Rule::Flag),
    ("ReadOnlyForceRecursive", Rule::Empty("G-1")),
];
const VOLUME_OPTIONS: Table = &[
    ("NoCopy", Rule::Flag),
    ("Labels", Rule::Judge(labels)),
    ("DriverConfig", Rule::Judge(driver_config)),
    ("Subpath", Rule::Judge(subpath)),
];
const TMPFS_OPTIONS: Table = &[
    ("SizeBytes", Rule::Judge(tmpfs_size)),
    ("Mode", Rule::Whole(0, 0o7777)),
    ("Options", Rule::Judge(tmpfs_mount_options)),
];
const IMAGE_OPTIONS: Table = &[("Subpath", Rule::Judge(subpath))];

pub(super) fn mounts(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for (number, mount) in items(value, path)?.iter().enumerate() {
        let path = format!("{path}[{number}]");
        out.push(Value::Object(one_mount(judging, object(mount, &path)?, &path, number)?));
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

fn one_mount(
    judging: &mut Judging,
    mount: &Map<String, Value>,
    path: &str,
    number: usize,
) -> Result<Map<String, Value>, Refusal> {
    const COMMON: [&str; 5] = ["Type", "Source", "Target", "ReadOnly", "Consistency"];
    let of = |name: &str| mount.get(name).unwrap_or(&Value::Null);
    let kind = text(of("Type"), &join(path, "Type"))?;
    let (options_name, options_table): (_, Table) = match kind {
        "bind" => ("BindOptions", BIND_OPTIONS),
        "volume" => ("VolumeOptions", VOLUME_OPTIONS),
        "tmpfs" => ("TmpfsOptions", TMPFS_OPTIONS),
        "image" if judging.context.facts.version >= (1, 48) => ("ImageOptions", IMAGE_OPTIONS),
        kind => return Err(Refusal::denied(&format!("{path}.Type={kind}"), "G-1")),
    };
    for (name, value) in mount {
        if !COMMON.contains(&&**name) && name != options_name && !json::is_empty(value) {
            return Err(Refusal::malformed(
                &format!("{}: not for a {kind} mount", join(path, name)),
                "G-37",
            ));
        }
    }
    let target = text(of("Target"), &join(path, "Target"))?;
    if !target.starts_with('/') {
        return Err(Refusal::malformed(&format!("{path}.Target must be absolute"), "G-38"));
    }
    let source = text(of("Source"), &join(path, "Source"))?;
    let mut read_only = flag(of("ReadOnly"), &join(path, "ReadOnly"))?;
    let empty = Map::new();
    let options = match of(options_name) {
        Value::Null => &empty,
        value => object(value, &join(path, options_name))?,
    };
    let mut out = Map::new();
    let options_path = join(path, options_name);
    let judged = apply(options_table, options, &options_path, judging)?;
    match kind {
        "bind" => {
            let make =
                flag(options.get("CreateMountpoint").unwrap_or(&Value::Null), &options_path)?;
            let (token, forced) = bind(judging, source, make, true)?;
            read_only |= forced;
            out.insert("Source".to_owned(), Value::String(token));
        }
        "volume" => {
            let most = judging.settings().limits.volumes;
            if source.is_empty() {
                if judging.context.owned.volumes.count() >= most {
                    return Err(Refusal::limit("volumes", most));
                }
            } else {
                if judged.contains_key("Subpath") && !judging.context.owned.volumes.contains(source)
                {
                    return Err(Refusal::denied(
                        &format!("{options_path}.Subpath of a new volume"),
                        "G-1",
                    ));
                }
                volume(judging, source)?;
                out.insert("Source".to_owned(), Value::from(source));
            }
        }
        "image" => {
            judging.needs.image_mounts.push((number, source.to_owned()));
            out.insert("Source".to_owned(), Value::from(source));
        }
        _ if !source.is_empty() => {
            return Err(Refusal::malformed(
                &format!("{path}.Source: not for a tmpfs mount"),
                "G-37",
            ));
        }
        _ => {}
    }
    out.insert("Type".to_owned(), Value::from(kind));
    out.insert("Target".to_owned(), Value::from(target));
    out.insert("ReadOnly".to_owned(), Value::Bool(read_only));
    out.insert(options_name.to_owned(), Value::Object(judged));
    Ok(out)
}

fn propagation(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    match text(value, path)? {
        "" | "private" | "rprivate" => Ok(None),
        word => Err(Refusal::denied(&format!("{path}={word}"), "G-1")),
    }
}

const DRIVER: &[(&str, Rule<()>)] =
    &[("Name", Rule::Judge(local_driver)), ("Options", Rule::Empty("G-1"))];

fn driver_config(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    apply(DRIVER, object(value, path)?, path, &mut ())?;
    Ok(None)
}

pub(super) fn volume_driver(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    local_driver(judging, value, path)
}

fn subpath(_: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    let subpath = text(value, path)?;
    if subpath.is_empty() {
        return Ok(None);
    }
    if subpath.starts_with('/') || subpath.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Refusal::denied(&format!("{path}={subpath}"), "G-52"));
    }
    Ok(some(subpath))
}

fn tmpfs_size(judging: &mut Judging, value: &Value, path: &str) -> Result<Option<Value>, Refusal> {
    limits::cap(value, path, judging.settings().limits.tmpfs).map(|size| Some(Value::from(size)))
}

fn tmpfs_mount_options(
    _: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for option in items(value, path)? {
        let words = texts(option, path)?;
        let allowed = match words[..] {
            ["exec" | "noexec" | "suid" | "nosuid" | "nodev" | "ro" | "rw"] => true,
            ["uid" | "gid" | "nr_inodes", number] => number.bytes().all(|b| b.is_ascii_digit()),
            _ => false,
        };
        if !allowed {
            return Err(Refusal::denied(&format!("{path}: {}", words.join("=")), "G-1"));
        }
        out.push(Value::from(words.into_iter().map(str::to_owned).collect::<Vec<_>>()));
    }
    Ok((!out.is_empty()).then_some(Value::Array(out)))
}

pub(super) fn tmpfs(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    if value.is_null() {
        return Ok(None);
    }
    let most = judging.settings().limits.tmpfs;
    let mut out = Map::new();
    for (target, options) in object(value, path)? {
        if !target.starts_with('/') {
            return Err(Refusal::malformed(&format!("{path} must have absolute paths"), "G-38"));
        }
        out.insert(target.clone(), Value::String(tmpfs_options(text(options, path)?, most, path)?));
    }
    Ok(Some(Value::Object(out)))
}

pub(super) fn volumes_from(
    judging: &mut Judging,
    value: &Value,
    path: &str,
) -> Result<Option<Value>, Refusal> {
    let mut out = Vec::new();
    for reference in texts(value, path)? {
        let (reference, mode) = reference.split_once(':').unwrap_or((reference, "rw"));
        if !["ro", "rw"].contains(&mode) {
            return Err(Refusal::denied(&format!("{path}: the mode {mode}"), "G-1"));
        }
        let (id, container) = judging.context.owned.containers.find(reference)?;
        // What the runner mounts into the job's own container may lie anywhere on the host.
        if container.is_self {
            return Err(Refusal::denied(&format!("{path} of the job's own container"), "G-51"));
        }
        let id = id.to_owned();
        out.push(format!("{id}:{mode}"));
        judging.needs.volumes_from.push(id);
    }
    Ok(strings(out))
}
