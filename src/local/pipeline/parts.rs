//! The parts of a job that go into its payload nearly as they are written: images, services,
//! variables, artifacts, caches.

use serde_yaml::Value;

use super::{fields::Fields, problem::Report, value};
use crate::gitlab::api::wire;

const WHEN: &[&str] = &["on_success", "on_failure", "always"];

/// A cache; its key may depend on the contents of files.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    /// The cache without its key.
    pub(crate) wire: wire::Cache,
    /// The key.
    pub(crate) key: CacheKey,
}

/// Key of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CacheKey {
    /// As written.
    Text(String),
    /// Made from the contents of files.
    Files {
        /// Globs relative to the project.
        files: Vec<String>,
        /// Put before it, with a dash.
        prefix: Option<String>,
    },
}

/// `variables`, of the file, a job, a rule or a service.
pub(crate) fn variables(fields: &Fields<'_>, report: &mut Report) -> Vec<wire::Variable> {
    let Some(inner) = fields.inner("variables", report) else { return Vec::new() };
    let mut out = Vec::new();
    for (key, content) in inner.map {
        let Some(key) = value::text(key) else { continue };
        let (content, raw) = match content {
            Value::Mapping(detailed) => {
                let raw = detailed.get("expand").and_then(value::boolean) == Some(false);
                (detailed.get("value").unwrap_or(&Value::Null), raw)
            }
            other => (other, false),
        };
        let text = match content {
            Value::Null => Some(String::new()),
            other => value::text(other),
        };
        let Some(value) = text else {
            let mut path = fields.path("variables");
            path.push(&key);
            report.error(&path, "is a text, a number or a mapping with `value`");
            continue;
        };
        out.push(wire::Variable { key, value, public: true, raw, ..wire::Variable::default() });
    }
    out
}

/// `image`.
pub(crate) fn image(fields: &Fields<'_>, report: &mut Report) -> Option<wire::Image> {
    let written = fields.value("image")?;
    let image = container(written, &fields.path("image"), &[], report);
    image.filter(|image| !image.name.is_empty())
}

/// `services`.
pub(crate) fn services(fields: &Fields<'_>, report: &mut Report) -> Vec<wire::Image> {
    let Some(written) = fields.value("services") else { return Vec::new() };
    let known = &["alias", "command", "variables"];
    let path = fields.path("services");
    let items = value::items(written).unwrap_or_default();
    items.into_iter().filter_map(|item| container(item, &path, known, report)).collect()
}

/// An image or a service: a name, or a mapping.
fn container(
    written: &Value,
    path: &[&str],
    known: &[&str],
    report: &mut Report,
) -> Option<wire::Image> {
    if let Some(name) = value::text(written) {
        return Some(wire::Image { name, ..wire::Image::default() });
    }
    let Value::Mapping(map) = written else {
        report.error(path, "is a name or a mapping with `name`");
        return None;
    };
    let fields = Fields::new(map, path);
    let mut all = vec!["name", "entrypoint", "pull_policy", "docker", "kubernetes"];
    all.extend(known);
    fields.only(&all, report);
    let Some(name) = fields.text("name", report) else {
        report.error(path, "needs `name`");
        return None;
    };
    let mut executor_opts = serde_json::Map::new();
    for executor in ["docker", "kubernetes"] {
        if let Some(options) = fields.inner(executor, report) {
            let mut sent = serde_json::Map::new();
            for (key, option) in options.map {
                if let (Some(key), Some(option)) = (value::text(key), value::text(option)) {
                    sent.insert(key, option.into());
                }
            }
            executor_opts.insert(executor.to_owned(), sent.into());
        }
    }
    Some(wire::Image {
        name,
        alias: fields.texts("alias", report).join(","),
        command: fields.maybe_texts("command", report),
        entrypoint: fields.maybe_texts("entrypoint", report),
        variables: if known.is_empty() { Vec::new() } else { variables(&fields, report) },
        pull_policy: fields.texts("pull_policy", report),
        executor_opts,
    })
}

