//! Pipelines from text, for tests.

use std::collections::BTreeMap;

use super::{Job, Pipeline, PipelineError, Source};

/// Reads a pipeline in an empty project on the branch `main`.
pub(crate) fn read(yaml: &str, given: &[(&str, &str)]) -> Result<Pipeline, PipelineError> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(".gitlab-ci.yml");
    std::fs::write(&file, yaml).unwrap();
    let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let predefined = map(&[
        ("CI_COMMIT_BRANCH", "main"),
        ("CI_COMMIT_REF_NAME", "main"),
        ("CI_PIPELINE_SOURCE", "push"),
    ]);
    super::read(Source {
        root: dir.path(),
        file: &file,
        predefined: &predefined,
        given: &map(given),
    })
}

/// The jobs of a pipeline that is valid.
pub(crate) fn jobs(yaml: &str) -> Vec<Job> {
    read(yaml, &[]).unwrap().jobs
}
