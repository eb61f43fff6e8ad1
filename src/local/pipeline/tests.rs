use std::time::Duration;

use super::{
    model::Need,
    testing::{jobs, read},
    *,
};

fn names(yaml: &str, given: &[(&str, &str)]) -> Vec<String> {
    read(yaml, given).unwrap().jobs.into_iter().map(|job| job.name).collect()
}

fn errors(yaml: &str) -> Vec<String> {
    match read(yaml, &[]).unwrap_err() {
        PipelineError::Invalid(problems) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("{other}"),
    }
}

fn warnings(yaml: &str) -> Vec<String> {
    read(yaml, &[]).unwrap().warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_job_gets_the_defaults_it_does_not_override() {
    let jobs = jobs(
        "image: old\nbefore_script: [one]\n\
         default: {image: new, after_script: [bye], timeout: 1h, hooks: {pre_get_sources_script: [h]}}\n\
         variables: {A: 1, B: {value: 2, description: d}}\n\
         a: {script: [[x], y]}\n\
         b: {script: z, before_script: [], image: own, after_script: null, inherit: {variables: [B]}}\n\
         c: {script: z, inherit: {default: [after_script], variables: false}}\n",
    );
    assert_eq!(jobs[0].work.script, ["one", "x", "y"]);
    assert_eq!(jobs[0].work.image.as_ref().unwrap().name, "new");
    assert_eq!(
        (jobs[0].work.after_script.len(), jobs[0].work.timeout),
        (1, Some(Duration::from_hours(1)))
    );
    assert_eq!((jobs[0].work.variables.len(), jobs[0].work.before_sources.len()), (2, 1));
    assert_eq!(jobs[1].work.script, ["z"]);
    assert_eq!(jobs[1].work.image.as_ref().unwrap().name, "own");
    assert_eq!((jobs[1].work.after_script.len(), jobs[1].work.variables.len()), (0, 1));
    assert!(jobs[2].work.image.is_none() && jobs[2].work.variables.is_empty());
    assert_eq!(jobs[2].work.after_script, ["bye"]);
}

#[test]
fn rules_let_jobs_in_with_their_own_when_and_variables() {
    let yaml = "\
a: {script: x, rules: [{if: '$CI_COMMIT_BRANCH == \"main\"', variables: {V: r}, allow_failure: yes}], variables: {V: j}}
b: {script: x, rules: [{if: $NO, when: always}, {when: never}]}
c: {script: x, rules: [{if: $GIVEN, when: manual}, {exists: ['*.yml'], when: on_failure}]}
d: {script: x, rules: [{exists: [gone]}]}
e: {script: x, rules: [[{if: $NO}], [{changes: [a], when: delayed, start_in: 1h}]]}
f: {script: x, when: manual}
";
    let pipeline = read(yaml, &[]).unwrap();
    let brief: Vec<String> = pipeline
        .jobs
        .iter()
        .map(|j| format!("{} {} {:?}", j.name, j.when.as_str(), j.allow_failure))
        .collect();
    assert_eq!(
        brief,
        ["a on_success Always", "c on_failure No", "e delayed No", "f manual Manual"]
    );
    assert_eq!(pipeline.left_out, ["b", "d"]);
    let values: Vec<&str> =
        pipeline.jobs[0].work.variables.iter().map(|v| v.value.as_str()).collect();
    assert_eq!(values, ["j", "r"], "the rule's value is last and so wins");
    let given = read(yaml, &[("GIVEN", "1")]).unwrap();
    assert_eq!(
        (given.jobs[1].when, &given.jobs[1].allow_failure),
        (When::Manual, &AllowFailure::No)
    );
    assert_eq!(warnings(yaml).len(), 1, "changes cannot be told: {:?}", warnings(yaml));
}

#[test]
fn only_and_except_look_at_the_ref() {
    let yaml = "\
a: {script: x, only: [main]}
b: {script: x, only: [tags]}
c: {script: x, only: {refs: [branches], variables: [$GIVEN]}}
d: {script: x, except: [/^ma/]}
e: {script: x, except: {refs: [tags]}}
";
    assert_eq!(names(yaml, &[]), ["a", "e"]);
    assert_eq!(names(yaml, &[("GIVEN", "1")]), ["a", "c", "e"]);
}

#[test]
fn a_matrix_is_seen_by_rules_and_named_by_needs() {
    let yaml = "\
stages: [b, t]
b: {stage: b, script: x, parallel: {matrix: [{OS: [linux, bsd]}]}, rules: [{if: '$OS != \"bsd\"'}, {if: $ALL}]}
t: {stage: t, script: x, needs: [b]}
u: {stage: t, script: x, needs: [{job: b, parallel: {matrix: [{OS: linux}]}, artifacts: no}], parallel: 2}
";
    assert_eq!(names(yaml, &[]), ["b: [linux]", "t", "u 1/2", "u 2/2"]);
    let jobs = read(yaml, &[("ALL", "1")]).unwrap().jobs;
    assert_eq!(jobs[2].needs.as_ref().unwrap().len(), 2);
    assert_eq!(jobs[3].needs, Some(vec![Need { job: 0, artifacts: false }]));
    assert_eq!((jobs[2].sources.clone(), jobs[3].sources.clone()), (vec![0, 1], vec![]));
    assert_eq!(jobs[4].node, Some((2, 2)));
}

#[test]
fn needs_may_take_their_cell_from_the_jobs_own() {
    let yaml = "\
b: {stage: build, script: x, parallel: {matrix: [{OS: [linux, bsd]}]}}
t:
  script: x
  parallel: {matrix: [{OS: [linux, bsd]}]}
  needs: [{job: b, parallel: {matrix: [{OS: '$[[ matrix.OS ]]'}]}}]
";
    let jobs = jobs(yaml);
    assert_eq!((jobs[2].sources.clone(), jobs[3].sources.clone()), (vec![0], vec![1]));
    let found = errors(&yaml.replace("$[[ matrix.OS ]]", "mac"));
    assert_eq!(found, [".gitlab-ci.yml:5: t.needs: no instance of `b` has these variables"]);
}

#[test]
fn artifacts_come_from_needs_from_dependencies_or_from_all_earlier_stages() {
    let jobs = jobs(
        "a: {stage: build, script: x}\nb: {stage: build, script: x}\n\
         all: {script: x}\nsome: {script: x, dependencies: [b]}\nnone: {script: x, dependencies: []}\n\
         need: {script: x, needs: [a, {job: gone, optional: true}]}\n",
    );
    let sources: Vec<&[usize]> = jobs.iter().map(|job| job.sources.as_slice()).collect();
    assert_eq!(sources, [&[][..], &[], &[0, 1], &[1], &[], &[0]]);
}

#[test]
fn keywords_that_would_change_what_runs_are_errors_with_their_line() {
    let found = errors(
        "include:\n  - template: Auto.yml\n\nbridge:\n  trigger: other/project\n\
         step:\n  run: []\nno-script:\n  image: x\nodd: 5\n",
    );
    assert_eq!(
        found,
        [
            ".gitlab-ci.yml:1: include: `template` is not supported (`Auto.yml`): only `local` is",
            ".gitlab-ci.yml:10: odd: is neither a known keyword nor a job",
            ".gitlab-ci.yml:8: no-script: has no `script`",
        ]
    );
}

#[test]
fn a_job_that_cannot_run_here_says_why_if_it_has_to() {
    let jobs = jobs("ok: {script: x}\nbridge:\n  trigger: other/project\nstep:\n  run: []\n");
    let refused: Vec<String> =
        jobs.iter().flat_map(|job| &job.work.refused).map(ToString::to_string).collect();
    assert_eq!(
        refused,
        [
            ".gitlab-ci.yml:3: bridge.trigger: is not supported: the job cannot run without it",
            ".gitlab-ci.yml:5: step.run: is not supported: the job cannot run without it",
        ]
    );
}

#[test]
fn wrong_links_between_jobs_are_errors() {
    let found = errors(
        "a: {script: x, needs: [gone], stage: build}\nb: {script: x, needs: [late], stage: build}\n\
         late: {script: x, dependencies: [nobody]}\nc: {script: x, needs: [d]}\nd: {script: x, needs: [c]}\n\
         e: {script: x, stage: nowhere}\nf: {script: x, rules: [{if: $NO}]}\ng: {script: x, needs: [f]}\n",
    );
    let whats: Vec<&str> = found.iter().map(|e| e.split_once(": ").unwrap().1).collect();
    assert_eq!(
        whats,
        [
            "e.stage: there is no `nowhere` in .pre, build, test, deploy, .post",
            "a.needs: there is no job `gone`",
            "b.needs: `late` is in a later stage",
            "late.dependencies: there is no job `nobody`",
            "g.needs: `f` is not in this pipeline: its rules leave it out",
            "c.needs: must not lead back to the job itself",
        ]
    );
}

#[test]
fn keywords_without_effect_are_named_once() {
    let found = warnings(
        "a:\n  script: x\n  tags: [t]\n  retry: 2\nb: {script: x, tags: [t], colour: red}\n",
    );
    assert_eq!(
        found,
        [
            ".gitlab-ci.yml:3: a.tags: has no effect here (also in b)",
            ".gitlab-ci.yml:4: a.retry: has no effect here",
            ".gitlab-ci.yml:5: b.colour: is not a known keyword and has no effect here",
        ]
    );
}

#[test]
fn values_of_the_wrong_type_are_named_with_their_keys() {
    let found = errors(
        "a:\n  script: {x: y}\n  allow_failure: maybe\n  timeout: soon\n  when: never\n\
         \x20 artifacts: {untracked: perhaps}\n  rules:\n    - if: $A ==\n",
    );
    let whats: Vec<&str> = found.iter().map(|e| e.split_once(": ").unwrap().1).collect();
    assert_eq!(
        whats,
        [
            "a.script: must be a string or a list of strings, nested at most 10 levels deep, found a \
             mapping",
            "a.when: must not be `never`, which is for rules only",
            "a.allow_failure: must be true, false or a mapping with `exit_codes`, found `maybe`",
            "a.artifacts.untracked: must be true or false, found `perhaps`",
            "a.timeout: must be a duration such as `1h 30m`, found `soon`",
            "a.rules.if: the expression ends too early",
        ]
    );
}

#[test]
fn rules_that_are_no_list_of_mappings_are_named_with_what_they_are() {
    let found = errors("a: {script: x, rules: always}\nb: {script: x, rules: [[x]]}\n");
    let whats: Vec<&str> = found.iter().map(|e| e.split_once(": ").unwrap().1).collect();
    assert_eq!(
        whats,
        [
            "a.rules: must be a list of mappings, found a string",
            "b.rules: must be a list of mappings, found a string in it",
        ]
    );
}

#[test]
fn a_workflow_gives_variables_and_never_forbids_a_run() {
    let yaml = "workflow: {rules: [{if: $GIVEN, variables: {W: yes}}]}\na: {script: x}\n";
    let given = read(yaml, &[("GIVEN", "1")]).unwrap();
    assert_eq!(given.jobs[0].work.variables[0].key, "W");
    assert!(given.warnings.is_empty());
    assert_eq!(
        warnings(yaml),
        [".gitlab-ci.yml:1: workflow.rules: would not make a pipeline; it is run all the same"]
    );
}

#[test]
fn allow_failure_may_depend_on_the_exit_code() {
    let jobs = jobs(
        "a: {script: x, allow_failure: {exit_codes: [3, 4]}}\nb: {script: x, allow_failure: {exit_codes: 5}}\n",
    );
    assert!(jobs[0].allow_failure.allows(Some(4)) && !jobs[0].allow_failure.allows(Some(1)));
    assert!(jobs[1].allow_failure.allows(Some(5)) && !jobs[1].allow_failure.allows(None));
}
