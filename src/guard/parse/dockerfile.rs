//! What a Dockerfile would have the engine fetch (G-73), for the classic builder. Pure.
//!
//! It knows continuation, comments, directives, flags, stages, and variables in `FROM`. Where it
//! cannot tell what an expression will be, it refuses.

use std::collections::BTreeMap;

use crate::guard::{refusal::Refusal, settings::GuardSettings};

fn refused(what: &str) -> Refusal {
    Refusal::because(&format!("Dockerfile: {what}"), "G-73")
}

/// The images that a Dockerfile needs, as they are written in it, stages resolved.
///
/// # Errors
/// When it would fetch something else, or what it would fetch cannot be known.
pub fn images(source: &[u8], arguments: &BTreeMap<String, String>) -> Result<Vec<String>, Refusal> {
    let source = std::str::from_utf8(source).map_err(|_| refused("it is not UTF-8"))?;
    let mut scan =
        Scan { arguments, globals: BTreeMap::new(), stages: Vec::new(), images: Vec::new() };
    for line in instructions(source)? {
        scan.instruction(&line)?;
    }
    if scan.stages.is_empty() {
        return Err(refused("there is no FROM"));
    }
    Ok(scan.images)
}

/// The images that the triggers of a base image need.
///
/// # Errors
/// As for a Dockerfile.
pub fn triggers(lines: &[String]) -> Result<Vec<String>, Refusal> {
    let arguments = BTreeMap::new();
    let mut scan = Scan {
        arguments: &arguments,
        globals: BTreeMap::new(),
        stages: vec![String::new()],
        images: Vec::new(),
    };
    for line in lines {
        if line.contains(['\n', '\r']) {
            return Err(refused("a trigger of the base image has several lines"));
        }
        scan.instruction(line)?;
    }
    Ok(scan.images)
}

/// One of `changes`, of commit and import (G-63).
///
/// # Errors
/// When it is not allowed there, or writes one of the guard's labels.
pub fn change(line: &str, settings: &GuardSettings) -> Result<(), Refusal> {
    const KNOWN: [&str; 12] = [
        "CMD",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "LABEL",
        "ONBUILD",
        "USER",
        "VOLUME",
        "WORKDIR",
        "HEALTHCHECK",
        "STOPSIGNAL",
        "SHELL",
    ];
    let (word, rest) = split(line);
    if line.contains(['\n', '\r']) || !KNOWN.contains(&&*word) {
        return Err(Refusal::denied(&format!("the change {word}"), "G-63"));
    }
    if word == "LABEL" {
        if rest.contains(['$', '\\']) {
            return Err(Refusal::denied("an expression in LABEL", "G-63"));
        }
        let plain: String = rest.chars().filter(|c| !matches!(c, '"' | '\'')).collect();
        let mut words = plain.split([' ', '\t', '=']);
        if words.any(|key| settings.is_reserved_label(key)) {
            return Err(Refusal::denied("this LABEL", "G-46"));
        }
    }
    Ok(())
}

struct Scan<'a> {
    arguments: &'a BTreeMap<String, String>,
    /// Arguments before the first `FROM`.
    globals: BTreeMap<String, String>,
    stages: Vec<String>,
    images: Vec<String>,
}

/// An instruction's word in upper case, and the rest.
fn split(line: &str) -> (String, &str) {
    let line = line.trim();
    let (word, rest) = line.split_once(|c: char| c.is_whitespace()).unwrap_or((line, ""));
    (word.to_ascii_uppercase(), rest.trim())
}

