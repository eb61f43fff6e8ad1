//! Reads a pipeline file: its variables and stages, then one job after the other with what `parallel`
//! and `rules` make of it, then what the jobs need of each other.

use std::{collections::BTreeMap, path::Path};

use serde_yaml::{Mapping, Value};

use super::{
    choose::{self, Choice, Files, RuleWhen},
    fields::Fields,
    job::{self, Defaults, Draft, NeedDraft},
    load::Loader,
    matrix::{self, Instance},
    model::{Job, Need, Pipeline},
    parts,
    problem::{PipelineError, Problem, Report},
    resolve, value,
};
use crate::workload::variable::Variable;

/// Keywords at the top of a file; every other name there is a job
/// (GitLab: `Gitlab::Ci::Config::Entry::Root`).
const GLOBAL: &[&str] = &[
    "after_script",
    "before_script",
    "cache",
    "default",
    "image",
    "include",
    "services",
    "spec",
    "stages",
    "types",
    "variables",
    "workflow",
];

/// Where a pipeline is read from, and with which variables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// Directory of the project.
    pub(crate) root: &'a Path,
    pub(crate) file: &'a Path,
    /// Variables that those of the file override.
    pub(crate) predefined: &'a BTreeMap<String, String>,
    /// Variables that override those of the file.
    pub(crate) given: &'a BTreeMap<String, String>,
}

/// Reads the file.
pub(crate) fn read(source: Source<'_>) -> Result<Pipeline, PipelineError> {
    let mut report = Report::default();
    let mut known = source.predefined.clone();
    known.extend(source.given.clone());
    let root =
        Loader { root: source.root, variables: &known, report: &mut report }.load(source.file)?;
    let root = resolve::resolve(&root, &mut report);
    let mut pipeline =
        Reader { source, report: &mut report, files: Files::new(source.root) }.read(&root);
    report.check()?;
    pipeline.warnings = gather(report.warnings);
    Ok(pipeline)
}

/// Joins warnings that say the same of several jobs.
fn gather(warnings: Vec<Problem>) -> Vec<Problem> {
    let mut out: Vec<(Problem, Vec<String>)> = Vec::new();
    for warning in warnings {
        let (job, keyword) = warning.path.split_once('.').unwrap_or((&warning.path, ""));
        let same = out.iter_mut().find(|(first, _)| {
            let other = first.path.split_once('.').map_or("", |(_, keyword)| keyword);
            first.what == warning.what && other == keyword && !keyword.is_empty()
        });
        match same {
            Some((_, jobs)) if jobs.iter().any(|known| known == job) => {}
            Some((_, jobs)) => jobs.push(job.to_owned()),
            None => {
                let job = job.to_owned();
                out.push((warning, vec![job]));
            }
        }
    }
    out.into_iter()
        .map(|(mut problem, jobs)| {
            if jobs.len() > 1 {
                problem.what = format!("{} (also in {})", problem.what, jobs[1..].join(", "));
            }
            problem
        })
        .collect()
}

/// `needs` and `dependencies` of a job, as written.
type Links = (Option<Vec<NeedDraft>>, Option<Vec<String>>);

struct Reader<'a> {
    source: Source<'a>,
    report: &'a mut Report,
    files: Files<'a>,
}

