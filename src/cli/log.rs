//! The daemon's log: three formats, all to stderr, changeable while it runs.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    io::{self, IsTerminal, Write},
    str::FromStr,
    sync::Arc,
};

use jiff::{Timestamp, Unit};
use parking_lot::Mutex;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{Context, SubscriberExt},
    registry::{LookupSpan, Scope},
};

use crate::base::error_chain;

/// Shape of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For people: the message, padded, then fields.
    #[default]
    Runner,
    /// `time="…" level=… msg="…" key=value`.
    Text,
    /// One object a line.
    Json,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "runner" => Ok(Self::Runner),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("wanted runner, text or json"),
        }
    }
}

/// What is logged, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The least important level that is shown.
    pub level: LevelFilter,
    /// Shape of a line.
    pub format: Format,
    /// Whether levels have colours (format `runner` alone).
    pub colour: bool,
}

impl Settings {
    /// From what the command line or the file says; unreadable text cannot come here, both check
    /// it.
    #[must_use]
    pub fn new(level: Option<&str>, format: Option<&str>, debug: bool) -> Self {
        let level = if debug { Some("debug") } else { level };
        Self {
            level: level.and_then(|text| parse_level(text).ok()).unwrap_or(LevelFilter::INFO),
            format: format.and_then(|text| text.parse().ok()).unwrap_or_default(),
            colour: io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }
}

/// A level by gitlab-runner's names; `fatal` and `panic` are errors here.
pub fn parse_level(text: &str) -> Result<LevelFilter, &'static str> {
    match text {
        "panic" | "fatal" | "error" => Ok(LevelFilter::ERROR),
        "warn" | "warning" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        "trace" => Ok(LevelFilter::TRACE),
        _ => Err("wanted debug, info, warn, error, fatal or panic"),
    }
}

/// Changes the log while it runs, as a reload of the configuration does.
#[derive(Debug, Clone)]
pub struct Control(Arc<Mutex<Settings>>);

impl Control {
    /// Takes effect with the next line.
    pub fn set(&self, settings: Settings) {
        *self.0.lock() = settings;
        // Whether a line is of interest is remembered at its place in the code.
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Makes this the log of the whole process.
pub fn install(settings: Settings) -> Result<Control, tracing::subscriber::SetGlobalDefaultError> {
    let (subscriber, control) = subscriber(settings, io::stderr());
    tracing::subscriber::set_global_default(subscriber)?;
    Ok(control)
}

/// The log, writing to `out`.
fn subscriber(
    settings: Settings,
    out: impl Write + Send + 'static,
) -> (impl Subscriber + Send + Sync, Control) {
    let settings = Arc::new(Mutex::new(settings));
    let lines = Lines { settings: Arc::clone(&settings), out: Mutex::new(out) };
    (Registry::default().with(lines), Control(settings))
}

/// The layer that makes lines.
struct Lines<W> {
    settings: Arc<Mutex<Settings>>,
    out: Mutex<W>,
}

impl<W> Lines<W> {
    fn settings(&self) -> Settings {
        *self.settings.lock()
    }
}

/// Fields by name, as text or as JSON has them.
#[derive(Debug, Clone, Default)]
struct Fields(BTreeMap<&'static str, serde_json::Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name(), value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name(), value.into());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.0.insert(field.name(), error_chain(value).into());
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: Write + Send + 'static,
{
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        let level = self.settings().level;
        // Of the libraries only what may need to be acted on.
        let own = metadata.target().starts_with("longshore");
        *metadata.level() <= if own { level } else { level.min(LevelFilter::WARN) }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.settings().level)
    }

    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut all = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(Scope::from_root) {
            if let Some(fields) = span.extensions().get::<Fields>() {
                all.0.extend(fields.0.clone());
            }
        }
        event.record(&mut all);
        let message = match all.0.remove("message") {
            Some(serde_json::Value::String(text)) => text,
            _ => String::new(),
        };
        let line = self.settings().line(*event.metadata().level(), &message, all, Timestamp::now());
        let mut out = self.out.lock();
        // There is nobody to tell that the log cannot be written.
        let _ = out.write_all(line.as_bytes());
    }
}

/// Width that messages are padded to (GitLab Runner: `log/runner_formatter.go`).
const WIDTH: usize = 50;

impl Settings {
    fn line(self, level: Level, message: &str, fields: Fields, now: Timestamp) -> String {
        match self.format {
            Format::Runner => self.runner_line(level, message, &fields),
            Format::Text => text_line(level, message, &fields, now),
            Format::Json => json_line(level, message, fields, now),
        }
    }