impl Scan<'_> {
    fn instruction(&mut self, line: &str) -> Result<(), Refusal> {
        let (word, rest) = split(line);
        match &*word {
            "FROM" => self.from(rest),
            "ARG" if self.stages.is_empty() => {
                self.argument(rest);
                Ok(())
            }
            "ADD" => {
                let sources = self.flags(rest)?;
                add(sources)
            }
            "COPY" => self.flags(rest).map(drop),
            "ONBUILD" => {
                let (inner, _) = split(rest);
                if ["ONBUILD", "FROM"].contains(&&*inner) {
                    return Err(refused("ONBUILD does not go with this"));
                }
                self.instruction(rest)
            }
            "RUN" if rest.contains("<<") && !rest.contains("<<<") => {
                Err(refused("here-documents are not available"))
            }
            _ => Ok(()),
        }
    }

    fn from(&mut self, rest: &str) -> Result<(), Refusal> {
        let mut words = rest.split_whitespace().skip_while(|word| word.starts_with("--"));
        let image = words.next().ok_or_else(|| refused("FROM names no image"))?;
        let image = self.expand(image)?;
        let name = match (words.next(), words.next(), words.next()) {
            (None, None, None) => String::new(),
            (Some(word), Some(name), None) if word.eq_ignore_ascii_case("as") => {
                name.to_ascii_lowercase()
            }
            _ => return Err(refused("FROM has words that are not known")),
        };
        self.need(&image);
        self.stages.push(name);
        Ok(())
    }

    /// Notes an image, unless it is an earlier stage.
    fn need(&mut self, image: &str) {
        let lower = image.to_ascii_lowercase();
        let is_stage = !lower.is_empty() && self.stages.contains(&lower);
        if image != "scratch" && !is_stage && !self.images.iter().any(|known| known == image) {
            self.images.push(image.to_owned());
        }
    }

    fn argument(&mut self, rest: &str) {
        for word in rest.split_whitespace() {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(default)),
                None => (word, None),
            };
            let default = match (self.arguments.get(name), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => {
                    let inner = default
                        .strip_prefix('"')
                        .and_then(|d| d.strip_suffix('"'))
                        .or_else(|| default.strip_prefix('\'').and_then(|d| d.strip_suffix('\'')))
                        .unwrap_or(default);
                    // A default that cannot be resolved is refused only where it is used.
                    self.expand(inner).ok()
                }
                (None, None) => None,
            };
            match default {
                Some(value) => self.globals.insert(name.to_owned(), value),
                None => self.globals.remove(name),
            };
        }
    }

    /// `text` with its variables replaced.
    fn expand(&self, text: &str) -> Result<String, Refusal> {
        let unclear = || refused(&format!("it cannot be told what {text} is"));
        if text.contains(['\\', '"', '\'', '`']) {
            return Err(unclear());
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if let Some(braced) = rest.strip_prefix('{') {
                let (inside, after) = braced.split_once('}').ok_or_else(unclear)?;
                rest = after;
                let end = inside.find(|c| !is_name(c)).unwrap_or(inside.len());
                let (name, operation) = inside.split_at(end);
                let value = self.globals.get(name).filter(|value| !value.is_empty());
                let default = operation.strip_prefix(":-").filter(|d| !d.contains('$'));
                match (value, operation, default) {
                    (Some(value), "", _) | (Some(value), _, Some(_)) => out.push_str(value),
                    (None, _, Some(default)) => out.push_str(default),
                    _ => return Err(unclear()),
                }
            } else {
                let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
                let value = self.globals.get(&rest[..end]).ok_or_else(unclear)?;
                out.push_str(value);
                rest = &rest[end..];
            }
        }
        out.push_str(rest);
        Ok(out)
    }

    /// Looks at the flags of `COPY` and `ADD`, and gives what follows them.
    fn flags<'b>(&mut self, rest: &'b str) -> Result<&'b str, Refusal> {
        let mut rest = rest.trim_start();
        if rest.contains("<<") {
            return Err(refused("here-documents are not available"));
        }
        while rest.starts_with("--") {
            let (flag, after) = rest.split_once(|c: char| c.is_whitespace()).unwrap_or((rest, ""));
            rest = after.trim_start();
            if flag.contains(['"', '\'', '\\']) {
                return Err(refused("a flag has quotes"));
            }
            let lower = flag.to_ascii_lowercase();
            let Some(from) = lower.strip_prefix("--from=") else { continue };
            let from = &flag[flag.len() - from.len()..];
            if from.contains('$') {
                return Err(refused(&format!("it cannot be told what {from} is")));
            }
            let is_earlier = from.parse::<usize>().is_ok_and(|n| n < self.stages.len());
            if !is_earlier {
                self.need(from);
            }
        }
        Ok(rest)
    }
}

/// Addresses are fetched by the engine, from the host's network.
fn add(rest: &str) -> Result<(), Refusal> {
    const REMOTE: [&str; 7] =
        ["http://", "https://", "ftp://", "git://", "git@", "ssh://", "github.com/"];
    let words: Vec<String> = if rest.starts_with('[') {
        serde_json::from_str(rest).map_err(|_| refused("ADD has an odd list"))?
    } else {
        rest.split_whitespace().map(str::to_owned).collect()
    };
    let sources = words.len().saturating_sub(1);
    for source in &words[..sources] {
        let lower = source.to_ascii_lowercase();
        let plain = lower.trim_start_matches(['"', '\'', '\\']);
        let known = &plain[..plain.find(['$', '\\', '"', '\'']).unwrap_or(plain.len())];
        let is_known = known.len() == plain.len();
        let remote = REMOTE
            .iter()
            .any(|prefix| known.starts_with(prefix) || !is_known && prefix.starts_with(known));
        if remote || plain.contains("://") {
            return Err(refused(&format!(
                "ADD {source} could be fetched from the host's network; use RUN with curl or wget"
            )));
        }
    }
    Ok(())
}

