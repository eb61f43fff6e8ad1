//! Reads a pipeline file and the local files it includes into one mapping.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_yaml::{Mapping, Value};

use super::{
    expand::expand,
    problem::{PipelineError, Report},
    rules::{self, Variables},
    value, yaml,
};
use crate::base::glob::{self, Wildcards};

/// How deep files may include files (GitLab: 100 levels; no real pipeline gets near ten).
const MAX_DEPTH: usize = 20;

/// What `include` needs to know.
pub(crate) struct Loader<'a> {
    /// The project; `include: local` is relative to it.
    pub(crate) root: &'a Path,
    /// Variables that are known before the file is read.
    pub(crate) variables: &'a BTreeMap<String, String>,
    pub(crate) report: &'a mut Report,
}

impl Loader<'_> {
    /// Reads `file` with everything it includes; `<<` is resolved, `extends` and `!reference`
    /// are not yet.
    pub(crate) fn load(&mut self, file: &Path) -> Result<Mapping, PipelineError> {
        self.read(file, &mut Vec::new())
    }

    fn read(&mut self, file: &Path, open: &mut Vec<PathBuf>) -> Result<Mapping, PipelineError> {
        let name = file.strip_prefix(self.root).unwrap_or(file).display().to_string();
        let text = std::fs::read_to_string(file)
            .map_err(|source| PipelineError::Read { path: file.to_owned(), source })?;
        self.report.source(&name, &text);
        let mut root = self.parse(&name, &text)?;
        let Some(include) = root.remove("include") else { return Ok(root) };
        open.push(file.to_owned());
        let mut merged = Mapping::new();
        for entry in value::items(&include).unwrap_or_default() {
            for path in self.included(entry) {
                if open.contains(&path) || open.len() >= MAX_DEPTH {
                    self.report.error(&["include"], format!("`{name}` includes itself"));
                    continue;
                }
                value::deep_merge(&mut merged, self.read(&path, open)?);
            }
        }
        open.pop();
        value::deep_merge(&mut merged, root);
        Ok(merged)
    }

    /// The mapping of a file; a header document with `spec` is refused when it asks for inputs.
    fn parse(&mut self, name: &str, text: &str) -> Result<Mapping, PipelineError> {
        let mut documents = yaml::documents(text)
            .map_err(|source| PipelineError::Yaml { file: name.to_owned(), source })?;
        if documents.len() > 1 && documents[0].get("spec").is_some() {
            let header = documents.remove(0);
            if header["spec"].get("inputs").is_some() {
                self.report.error(&["spec", "inputs"], "inputs are not supported");
            }
        }
        if documents.len() > 1 {
            self.report.error(&[], format!("`{name}` has more than one YAML document"));
        }
        match documents.into_iter().next() {
            Some(Value::Mapping(mapping)) => Ok(mapping),
            None | Some(Value::Null) => Ok(Mapping::new()),
            Some(_) => {
                self.report.error(&[], format!("`{name}` must be a mapping of jobs and keywords"));
                Ok(Mapping::new())
            }
        }
    }

    /// The files that one entry of `include` names.
    fn included(&mut self, entry: &Value) -> Vec<PathBuf> {
        let local = match entry {
            Value::String(text) if text.starts_with("http://") || text.starts_with("https://") => {
                self.report
                    .error(&["include"], format!("remote includes are not supported: `{text}`"));
                return Vec::new();
            }
            Value::String(text) => text.clone(),
            Value::Mapping(mapping) => {
                for kind in ["remote", "project", "template", "component"] {
                    if let Some(what) = mapping.get(kind) {
                        let what = value::text(what).unwrap_or_default();
                        let what = format!("`{kind}` is not supported (`{what}`): only `local` is");
                        self.report.error(&["include"], what);
                        return Vec::new();
                    }
                }
                if mapping.get("inputs").is_some() {
                    self.report.error(&["include", "inputs"], "inputs are not supported");
                }
                if !self.wanted(mapping) {
                    return Vec::new();
                }
                let Some(local) = mapping.get("local").and_then(value::text) else {
                    self.report
                        .error(&["include"], "each entry must be a path or a mapping with `local`");
                    return Vec::new();
                };
                local
            }
            _ => {
                self.report
                    .error(&["include"], "each entry must be a path or a mapping with `local`");
                return Vec::new();
            }
        };
        self.find(&expand(&local, self.variables))
    }

    /// Whether the `rules` of an entry let it in.
    fn wanted(&mut self, entry: &Mapping) -> bool {
        let Some(rules) = entry.get("rules") else { return true };
        let variables = Variables::new(self.variables);
        for rule in value::items(rules).unwrap_or_default() {
            let holds = match rule.get("if").and_then(value::text) {
                None => true,
                Some(text) => match rules::holds(&text, &variables) {
                    Ok(holds) => holds,
                    Err(what) => {
                        self.report.error(&["include", "rules", "if"], what);
                        false
                    }
                },
            };
            let exists = rule.get("exists").is_none_or(|exists| {
                value::texts(exists).unwrap_or_default().iter().any(|p| self.root.join(p).exists())
            });
            if holds && exists {
                return rule.get("when").and_then(Value::as_str) != Some("never");
            }
        }
        false
    }

    fn find(&mut self, local: &str) -> Vec<PathBuf> {
        let relative = local.trim_start_matches('/');
        if Path::new(relative).components().any(|c| c.as_os_str() == "..") {
            self.report.error(&["include"], format!("`{local}` leaves the project"));
            return Vec::new();
        }
        if !relative.contains('*') {
            let path = self.root.join(relative);
            if !path.is_file() {
                self.report.error(&["include"], format!("local file `{local}` does not exist"));
                return Vec::new();
            }
            return vec![path];
        }
        let Ok(glob) = glob::compile(relative, Wildcards::WithinComponent) else {
            self.report.error(&["include"], format!("`{local}` is not a valid pattern"));
            return Vec::new();
        };
        let mut paths = Vec::new();
        let walk = walkdir::WalkDir::new(self.root).sort_by_file_name();
        for entry in walk.into_iter().filter_entry(|e| e.file_name() != ".git").flatten() {
            let yaml = entry.path().extension().is_some_and(|e| e == "yml" || e == "yaml");
            let inside = entry.path().strip_prefix(self.root).unwrap_or(entry.path());
            if yaml && entry.file_type().is_file() && glob.is_match(inside) {
                paths.push(entry.into_path());
            }
        }
        if paths.is_empty() {
            self.report.warn(&["include"], format!("no local file matches `{local}`"));
        }
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)]) -> (Mapping, Report) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let variables = BTreeMap::from([("TEAM".to_owned(), "a".to_owned())]);
        let mut report = Report::default();
        let mut loader = Loader { root: dir.path(), variables: &variables, report: &mut report };
        let mapping = loader.load(&dir.path().join(".gitlab-ci.yml")).unwrap();
        (mapping, report)
    }

    fn yaml(text: &str) -> Mapping {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn includes_are_merged_in_order_under_the_file_that_names_them() {
        let (mapping, report) = load(&[
            (
                ".gitlab-ci.yml",
                "include:\n  - /ci/a.yml\n  - local: 'ci/$TEAM/*.yml'\n    rules:\n      - if: $TEAM == \"a\"\n\
                 \x20 - {local: ci/never.yml, rules: [{if: $NONE}]}\ntest: {script: [main]}\n",
            ),
            ("ci/a.yml", "include: ci/deep.yml\ntest: {script: [a], image: a}\nx: {script: 1}\n"),
            ("ci/deep.yml", "x: {script: 0, tags: [t]}\n"),
            ("ci/a/1.yml", "y: {script: 1}\n"),
            ("ci/a/2.yml", "y: {script: 2}\n"),
            ("ci/a/sub/3.yml", "z: {script: 3}\n"),
        ]);
        assert_eq!(report.errors, []);
        let expected =
            "{x: {script: 1, tags: [t]}, test: {script: [main], image: a}, y: {script: 2}}";
        assert_eq!(mapping, yaml(expected));
    }

    #[test]
    fn includes_that_need_a_server_a_missing_file_and_a_cycle_are_errors() {
        let (_, report) = load(&[
            (
                ".gitlab-ci.yml",
                "include:\n  - remote: https://x/y.yml\n  - template: Auto\n  - https://x\n  - gone.yml\n\
                 \x20 - ../out.yml\n  - me.yml\n",
            ),
            ("me.yml", "include: [.gitlab-ci.yml]\n"),
        ]);
        let shown: Vec<&str> = report.errors.iter().map(|p| p.what.as_str()).collect();
        assert_eq!(
            shown,
            [
                "`remote` is not supported (`https://x/y.yml`): only `local` is",
                "`template` is not supported (`Auto`): only `local` is",
                "remote includes are not supported: `https://x`",
                "local file `gone.yml` does not exist",
                "`../out.yml` leaves the project",
                "`me.yml` includes itself",
            ]
        );
        assert_eq!(report.errors[0].line, Some(1));
    }

    #[test]
    fn broken_yaml_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ci.yml");
        std::fs::write(&file, "a: [").unwrap();
        let mut report = Report::default();
        let error = Loader { root: dir.path(), variables: &BTreeMap::new(), report: &mut report }
            .load(&file)
            .unwrap_err();
        assert_eq!(error.to_string(), "`ci.yml` is not valid YAML");
    }
}