/// `artifacts`: the archive, then each report.
pub(crate) fn artifacts(fields: &Fields<'_>, report: &mut Report) -> Vec<wire::Artifact> {
    let Some(inner) = fields.inner("artifacts", report) else { return Vec::new() };
    let known = ["name", "untracked", "paths", "exclude", "when", "expire_in", "reports"];
    inner.only(&known, report);
    let archive = wire::Artifact {
        name: inner.text("name", report).unwrap_or_default(),
        untracked: inner.boolean("untracked", report).unwrap_or_default(),
        paths: inner.texts("paths", report),
        exclude: inner.texts("exclude", report),
        when: inner.word("when", WHEN, report),
        artifact_type: "archive".to_owned(),
        artifact_format: "zip".to_owned(),
        expire_in: inner.text("expire_in", report).unwrap_or_default(),
    };
    let expire_in = archive.expire_in.clone();
    let mut out = Vec::new();
    if !archive.paths.is_empty() || archive.untracked {
        out.push(archive);
    }
    let Some(reports) = inner.inner("reports", report) else { return out };
    for kind in reports.map.keys().filter_map(Value::as_str) {
        let (kind, paths) = if kind == "coverage_report" {
            let Some(coverage) = reports.inner(kind, report) else { continue };
            let format = coverage.word("coverage_format", &["cobertura", "jacoco"], report);
            (format, coverage.texts("path", report))
        } else {
            (kind.to_owned(), reports.texts(kind, report))
        };
        if paths.is_empty() {
            continue;
        }
        out.push(wire::Artifact {
            name: report_name(&kind),
            paths,
            when: "always".to_owned(),
            artifact_format: report_format(&kind).to_owned(),
            artifact_type: kind,
            expire_in: expire_in.clone(),
            ..wire::Artifact::default()
        });
    }
    out
}

/// Name of a report's file (GitLab: `Enums::Ci::JobArtifact.default_file_names`).
fn report_name(kind: &str) -> String {
    match kind {
        "junit" => "junit.xml".to_owned(),
        "dotenv" => ".env".to_owned(),
        "metrics" => "metrics.txt".to_owned(),
        "cobertura" => "cobertura-coverage.xml".to_owned(),
        "jacoco" => "jacoco-coverage.xml".to_owned(),
        "codequality" => "gl-code-quality-report.json".to_owned(),
        "terraform" => "tfplan.json".to_owned(),
        other => format!("gl-{}.json", other.replace('_', "-")),
    }
}

/// Format of a report (GitLab: `Enums::Ci::JobArtifact.type_and_format_pairs`).
fn report_format(kind: &str) -> &'static str {
    match kind {
        "junit"
        | "dotenv"
        | "metrics"
        | "cobertura"
        | "jacoco"
        | "cluster_applications"
        | "cyclonedx"
        | "annotations"
        | "repository_xray" => "gzip",
        "lsif" => "zip",
        _ => "raw",
    }
}

/// `cache`: one or a list.
pub(crate) fn caches(fields: &Fields<'_>, report: &mut Report) -> Vec<Cache> {
    let Some(written) = fields.value("cache") else { return Vec::new() };
    let path = fields.path("cache");
    let items = value::items(written).unwrap_or_default();
    items.into_iter().filter_map(|item| cache(item, &path, report)).collect()
}

fn cache(written: &Value, path: &[&str], report: &mut Report) -> Option<Cache> {
    let Value::Mapping(map) = written else {
        report.error(path, "is a mapping or a list of mappings");
        return None;
    };
    let fields = Fields::new(map, path);
    let known = ["key", "untracked", "paths", "policy", "when", "fallback_keys", "unprotect"];
    fields.only(&known, report);
    let wire = wire::Cache {
        key: String::new(),
        untracked: fields.boolean("untracked", report).unwrap_or_default(),
        policy: fields.word("policy", &["pull-push", "pull", "push"], report),
        paths: fields.texts("paths", report),
        when: fields.word("when", WHEN, report),
        fallback_keys: fields.texts("fallback_keys", report),
    };
    if wire.paths.is_empty() && !wire.untracked {
        return None;
    }
    let key = match fields.value("key") {
        Some(Value::Mapping(key)) => files_key(&Fields::new(key, &fields.path("key")), report),
        Some(_) => CacheKey::Text(fields.text("key", report).unwrap_or_default()),
        // GitLab: `Gitlab::Ci::Config::Entry::Key.default`.
        None => CacheKey::Text("default".to_owned()),
    };
    Some(Cache { wire, key })
}

fn files_key(fields: &Fields<'_>, report: &mut Report) -> CacheKey {
    fields.only(&["files", "prefix"], report);
    let files = fields.texts("files", report);
    if files.is_empty() {
        report.error(&fields.path("files"), "is needed");
    }
    CacheKey::Files { files, prefix: fields.text("prefix", report) }
}

#[cfg(test)]
mod tests {
    use serde_yaml::Mapping;

    use super::*;

