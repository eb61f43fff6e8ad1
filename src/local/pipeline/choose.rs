//! Whether a job is in the pipeline, and how: `rules`, `only` and `except`.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_yaml::Value;

use super::{
    expand::expand,
    fields::Fields,
    job::{self, Draft, NeedDraft},
    model::{AllowFailure, When},
    parts,
    problem::Report,
    rules::{self, Variables},
    value,
};
use crate::{
    base::glob::{self, Wildcards},
    workload::variable::Variable,
};

/// How a job is in the pipeline.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) when: When,
    pub(crate) allow_failure: AllowFailure,
    /// Variables of the rule.
    pub(crate) variables: Vec<Variable>,
    /// `needs` of the rule, in place of the job's.
    pub(crate) needs: Option<Vec<NeedDraft>>,
}

/// The project's files, listed when first asked for.
pub(crate) struct Files<'a> {
    root: &'a Path,
    listed: OnceCell<Vec<PathBuf>>,
}

impl<'a> Files<'a> {
    /// Files under `root`.
    pub(crate) fn new(root: &'a Path) -> Self {
        Self { root, listed: OnceCell::new() }
    }

    /// Whether a file matches one of the globs.
    fn any(&self, globs: &[String]) -> bool {
        globs.iter().any(|glob| {
            let glob = glob.trim_start_matches("./").trim_start_matches('/');
            if !glob.contains(['*', '?', '[', '{']) {
                return self.root.join(glob).exists();
            }
            let Ok(glob) = glob::compile(glob, Wildcards::WithinComponent) else { return false };
            self.listed.get_or_init(|| self.list()).iter().any(|file| glob.is_match(file))
        })
    }

    fn list(&self) -> Vec<PathBuf> {
        walkdir::WalkDir::new(self.root)
            .into_iter()
            .filter_entry(|entry| entry.file_name() != ".git")
            .flatten()
            .filter(|entry| !entry.file_type().is_dir())
            .filter_map(|entry| entry.path().strip_prefix(self.root).ok().map(Path::to_owned))
            .collect()
    }
}

/// Decides on a job; `None` if it is not in the pipeline.
pub(crate) fn choose(
    draft: &Draft<'_>,
    variables: &BTreeMap<String, String>,
    files: &Files<'_>,
    report: &mut Report,
) -> Option<Choice> {
    if let Some(rules) = draft.fields.value("rules") {
        if draft.fields.value("only").or(draft.fields.value("except")).is_some() {
            report.error(&[draft.name, "rules"], "cannot be used with `only` or `except`");
        }
        let rule = first_match(rules, &[draft.name, "rules"], variables, files, report)?;
        let allow_failure =
            rule.allow_failure.or_else(|| draft.allow_failure.clone()).unwrap_or(AllowFailure::No);
        let when = match rule.when {
            RuleWhen::Never => return None,
            RuleWhen::Is(when) => when,
            RuleWhen::Unset => draft.when.unwrap_or(When::OnSuccess),
        };
        return Some(Choice { when, allow_failure, variables: rule.variables, needs: rule.needs });
    }
    if !refs_allow(draft, variables, report) {
        return None;
    }
    let when = draft.when.unwrap_or(When::OnSuccess);
    // A manual job outside of rules does not block the pipeline.
    let allow_failure = draft.allow_failure.clone().unwrap_or(match when {
        When::Manual => AllowFailure::Manual,
        _ => AllowFailure::No,
    });
    Some(Choice { when, allow_failure, variables: Vec::new(), needs: None })
}

/// `when` of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RuleWhen {
    /// Not written: that of the job.
    Unset,
    /// Not in the pipeline.
    Never,
    /// Overrides that of the job.
    Is(When),
}

/// The rule that matched.
pub(crate) struct Rule {
    pub(crate) when: RuleWhen,
    allow_failure: Option<AllowFailure>,
    pub(crate) variables: Vec<Variable>,
    needs: Option<Vec<NeedDraft>>,
}

/// The first of `rules` that matches.
pub(crate) fn first_match(
    rules: &Value,
    path: &[&str],
    variables: &BTreeMap<String, String>,
    files: &Files<'_>,
    report: &mut Report,
) -> Option<Rule> {
    for rule in value::items(rules).unwrap_or_default() {
        let Value::Mapping(map) = rule else {
            let found = match rules {
                Value::Sequence(_) => format!("{} in it", value::kind(rule)),
                _ => value::kind(rule).to_owned(),
            };
            report.error(path, format!("must be a list of mappings, found {found}"));
            return None;
        };
        let fields = Fields::new(map, path);
        let known = [
            "if",
            "when",
            "allow_failure",
            "variables",
            "exists",
            "changes",
            "needs",
            "interruptible",
            "start_in",
            "auto_cancel",
        ];
        fields.only(&known, report);
        if !rule_matches(&fields, variables, files, report) {
            continue;
        }
        let when = match fields.text("when", report).map(|text| job::parse_when(&text)) {
            None => RuleWhen::Unset,
            Some(Ok(when)) => when.map_or(RuleWhen::Never, RuleWhen::Is),
            Some(Err(what)) => {
                report.error(&fields.path("when"), what);
                RuleWhen::Unset
            }
        };
        return Some(Rule {
            when,
            allow_failure: job::allow_failure(&fields, report),
            variables: parts::variables(&fields, report),
            needs: job::needs(&fields, report),
        });
    }
    None
}