impl Reader<'_> {
    fn read(&mut self, root: &Mapping) -> Pipeline {
        let mut variables = parts::variables(&Fields::new(root, &[]), self.report);
        self.workflow(root, &mut variables);
        let stages = self.stages(root);
        let defaults = Defaults::new(root, &variables);
        let (mut jobs, mut drafts, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
        let written: Vec<(String, Mapping)> = self.written(root, &defaults);
        for (name, map) in &written {
            let draft = job::read(name, map, &defaults, self.report);
            let Some(stage) = stages.iter().position(|stage| *stage == draft.stage) else {
                let what = format!("there is no `{}` in {}", draft.stage, stages.join(", "));
                self.report.error(&[name, "stage"], what);
                continue;
            };
            let instances = matrix::instances(name, draft.parallel).unwrap_or_else(|what| {
                self.report.error(&[name, "parallel"], what);
                Vec::new()
            });
            for instance in instances {
                match self.job(&draft, stage, instance) {
                    Ok((job, needs)) => {
                        jobs.push(job);
                        drafts.push((needs, draft.dependencies.clone()));
                    }
                    Err(name) => left_out.push(name),
                }
            }
        }
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by_key(|&index| jobs[index].stage);
        let mut jobs: Vec<Job> = order.iter().map(|&index| jobs[index].clone()).collect();
        let drafts: Vec<_> = order.iter().map(|&index| drafts[index].clone()).collect();
        self.link(&mut jobs, &drafts, &left_out);
        Pipeline { stages, jobs, left_out, warnings: Vec::new() }
    }

    /// Variables of the matching rule of `workflow`. A pipeline that GitLab would not make is
    /// still run: whoever asks for it on this machine wants it.
    fn workflow(&mut self, root: &Mapping, variables: &mut Vec<Variable>) {
        let Some(rules) = root.get("workflow").and_then(|workflow| workflow.get("rules")) else {
            return;
        };
        let known = self.known(variables, None);
        let path = ["workflow", "rules"];
        match choose::first_match(rules, &path, &known, &self.files, self.report) {
            Some(rule) if rule.when != RuleWhen::Never => variables.extend(rule.variables),
            _ => self.report.warn(&path, "would not make a pipeline; it is run all the same"),
        }
    }

    fn stages(&mut self, root: &Mapping) -> Vec<String> {
        let fields = Fields::new(root, &[]);
        let keyword = if root.contains_key("stages") { "stages" } else { "types" };
        let mut stages = vec![".pre".to_owned()];
        // GitLab: `Gitlab::Ci::Config::Entry::Stages.default`.
        let written = fields
            .maybe_texts(keyword, self.report)
            .unwrap_or_else(|| ["build", "test", "deploy"].map(str::to_owned).to_vec());
        for stage in written {
            if !stages.contains(&stage) && stage != ".post" {
                stages.push(stage);
            }
        }
        stages.push(".post".to_owned());
        stages
    }

    /// The jobs as written, with what they inherit.
    fn written(&mut self, root: &Mapping, defaults: &Defaults<'_>) -> Vec<(String, Mapping)> {
        let mut out = Vec::new();
        for (key, value) in root {
            let Some(name) = value::text(key) else {
                self.report.error(&[], "the name of a job must be a string");
                continue;
            };
            if name.starts_with('.') || GLOBAL.contains(&name.as_str()) {
                continue;
            }
            match value {
                Value::Mapping(map) => out.push((name, defaults.apply(map))),
                _ => self.report.error(&[&name], "is neither a known keyword nor a job"),
            }
        }
        out
    }

    /// All variables that expressions see.
    fn known(
        &self,
        variables: &[Variable],
        instance: Option<(&Instance, &str)>,
    ) -> BTreeMap<String, String> {
        let mut known = self.source.predefined.clone();
        known.extend(variables.iter().map(|v| (v.key.clone(), v.value.clone())));
        if let Some((instance, stage)) = instance {
            known.extend(instance.variables.iter().cloned());
            known.insert("CI_JOB_NAME".to_owned(), instance.name.clone());
            known.insert("CI_JOB_STAGE".to_owned(), stage.to_owned());
        }
        known.extend(self.source.given.clone());
        known
    }

    /// One instance of a job, with its unresolved needs; its name if the rules leave it out.
    fn job(
        &mut self,
        draft: &Draft<'_>,
        stage: usize,
        instance: Instance,
    ) -> Result<(Job, Option<Vec<NeedDraft>>), String> {
        let known = self.known(&draft.work.variables, Some((&instance, &draft.stage)));
        let choice = choose::choose(draft, &known, &self.files, self.report);
        let Some(Choice { when, allow_failure, variables: of_rule, needs }) = choice else {
            return Err(instance.name);
        };
        let mut work = draft.work.clone();
        work.variables.extend(instance.variables.into_iter().map(|(key, value)| Variable {
            key,
            value,
            public: true,
            ..Variable::default()
        }));
        work.variables.extend(of_rule);
        let job = Job {
            name: instance.name,
            base: draft.name.to_owned(),
            stage,
            when,
            allow_failure,
            needs: None,
            sources: Vec::new(),
            work,
            node: instance.node,
        };
        Ok((job, needs.or_else(|| draft.needs.clone())))
    }

    /// Resolves `needs` and `dependencies` to jobs.
    fn link(&mut self, jobs: &mut [Job], drafts: &[Links], left_out: &[String]) {
        for index in 0..jobs.len() {
            let (needs, dependencies) = &drafts[index];
            let name = jobs[index].base.clone();
            if let Some(needs) = needs {
                let mut links = Vec::new();
                for need in needs {
                    links.extend(self.need(jobs, index, need, left_out));
                }
                jobs[index].needs = Some(links);
            }
            let stage = jobs[index].stage;
            let mut sources: Vec<usize> = jobs[index].needs.as_ref().map_or_else(
                || (0..jobs.len()).filter(|&other| jobs[other].stage < stage).collect(),
                |needs| needs.iter().filter(|need| need.artifacts).map(|need| need.job).collect(),
            );
            if let Some(dependencies) = dependencies {
                for wanted in dependencies {
                    let is = |other: &Job| other.base == *wanted || other.name == *wanted;
                    if !jobs.iter().any(is)
                        && !left_out.iter().any(|out| matrix::is_instance(out, wanted))
                    {
                        let what = format!("there is no job `{wanted}`");
                        self.report.error(&[&name, "dependencies"], what);
                    }
                }
                sources.retain(|&other| {
                    dependencies.contains(&jobs[other].base)
                        || dependencies.contains(&jobs[other].name)
                });
            }
            jobs[index].sources = sources;
        }
        if let Some(index) = cycle(jobs) {
            let name = jobs[index].base.clone();
            self.report.error(&[&name, "needs"], "must not lead back to the job itself");
        }
    }

    fn need(
        &mut self,
        jobs: &[Job],
        index: usize,
        need: &NeedDraft,
        left_out: &[String],
    ) -> Vec<Need> {
        let own = &jobs[index];
        let chosen = |job: &Job| {
            let cell = |cell: &Vec<(String, String)>| {
                cell.iter().all(|(key, value)| {
                    let value = matrix::fill(value, &own.work.variables);
                    job.work.variables.iter().any(|v| v.key == *key && v.value == value)
                })
            };
            job.name == need.job
                || job.base == need.job
                    && need.cells.as_ref().is_none_or(|cells| cells.iter().any(cell))
        };
        let found: Vec<usize> = (0..jobs.len()).filter(|&other| chosen(&jobs[other])).collect();
        if found.is_empty() && !need.optional {
            let ruled_out = left_out.iter().any(|out| matrix::is_instance(out, &need.job));
            let what = if jobs.iter().any(|job| job.base == need.job) {
                format!("no instance of `{}` has these variables", need.job)
            } else if ruled_out {
                format!("`{}` is not in this pipeline: its rules leave it out", need.job)
            } else {
                format!("there is no job `{}`", need.job)
            };
            self.report.error(&[&own.base, "needs"], what);
        }
        if found.iter().any(|&other| jobs[other].stage > own.stage) {
            let what = format!("`{}` is in a later stage", need.job);
            self.report.error(&[&own.base, "needs"], what);
        }
        found.into_iter().map(|job| Need { job, artifacts: need.artifacts }).collect()
    }
}

/// A job that, by way of `needs`, waits for itself.
fn cycle(jobs: &[Job]) -> Option<usize> {
    (0..jobs.len()).find(|&start| {
        let mut seen = vec![false; jobs.len()];
        let mut open = vec![start];
        while let Some(job) = open.pop() {
            for need in jobs[job].needs.iter().flatten() {
                if need.job == start {
                    return true;
                }
                if !std::mem::replace(&mut seen[need.job], true) {
                    open.push(need.job);
                }
            }
        }
        false
    })
}