    fn read<T>(yaml: &str, part: impl Fn(&Fields<'_>, &mut Report) -> T) -> (T, Vec<String>) {
        let map: Mapping = serde_yaml::from_str(yaml).unwrap();
        let mut report = Report::default();
        let read = part(&Fields::new(&map, &["test"]), &mut report);
        let said = report.errors.iter().chain(&report.warnings);
        (read, said.map(|p| format!("{}: {}", p.path, p.what)).collect())
    }

    #[test]
    fn images_are_names_or_mappings() {
        let (image, said) = read("image: ruby:3", image);
        assert_eq!((image.unwrap().name.as_str(), said.len()), ("ruby:3", 0));
        let (image, said) = read(
            "image: {name: x, entrypoint: [''], pull_policy: always, docker: {platform: arm64, user: 1000}}",
            super::image,
        );
        let image = image.unwrap();
        assert_eq!(image.entrypoint.unwrap(), [""]);
        assert_eq!(image.pull_policy, ["always"]);
        assert_eq!(image.executor_opts["docker"]["user"], "1000");
        assert!(said.is_empty());
        assert_eq!(read("image: {entrypoint: [a]}", super::image).1, ["test.image: needs `name`"]);
    }

    #[test]
    fn services_have_aliases_and_variables() {
        let (services, said) = read(
            "services:\n  - docker:dind\n  - {name: pg, alias: db, command: [a, b], variables: {A: 1}, color: red}",
            services,
        );
        assert_eq!(services[0].name, "docker:dind");
        assert_eq!(
            (services[1].alias.as_str(), services[1].command.clone().unwrap().len()),
            ("db", 2)
        );
        assert_eq!(services[1].variables[0].value, "1");
        assert_eq!(said, ["test.services.color: is not supported and has no effect here"]);
    }

    #[test]
    fn reports_become_artifacts_of_their_own() {
        let (artifacts, said) = read(
            "artifacts:\n  paths: [out/]\n  exclude: [out/*.o]\n  name: n\n  when: always\n  expire_in: 1 day\n\
             \x20 untracked: no\n  reports:\n    junit: [a.xml, b.xml]\n    dotenv: build.env\n\
             \x20   coverage_report: {coverage_format: cobertura, path: c.xml}\n    sast: s.json\n",
            artifacts,
        );
        assert!(said.is_empty(), "{said:?}");
        let brief: Vec<String> = artifacts
            .iter()
            .map(|a| {
                let (t, f, w) = (&a.artifact_type, &a.artifact_format, &a.when);
                format!("{t} {f} {w} {} {:?} {}", a.name, a.paths, a.expire_in)
            })
            .collect();
        assert_eq!(
            brief,
            [
                "archive zip always n [\"out/\"] 1 day",
                "junit gzip always junit.xml [\"a.xml\", \"b.xml\"] 1 day",
                "dotenv gzip always .env [\"build.env\"] 1 day",
                "cobertura gzip always cobertura-coverage.xml [\"c.xml\"] 1 day",
                "sast raw always gl-sast.json [\"s.json\"] 1 day",
            ]
        );
    }

    #[test]
    fn caches_have_a_key_a_list_or_files() {
        let (caches, said) = read(
            "cache:\n  - {paths: [a], key: $CI_COMMIT_REF_SLUG, policy: pull, fallback_keys: [x]}\n\
             \x20 - {paths: [b], key: {files: [Cargo.lock], prefix: p}, when: always}\n  - {paths: [c]}\n",
            caches,
        );
        assert!(said.is_empty(), "{said:?}");
        let keys: Vec<&CacheKey> = caches.iter().map(|c| &c.key).collect();
        let files = CacheKey::Files { files: vec!["Cargo.lock".into()], prefix: Some("p".into()) };
        let text = |t: &str| CacheKey::Text(t.to_owned());
        assert_eq!(keys, [&text("$CI_COMMIT_REF_SLUG"), &files, &text("default")]);
        assert_eq!(caches[0].wire.policy, "pull");
        let (_, said) = read("cache: {paths: [a], policy: never}", super::caches);
        assert_eq!(said, ["test.cache.policy: is one of pull-push, pull, push, not `never`"]);
    }

    #[test]
    fn variables_keep_their_order_and_may_be_raw() {
        let (variables, said) = read(
            "variables: {B: 1.5, A: {value: $B, expand: no, description: d}, N: null, M: [1]}",
            variables,
        );
        let brief: Vec<_> =
            variables.iter().map(|v| (v.key.as_str(), v.value.as_str(), v.raw)).collect();
        assert_eq!(brief, [("B", "1.5", false), ("A", "$B", true), ("N", "", false)]);
        assert_eq!(said, ["test.variables.M: is a text, a number or a mapping with `value`"]);
    }
}