fn rule_matches(
    fields: &Fields<'_>,
    variables: &BTreeMap<String, String>,
    files: &Files<'_>,
    report: &mut Report,
) -> bool {
    if let Some(text) = fields.text("if", report) {
        match rules::holds(&text, &Variables::new(variables)) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(what) => {
                report.error(&fields.path("if"), what);
                return false;
            }
        }
    }
    if fields.value("changes").is_some() {
        report.warn(
            &fields.path("changes"),
            "is taken as true here: there is no other commit to compare with",
        );
    }
    let globs = match fields.value("exists") {
        None => return true,
        Some(Value::Mapping(map)) => {
            let inner = Fields::new(map, &fields.path("exists"));
            inner.only(&["paths"], report);
            inner.texts("paths", report)
        }
        Some(_) => fields.texts("exists", report),
    };
    let globs: Vec<String> = globs.iter().map(|glob| expand(glob, variables)).collect();
    files.any(&globs)
}

/// `only` and `except`: only what is written there lets a job in, all that is written in `except`
/// keeps it out.
fn refs_allow(
    draft: &Draft<'_>,
    variables: &BTreeMap<String, String>,
    report: &mut Report,
) -> bool {
    let mut allowed = true;
    if draft.fields.value("only").is_some() {
        let conditions = conditions(draft, "only", variables, report);
        allowed &= conditions.iter().all(|&holds| holds);
    }
    if draft.fields.value("except").is_some() {
        let conditions = conditions(draft, "except", variables, report);
        allowed &= !conditions.iter().any(|&holds| holds);
    }
    allowed
}

/// What each kind of condition under `keyword` says: `refs`, `variables`.
fn conditions(
    draft: &Draft<'_>,
    keyword: &'static str,
    variables: &BTreeMap<String, String>,
    report: &mut Report,
) -> Vec<bool> {
    let Some(Value::Mapping(map)) = draft.fields.value(keyword) else {
        let refs = draft.fields.texts(keyword, report);
        return vec![any_ref(&refs, &draft.fields.path(keyword), variables, report)];
    };
    let inner = Fields::new(map, &draft.fields.path(keyword));
    inner.only(&["refs", "variables", "changes"], report);
    let mut out = Vec::new();
    if let Some(refs) = inner.maybe_texts("refs", report) {
        out.push(any_ref(&refs, &inner.path("refs"), variables, report));
    }
    if let Some(expressions) = inner.maybe_texts("variables", report) {
        let mut any = false;
        for expression in expressions {
            match rules::holds(&expression, &Variables::new(variables)) {
                Ok(holds) => any |= holds,
                Err(what) => report.error(&inner.path("variables"), what),
            }
        }
        out.push(any);
    }
    if inner.value("changes").is_some() {
        let what = "is taken as true here: there is no other commit to compare with";
        report.warn(&inner.path("changes"), what);
        out.push(true);
    }
    out
}

fn any_ref(
    refs: &[String],
    path: &[&str],
    variables: &BTreeMap<String, String>,
    report: &mut Report,
) -> bool {
    let name = variables.get("CI_COMMIT_REF_NAME").map_or("", String::as_str);
    let source = variables.get("CI_PIPELINE_SOURCE").map_or("", String::as_str);
    let mut any = false;
    for pattern in refs {
        // `name@project/path` names a ref of one project.
        let pattern = pattern.split_once('@').map_or(pattern.as_str(), |(name, _)| name);
        any |= match pattern {
            "branches" => variables.contains_key("CI_COMMIT_BRANCH"),
            "tags" => variables.contains_key("CI_COMMIT_TAG"),
            "pushes" => source == "push",
            "merge_requests" => source == "merge_request_event",
            "schedules" => source == "schedule",
            "api" | "chat" | "web" => source == pattern,
            "external" | "pipelines" | "triggers" => source == pattern.trim_end_matches('s'),
            _ if pattern.starts_with('/') => match rules::regex(pattern) {
                Ok(regex) => regex.is_match(name),
                Err(what) => {
                    report.error(path, what);
                    false
                }
            },
            other => expand(other, variables) == name,
        };
    }
    any
}
