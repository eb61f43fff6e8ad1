//! Which jobs of the pipeline run, from the names on the command line.

use super::{
    error::ExecError,
    pipeline::{AllowFailure, Job, Pipeline, PipelineError, Problem, When, is_instance},
};

/// Marks the jobs to run: all if none is named; else those named and, with `needs`, what they
/// need. A named job runs even if it is manual or waits for a failure.
pub(crate) fn choose(
    pipeline: &mut Pipeline,
    names: &[String],
    needs: bool,
) -> Result<Vec<bool>, ExecError> {
    let jobs = &mut pipeline.jobs;
    if jobs.is_empty() {
        return Err(ExecError::NoJobs { left_out: pipeline.left_out.join(", ") });
    }
    if names.is_empty() {
        return runnable(jobs, vec![true; jobs.len()]);
    }
    let mut chosen = vec![false; jobs.len()];
    let mut open = Vec::new();
    for name in names {
        let is = |job: &Job| job.name == *name || job.base == *name;
        let found: Vec<usize> = (0..jobs.len()).filter(|&job| is(&jobs[job])).collect();
        if found.is_empty() {
            if pipeline.left_out.iter().any(|left| is_instance(left, name)) {
                return Err(ExecError::LeftOut { name: name.clone() });
            }
            let known: Vec<&str> = jobs.iter().map(|job| job.name.as_str()).collect();
            return Err(ExecError::UnknownJob { name: name.clone(), known: known.join(", ") });
        }
        for job in found {
            want(&mut jobs[job]);
            open.push(job);
        }
    }
    while let Some(job) = open.pop() {
        if std::mem::replace(&mut chosen[job], true) || !needs {
            continue;
        }
        for need in jobs[job].needs.clone().unwrap_or_default() {
            // Somebody who names a job wants what it needs, too.
            want(&mut jobs[need.job]);
            open.push(need.job);
        }
    }
    runnable(jobs, chosen)
}

/// Lets a job run that would wait for somebody or for a failure. If it failed, whoever asked for
/// it wants to know.
fn want(job: &mut Job) {
    if matches!(job.when, When::Manual | When::OnFailure) {
        job.when = When::OnSuccess;
    }
    if job.allow_failure == AllowFailure::Manual {
        job.allow_failure = AllowFailure::No;
    }
}

/// The choice, if all that will run can run here.
fn runnable(jobs: &[Job], chosen: Vec<bool>) -> Result<Vec<bool>, ExecError> {
    let runs = |(job, chosen): &(&Job, &bool)| **chosen && job.when != When::Manual;
    let refused: Vec<Problem> = jobs
        .iter()
        .zip(&chosen)
        .filter(runs)
        .flat_map(|(job, _)| job.work.refused.iter().cloned())
        .collect();
    if refused.is_empty() { Ok(chosen) } else { Err(PipelineError::Invalid(refused).into()) }
}

#[cfg(test)]
mod tests {
    use super::{super::pipeline::testing, *};

    const YAML: &str = "\
b: {stage: build, script: x, when: manual}
other: {stage: build, script: x}
t: {script: x, needs: [b], parallel: 2}
d: {stage: deploy, script: x, needs: [t], when: manual}
alarm: {stage: deploy, script: x, when: on_failure}
out: {script: x, rules: [{when: never}]}
";

    fn chosen(names: &[&str], needs: bool) -> Result<Vec<String>, ExecError> {
        let mut pipeline = testing::read(YAML, &[]).unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let chosen = choose(&mut pipeline, &names, needs)?;
        let jobs = pipeline.jobs.iter().zip(chosen).filter(|(_, chosen)| *chosen);
        Ok(jobs.map(|(job, _)| format!("{} {}", job.name, job.when.as_str())).collect())
    }

    #[test]
    fn no_name_means_all_and_a_name_means_what_it_needs() {
        assert_eq!(chosen(&[], true).unwrap().len(), 6);
        assert_eq!(
            chosen(&["d"], true).unwrap(),
            ["b on_success", "t 1/2 on_success", "t 2/2 on_success", "d on_success"]
        );
        assert_eq!(chosen(&["d", "t 1/2"], false).unwrap(), ["t 1/2 on_success", "d on_success"]);
        assert_eq!(chosen(&["alarm"], true).unwrap(), ["alarm on_success"]);
    }

    #[test]
    fn a_job_that_cannot_run_here_is_an_error_only_if_it_would_run() {
        let yaml = "ok: {script: x}\nbridge: {trigger: p}\nlater: {trigger: p, when: manual}\n";
        let choose = |names: &[&str]| {
            let mut pipeline = testing::read(yaml, &[]).unwrap();
            let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
            choose(&mut pipeline, &names, true)
        };
        assert_eq!(choose(&["ok"]).unwrap(), [true, false, false]);
        let all = choose(&[]).unwrap_err();
        assert!(
            all.to_string()
                .ends_with("bridge.trigger: is not supported: the job cannot run without it")
        );
        assert!(choose(&["later"]).is_err());
    }

    #[test]
    fn names_that_cannot_run_are_errors() {
        let mut none = testing::read("a: {script: x, rules: [{if: $NO}]}\n", &[]).unwrap();
        let error = choose(&mut none, &[], true).unwrap_err();
        assert_eq!(error.to_string(), "no job is in this pipeline; left out by their rules: a");
        let error = chosen(&["gone"], true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "there is no job `gone` in this pipeline; there are: b, other, t 1/2, t 2/2, d, alarm"
        );
        assert_eq!(error.code(), 2);
        assert!(matches!(chosen(&["out"], true), Err(ExecError::LeftOut { .. })));
    }
}
