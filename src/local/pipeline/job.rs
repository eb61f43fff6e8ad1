//! One job as written, with the defaults of the file, before `parallel` and `rules`.

use std::time::Duration;

use serde_yaml::{Mapping, Value};

use super::{
    fields::Fields,
    matrix,
    model::{AllowFailure, When, Work},
    parts,
    problem::{Problem, Report},
    value,
};
use crate::workload::variable::Variable;

/// Keywords that `default` and, for old files, the file itself give to jobs
/// (GitLab: `Gitlab::Ci::Config::Entry::Default`).
const INHERITED: &[&str] = &[
    "after_script",
    "artifacts",
    "before_script",
    "cache",
    "hooks",
    "id_tokens",
    "image",
    "interruptible",
    "retry",
    "services",
    "tags",
    "timeout",
];

/// Keywords whose absence of effect here the author should know.
const NO_EFFECT: &[&str] = &[
    "coverage",
    "dast_configuration",
    "environment",
    "id_tokens",
    "identity",
    "interruptible",
    "manual_confirmation",
    "pages",
    "publish",
    "release",
    "resource_group",
    "retry",
    "secrets",
    "start_in",
    "tags",
];

/// Keywords without which a job would be another one.
const REFUSED: &[&str] = &["trigger", "run", "include", "inputs"];

const KNOWN: &[&str] = &[
    "after_script",
    "allow_failure",
    "artifacts",
    "before_script",
    "cache",
    "dependencies",
    "description",
    "except",
    "hooks",
    "image",
    "inherit",
    "needs",
    "only",
    "parallel",
    "rules",
    "script",
    "services",
    "stage",
    "timeout",
    "variables",
    "when",
];

/// One of `needs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NeedDraft {
    /// The job, as written; all its instances, if it has several.
    pub(crate) job: String,
    /// Whether its artifacts are wanted.
    pub(crate) artifacts: bool,
    /// Whether it may be missing.
    pub(crate) optional: bool,
    /// Only the instances with these variables.
    pub(crate) cells: Option<Vec<Vec<(String, String)>>>,
}

/// A job as written.
#[derive(Debug, Clone)]
pub(crate) struct Draft<'a> {
    /// Its name in the file.
    pub(crate) name: &'a str,
    /// Name of its stage.
    pub(crate) stage: String,
    /// `when`, if written.
    pub(crate) when: Option<When>,
    /// `allow_failure`, if written.
    pub(crate) allow_failure: Option<AllowFailure>,
    /// `needs`, if written.
    pub(crate) needs: Option<Vec<NeedDraft>>,
    /// `dependencies`, if written.
    pub(crate) dependencies: Option<Vec<String>>,
    pub(crate) work: Work,
    /// `parallel`, as written.
    pub(crate) parallel: Option<&'a Value>,
    /// All keywords as written.
    pub(crate) fields: Fields<'a>,
}

/// What the file gives to its jobs.
pub(crate) struct Defaults<'a> {
    /// `default`, which overrides the keywords at the top of old files.
    pub(crate) keywords: Mapping,
    /// `variables` of the file.
    pub(crate) variables: &'a [Variable],
}

impl<'a> Defaults<'a> {
    /// The defaults of a file.
    pub(crate) fn new(root: &Mapping, variables: &'a [Variable]) -> Self {
        let mut keywords = Mapping::new();
        for keyword in ["image", "services", "before_script", "after_script", "cache"] {
            if let Some(value) = root.get(keyword) {
                keywords.insert(keyword.into(), value.clone());
            }
        }
        if let Some(Value::Mapping(default)) = root.get("default") {
            value::deep_merge(&mut keywords, default.clone());
        }
        Self { keywords, variables }
    }

    /// `job` with the keywords that it inherits.
    pub(crate) fn apply(&self, job: &Mapping) -> Mapping {
        let inherit = job.get("inherit").and_then(|inherit| inherit.get("default"));
        let mut out = job.clone();
        for keyword in INHERITED {
            let Some(value) = self.keywords.get(*keyword) else { continue };
            if !job.contains_key(*keyword) && inherits(inherit, keyword) {
                out.insert((*keyword).into(), value.clone());
            }
        }
        out
    }
}

/// Whether `inherit: {default, variables}` lets `name` in: true, false or a list of names.
fn inherits(rule: Option<&Value>, name: &str) -> bool {
    let Some(rule) = rule else { return true };
    value::boolean(rule).unwrap_or_else(|| {
        value::texts(rule).unwrap_or_default().iter().any(|listed| listed == name)
    })
}

/// Reads the job `name`; `map` has the defaults applied.
pub(crate) fn read<'a>(
    name: &'a str,
    map: &'a Mapping,
    defaults: &Defaults<'_>,
    report: &mut Report,
) -> Draft<'a> {
    let fields = Fields::new(map, &[name]);
    let refused = check_keywords(name, &fields, report);
    let mut script = fields.texts("before_script", report);
    script.extend(fields.texts("script", report));
    if !map.contains_key("script") && !REFUSED.iter().any(|keyword| map.contains_key(*keyword)) {
        report.error(&[name], "has no `script`");
    }
    let inherit = map.get("inherit").and_then(|inherit| inherit.get("variables"));
    let mut variables: Vec<Variable> = defaults
        .variables
        .iter()
        .filter(|variable| inherits(inherit, &variable.key))
        .cloned()
        .collect();
    variables.extend(parts::variables(&fields, report));
    Draft {
        name,
        stage: fields.text("stage", report).unwrap_or_else(|| "test".to_owned()),
        when: when(&fields, report),
        allow_failure: allow_failure(&fields, report),
        needs: needs(&fields, report),
        dependencies: fields.map.get("dependencies").map(|_| fields.texts("dependencies", report)),
        work: Work {
            image: parts::image(&fields, report),
            services: parts::services(&fields, report),
            variables,
            script,
            after_script: fields.texts("after_script", report),
            before_sources: before_sources(&fields, report),
            artifacts: parts::artifacts(&fields, report),
            cache: parts::caches(&fields, report),
            timeout: timeout(&fields, report),
            environment: environment(&fields, report),
            refused,
        },
        parallel: fields.value("parallel"),
        fields,
    }
}