    fn runner_line(self, level: Level, message: &str, fields: &Fields) -> String {
        let (colour, prefix) = match level {
            Level::ERROR => ("\x1b[31;1m", "ERROR: "),
            Level::WARN => ("\x1b[33;1m", "WARNING: "),
            Level::INFO => ("", ""),
            _ => ("\x1b[37;1m", ""),
        };
        let colour = if self.colour { colour } else { "" };
        let reset = if colour.is_empty() { "" } else { "\x1b[0;m" };
        let width = WIDTH - prefix.len();
        let message = single_line(message);
        let mut line = format!("{colour}{prefix}{message:width$}{reset} ");
        for (key, value) in &fields.0 {
            let _ = write!(line, " {colour}{key}{reset}={}", single_line(&plain(value)));
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

fn text_line(level: Level, message: &str, fields: &Fields, now: Timestamp) -> String {
    let time = now.round(Unit::Second).unwrap_or(now);
    let mut line = format!("time=\"{time}\" level={} msg={}", level_name(level), quoted(message));
    for (key, value) in &fields.0 {
        let _ = write!(line, " {key}={}", quoted(&plain(value)));
    }
    line.push('\n');
    line
}

fn json_line(level: Level, message: &str, fields: Fields, now: Timestamp) -> String {
    let mut object = serde_json::Map::new();
    for (key, value) in fields.0 {
        // Three keys are the line's own; fields of these names give way, as logrus does it.
        let key = match key {
            "level" | "msg" | "time" => format!("fields.{key}"),
            key => key.to_owned(),
        };
        object.insert(key, value);
    }
    object.insert("level".to_owned(), level_name(level).into());
    object.insert("msg".to_owned(), message.into());
    object.insert("time".to_owned(), format!("{now:.9}").into());
    let mut line = serde_json::Value::Object(object).to_string();
    line.push('\n');
    line
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        _ => "trace",
    }
}

fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A line stays one, whatever a server or a container put into a message.
fn single_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(clean).collect()
}

/// Quotes where logrus does: unless all characters are harmless.
fn quoted(text: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !text.is_empty() && text.chars().all(harmless) {
        text.to_owned()
    } else {
        format!("{text:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(settings: Settings, log: impl FnOnce(&Control)) -> String {
        let sink = Sink::default();
        let (subscriber, control) = subscriber(settings, sink.clone());
        tracing::subscriber::with_default(subscriber, || log(&control));
        let bytes = sink.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn settings(format: Format) -> Settings {
        Settings { level: LevelFilter::INFO, format, colour: false }
    }

    #[test]
    fn lines_for_people_are_padded_and_their_fields_sorted() {
        let text = logged(settings(Format::Runner), |_| {
            tracing::info!(zone = 1, container.id = "abc", "Container started");
            tracing::warn!("Disk is full");
            tracing::debug!("not shown");
        });
        let padded = format!("{:50}  container.id=abc zone=1", "Container started");
        assert_eq!(text, format!("{padded}\nWARNING: Disk is full\n"));
        assert_eq!(padded.find("container.id"), Some(52));
        let warned = logged(settings(Format::Runner), |_| tracing::warn!(a = 1, "Disk is full"));
        assert_eq!(warned.find("a=1"), Some(52), "the prefix counts: {warned}");
    }

    #[test]
    fn levels_have_colours_where_they_are_seen() {
        let settings = Settings { colour: true, ..settings(Format::Runner) };
        let text = logged(settings, |_| tracing::error!(a = 1, "No"));
        assert!(text.starts_with("\x1b[31;1mERROR: No "), "{text:?}");
        assert!(text.ends_with("\x1b[0;m  \x1b[31;1ma\x1b[0;m=1\n"), "{text:?}");
    }

    #[test]
    fn config_36_json_lines_have_level_msg_and_time() {
        let text = logged(settings(Format::Json), |_| {
            let span = tracing::info_span!("job", job.id = 7, runner = "glrt");
            let _entered = span.enter();
            tracing::warn!(attempt = 2, level = "mine", "Cannot \"push\"");
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "warning");
        assert_eq!(line["msg"], "Cannot \"push\"");
        assert_eq!((&line["job.id"], &line["attempt"]), (&7.into(), &2.into()));
        assert_eq!(line["fields.level"], "mine");
        let time = line["time"].as_str().unwrap();
        assert_eq!((time.len(), time.parse::<Timestamp>().is_ok()), (30, true), "{time}");
    }

    #[test]
    fn text_lines_quote_what_needs_it() {
        let text = logged(settings(Format::Text), |_| {
            tracing::info!(path = "/a/b", reason = "two words", "Done");
        });
        let rest = text.split_once(' ').unwrap().1;
        assert!(text.starts_with("time=\"20"), "{text}");
        assert_eq!(rest, "level=info msg=Done path=/a/b reason=\"two words\"\n");
    }

    #[test]
    fn a_message_cannot_forge_a_line() {
        let text = logged(settings(Format::Runner), |_| tracing::info!("a\nERROR: b"));
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn level_and_format_change_while_it_runs() {
        let text = logged(settings(Format::Runner), |control| {
            let log = || tracing::debug!("deep");
            log();
            control.set(Settings { level: LevelFilter::DEBUG, ..settings(Format::Json) });
            log();
        });
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("\"debug\""), "{text}");
    }

    #[test]
    fn the_debug_switch_beats_the_level() {
        assert_eq!(Settings::new(Some("error"), None, true).level, LevelFilter::DEBUG);
        assert_eq!(Settings::new(Some("fatal"), Some("json"), false).level, LevelFilter::ERROR);
        assert_eq!(Settings::new(None, Some("json"), false).format, Format::Json);
        assert!(parse_level("loud").is_err());
    }
}