/// The instructions, each in one line: no comments, continued lines joined.
fn instructions(source: &str) -> Result<Vec<String>, Refusal> {
    let source = source.strip_prefix('\u{feff}').unwrap_or(source);
    // Only a line feed ends a line; one that shows elsewhere would be read in two ways.
    let lines: Vec<&str> =
        source.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).collect();
    if lines.iter().any(|line| line.contains(['\r', '\0', '\u{b}', '\u{c}', '\u{85}', '\u{2028}']))
    {
        return Err(refused("there are odd line ends"));
    }
    let mut escape = '\\';
    for line in &lines {
        let Some(comment) = line.trim().strip_prefix('#') else { break };
        let Some((name, value)) = comment.split_once('=') else { break };
        if name.trim().eq_ignore_ascii_case("escape") {
            escape = match value.trim() {
                "\\" => '\\',
                "`" => '`',
                _ => return Err(refused("an unknown escape")),
            };
        }
    }
    let mut out = Vec::new();
    let mut current = String::new();
    for line in lines {
        let trimmed = line.trim_start();
        if trimmed.starts_with('#') || trimmed.is_empty() {
            continue;
        }
        let ended = line.trim_end_matches([' ', '\t']);
        if let Some(open) = ended.strip_suffix(escape) {
            current.push_str(open);
            continue;
        }
        current.push_str(line);
        out.push(std::mem::take(&mut current));
    }
    if !current.trim().is_empty() {
        out.push(current);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(source: &str) -> Result<Vec<String>, Refusal> {
        let arguments = BTreeMap::from([("GIVEN".to_owned(), "given:1".to_owned())]);
        images(source.as_bytes(), &arguments)
    }

    #[test]
    fn g_73_images_are_found_however_they_are_written() {
        for (source, expected) in [
            ("FROM a", &["a"][..]),
            ("\u{feff}# c\r\nfrom a:1\r\n", &["a:1"]),
            (
                "FROM \\\n# comment\n\n  a \\  \n AS x\nFROM x\nCOPY --from=x / /\nCOPY --from=0 / /",
                &["a"],
            ),
            ("# escape=`\nFROM `\n a\nRUN x \\\n", &["a"]),
            ("ARG B=a\nARG C=$B:1\nFROM ${C}\nFROM ${NO:-b}", &["a:1", "b"]),
            ("ARG GIVEN=x\nFROM $GIVEN", &["given:1"]),
            ("FROM --platform=linux/amd64 a\nCOPY --chown=1:1 --from=b/c:2 / /", &["a", "b/c:2"]),
            ("FROM a as B\nFROM b", &["a"]),
            // A stage counts only after its own line.
            ("FROM x AS x", &["x"]),
            ("FROM scratch\nONBUILD COPY --from=z / /", &["z"]),
            ("FROM a\nCOPY --FROM=q / /\nCOPY --from=7 / /", &["a", "q", "7"]),
        ] {
            assert_eq!(of(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn g_73_what_is_fetched_or_unclear_is_refused() {
        for source in [
            "",
            "RUN x",
            "FROM $UNKNOWN",
            "FROM ${X:?y}",
            "FROM \"a\"",
            "FROM a AS b c",
            "FROM a\nADD http://169.254.169.254/ /",
            "FROM a\nADD [\"https://x/y\", \"/\"]",
            "FROM a\nADD \"http://x\" /",
            "FROM a\nADD $URL /",
            "FROM a\nADD h${X}://y /",
            "FROM a\nADD git@x:y /",
            "FROM a\nADD \\\n  https://x /",
            "FROM a\nONBUILD ADD https://x /",
            "FROM a\nCOPY --from=$X / /",
            "FROM a\nRUN <<EOF\nx\nEOF",
            "FROM a\rADD https://x /",
        ] {
            assert!(of(source).is_err(), "{source:?}");
        }
        assert!(of("FROM a\nADD app-$V.tar.gz dir/ /x/").is_ok());
    }

    #[test]
    fn g_63_changes_do_not_write_the_guards_labels() {
        let settings = GuardSettings::new(
            "1",
            ("longshore.guard".into(), "1".into()),
            "n",
            std::path::Path::new("/x"),
        );
        for line in ["CMD [\"x\"]", "label a=b", "ENV A=b"] {
            assert!(change(line, &settings).is_ok(), "{line}");
        }
        for line in [
            "LABEL longshore.guard=2",
            "LABEL a=b \"Longshore.x\"=y",
            "LABEL longshore.x y",
            "LABEL $X=1",
            "LABEL l\\ongshore.x=1",
            "FROM x",
            "ENV a=b\nLABEL longshore.guard=1",
            "RUN x",
        ] {
            assert!(change(line, &settings).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_dockerfile_panics(source in "(FROM|ADD|COPY|ARG|ONBUILD|[ $\\\\{}\"=:\n-]|a|--from=|http://){0,30}") {
            let _ = of(&source);
        }
    }
}