/// Warns of keywords without effect; gives what keeps the job from running.
fn check_keywords(name: &str, fields: &Fields<'_>, report: &mut Report) -> Vec<Problem> {
    let mut refused = Vec::new();
    for keyword in fields.map.keys().filter_map(Value::as_str) {
        if REFUSED.contains(&keyword) {
            let what = "is not supported: the job cannot run without it".to_owned();
            refused.push(report.problem(&[name, keyword], what));
        } else if NO_EFFECT.contains(&keyword) {
            report.warn(&[name, keyword], "has no effect here");
        } else if !KNOWN.contains(&keyword) {
            report.warn(&[name, keyword], "is not a known keyword and has no effect here");
        }
    }
    refused
}

/// `when` of a job or a rule; `Ok(None)` for `never`.
pub(crate) fn parse_when(text: &str) -> Result<Option<When>, String> {
    Ok(Some(match text {
        "on_success" => When::OnSuccess,
        "on_failure" => When::OnFailure,
        "always" => When::Always,
        "manual" => When::Manual,
        "delayed" => When::Delayed,
        "never" => return Ok(None),
        other => {
            return Err(format!(
                "must be one of on_success, on_failure, always, manual, delayed, never, found `{other}`"
            ));
        }
    }))
}

fn when(fields: &Fields<'_>, report: &mut Report) -> Option<When> {
    let text = fields.text("when", report)?;
    parse_when(&text)
        .and_then(|when| {
            when.ok_or_else(|| "must not be `never`, which is for rules only".to_owned())
        })
        .map_err(|what| report.error(&fields.path("when"), what))
        .ok()
}

/// `allow_failure` of a job or a rule.
pub(crate) fn allow_failure(fields: &Fields<'_>, report: &mut Report) -> Option<AllowFailure> {
    let written = fields.value("allow_failure")?;
    if let Some(allowed) = value::boolean(written) {
        return Some(if allowed { AllowFailure::Always } else { AllowFailure::No });
    }
    let codes: Option<Vec<i32>> = written
        .get("exit_codes")
        .and_then(value::texts)
        .and_then(|codes| codes.iter().map(|code| code.parse().ok()).collect());
    if codes.is_none() {
        let found = value::found(written);
        let what = format!("must be true, false or a mapping with `exit_codes`, found {found}");
        report.error(&fields.path("allow_failure"), what);
    }
    codes.map(AllowFailure::ExitCodes)
}

/// `needs` of a job or a rule.
pub(crate) fn needs(fields: &Fields<'_>, report: &mut Report) -> Option<Vec<NeedDraft>> {
    let written = fields.value("needs")?;
    let mut out = Vec::new();
    for item in value::items(written).unwrap_or_default() {
        if let Some(job) = value::text(item) {
            out.push(NeedDraft { job, artifacts: true, optional: false, cells: None });
            continue;
        }
        let Value::Mapping(map) = item else {
            let what = format!("must be a list of jobs, found {} in it", value::kind(item));
            report.error(&fields.path("needs"), what);
            continue;
        };
        let inner = Fields::new(map, &fields.path("needs"));
        let other = ["project", "pipeline"].into_iter().find(|key| map.contains_key(*key));
        if let Some(key) = other {
            report.warn(&inner.path(key), "artifacts of other pipelines are not fetched here");
            continue;
        }
        let Some(job) = inner.text("job", report) else {
            report.error(
                &fields.path("needs"),
                "each entry must be the name of a job or a mapping with `job`",
            );
            continue;
        };
        let cells = map
            .get("parallel")
            .and_then(|parallel| parallel.get("matrix"))
            .and_then(|matrix| matrix::cells(matrix).ok());
        out.push(NeedDraft {
            job,
            artifacts: inner.boolean("artifacts", report).unwrap_or(true),
            optional: inner.boolean("optional", report).unwrap_or(false),
            cells,
        });
    }
    Some(out)
}

/// `hooks:pre_get_sources_script`.
fn before_sources(fields: &Fields<'_>, report: &mut Report) -> Vec<String> {
    let Some(inner) = fields.inner("hooks", report) else { return Vec::new() };
    inner.only(&["pre_get_sources_script"], report);
    inner.texts("pre_get_sources_script", report)
}

fn timeout(fields: &Fields<'_>, report: &mut Report) -> Option<Duration> {
    let text = fields.text("timeout", report)?;
    let duration = value::duration(&text).filter(|duration| duration.as_secs() > 0);
    if duration.is_none() {
        let what = format!("must be a duration such as `1h 30m`, found `{text}`");
        report.error(&fields.path("timeout"), what);
    }
    duration
}

fn environment(fields: &Fields<'_>, report: &mut Report) -> Option<(String, Option<String>)> {
    let written = fields.value("environment")?;
    if let Some(name) = value::text(written) {
        return Some((name, None));
    }
    let inner = fields.inner("environment", report)?;
    Some((inner.text("name", report)?, inner.text("url", report)))
}
