//! The template of `register`: a file with one entry, for all that no option sets.

use std::path::Path;

use toml_edit::{DocumentMut, Item, Table, Value};

use crate::cli::exit::Failure;

/// Reads the template's entry, without its token.
pub(super) fn read(path: &Path) -> Result<Table, Failure> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::from(error).context(format!("cannot read template `{shown}`")))?;
    let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
        // Not the error's own display: it shows the line, which may hold a token.
        Failure::new(format!("template `{shown}` is not TOML: {}", error.message()))
    })?;
    let runners = document.get("runners").and_then(Item::as_array_of_tables);
    let mut entries = runners.into_iter().flatten();
    match (entries.next(), entries.next()) {
        (Some(entry), None) => {
            let mut entry = entry.clone();
            entry.remove("token");
            Ok(entry)
        }
        (first, _) => {
            let count = if first.is_none() { "none" } else { "more" };
            let message = format!("template `{shown}` must have one `[[runners]]` entry");
            Err(Failure::new(format!("{message}, and has {count}")))
        }
    }
}

/// Fills what `entry` has not set. A `false`, 0 or empty text of an option counts as not set, and
/// lists are not joined.
pub(super) fn fill(entry: &mut Table, template: &Table) {
    for (key, theirs) in template {
        match (entry.get_mut(key), theirs) {
            (Some(Item::Table(ours)), theirs) if theirs.is_table_like() => {
                // Written inline or not: the same table.
                if let Ok(theirs) = theirs.clone().into_table() {
                    fill(ours, &theirs);
                }
            }
            (Some(ours), theirs) if !is_unset(ours) => {
                if let (Some(ours), Some(theirs)) =
                    (ours.as_inline_table_mut(), theirs.as_table_like())
                {
                    // Maps come from options as inline tables.
                    for (name, item) in theirs.iter() {
                        if !ours.contains_key(name)
                            && let Some(value) = item.as_value()
                        {
                            ours.insert(name, value.clone());
                        }
                    }
                }
            }
            (_, theirs) => {
                let mut theirs = theirs.clone();
                without_position(&mut theirs);
                entry.insert(key, theirs);
            }
        }
    }
}

/// Clears the positions of a table of another file, which would order it among unrelated tables.
fn without_position(item: &mut Item) {
    match item {
        Item::Table(table) => {
            table.set_position(None);
            table.iter_mut().for_each(|(_, item)| without_position(item));
        }
        Item::ArrayOfTables(tables) => {
            for table in tables.iter_mut() {
                table.set_position(None);
                table.iter_mut().for_each(|(_, item)| without_position(item));
            }
        }
        Item::None | Item::Value(_) => {}
    }
}

fn is_unset(item: &Item) -> bool {
    match item {
        Item::Value(Value::String(text)) => text.value().is_empty(),
        Item::Value(Value::Integer(number)) => *number.value() == 0,
        Item::Value(Value::Boolean(on)) => !on.value(),
        Item::None => true,
        _ => false,
    }
}
