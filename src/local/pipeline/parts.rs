//! The parts of a job that are asked of the runner nearly as they are written: images, services,
//! variables, artifacts, caches.

use serde_yaml::Value;

use super::{fields::Fields, problem::Report, value};
use crate::{
    config::PullPolicy,
    workload::{
        spec::{ArtifactSpec, CacheSpec, ImageSpec, ServiceSpec, When},
        transfer::Format,
        variable::Variable,
    },
};

/// A cache; its key may depend on the contents of files.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    /// The cache; its key is empty.
    pub(crate) spec: CacheSpec,
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
        /// What the key begins with, before a dash.
        prefix: Option<String>,
    },
}

/// `variables`, of the file, a job, a rule or a service.
pub(crate) fn variables(fields: &Fields<'_>, report: &mut Report) -> Vec<Variable> {
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
            let found = value::kind(content);
            let what =
                format!("must be a string, a number or a mapping with `value`, found {found}");
            report.error(&path, what);
            continue;
        };
        out.push(Variable { key, value, public: true, raw, ..Variable::default() });
    }
    out
}

/// `image`.
pub(crate) fn image(fields: &Fields<'_>, report: &mut Report) -> Option<ImageSpec> {
    let written = fields.value("image")?;
    let path = fields.path("image");
    let (image, fields) = container(written, &path, report)?;
    if let Some(fields) = fields {
        fields.only(IMAGE_KEYWORDS, report);
    }
    Some(image).filter(|image| !image.name.is_empty())
}

/// `services`.
pub(crate) fn services(fields: &Fields<'_>, report: &mut Report) -> Vec<ServiceSpec> {
    let Some(written) = fields.value("services") else { return Vec::new() };
    let path = fields.path("services");
    let items = value::items(written).unwrap_or_default();
    items.into_iter().filter_map(|item| service(item, &path, report)).collect()
}

fn service(written: &Value, path: &[&str], report: &mut Report) -> Option<ServiceSpec> {
    let (image, fields) = container(written, path, report)?;
    let Some(fields) = fields else {
        return Some(ServiceSpec { image, ..ServiceSpec::default() });
    };
    fields.only(&[IMAGE_KEYWORDS, &["alias", "command", "variables"][..]].concat(), report);
    Some(ServiceSpec {
        image,
        alias: fields.texts("alias", report).join(","),
        command: fields.texts("command", report),
        variables: variables(&fields, report),
    })
}

/// Keywords of images and services.
const IMAGE_KEYWORDS: &[&str] = &["name", "entrypoint", "pull_policy", "docker", "kubernetes"];

/// An image or a service: a name, or a mapping, which is given too for what else is in it.
fn container<'a>(
    written: &'a Value,
    path: &[&'a str],
    report: &mut Report,
) -> Option<(ImageSpec, Option<Fields<'a>>)> {
    if let Some(name) = value::text(written) {
        return Some((ImageSpec { name, ..ImageSpec::default() }, None));
    }
    let Value::Mapping(map) = written else {
        let found = value::kind(written);
        report.error(path, format!("must be a name or a mapping with `name`, found {found}"));
        return None;
    };
    let fields = Fields::new(map, path);
    let Some(name) = fields.text("name", report) else {
        report.error(path, "must have a `name`");
        return None;
    };
    let mut image = ImageSpec {
        name,
        entrypoint: fields.maybe_texts("entrypoint", report),
        pull_policy: pull_policies(&fields, report),
        ..ImageSpec::default()
    };
    if let Some(docker) = fields.inner("docker", report) {
        docker.only(&["platform", "user"], report);
        let mut option =
            |key: &'static str| docker.text(key, report).filter(|option| !option.is_empty());
        (image.platform, image.user) = (option("platform"), option("user"));
    }
    Some((image, Some(fields)))
}

fn pull_policies(fields: &Fields<'_>, report: &mut Report) -> Vec<PullPolicy> {
    let mut policies = Vec::new();
    for text in fields.texts("pull_policy", report) {
        let known = [PullPolicy::Always, PullPolicy::IfNotPresent, PullPolicy::Never];
        match known.into_iter().find(|policy| policy.as_str() == text) {
            Some(policy) => policies.push(policy),
            None => {
                let names = known.map(PullPolicy::as_str).join(", ");
                let what = format!("must be one of {names}, found `{text}`");
                report.error(&fields.path("pull_policy"), what);
            }
        }
    }
    policies
}

/// `when` of an artifact or a cache.
fn saved_when(fields: &Fields<'_>, report: &mut Report) -> When {
    match fields.text("when", report).as_deref() {
        None | Some("on_success") => When::OnSuccess,
        Some("on_failure") => When::OnFailure,
        Some("always") => When::Always,
        Some(other) => {
            let what = format!("must be one of on_success, on_failure, always, found `{other}`");
            report.error(&fields.path("when"), what);
            When::OnSuccess
        }
    }
}

/// `artifacts`: the archive, then each report.
pub(crate) fn artifacts(fields: &Fields<'_>, report: &mut Report) -> Vec<ArtifactSpec> {
    let Some(inner) = fields.inner("artifacts", report) else { return Vec::new() };
    let known = ["name", "untracked", "paths", "exclude", "when", "expire_in", "reports"];
    inner.only(&known, report);
    let archive = ArtifactSpec {
        name: inner.text("name", report).unwrap_or_default(),
        untracked: inner.boolean("untracked", report).unwrap_or_default(),
        paths: inner.texts("paths", report),
        exclude: inner.texts("exclude", report),
        when: saved_when(&inner, report),
        kind: "archive".to_owned(),
        format: Some(Format::Zip),
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
        out.push(ArtifactSpec {
            name: report_name(&kind),
            paths,
            exclude: Vec::new(),
            untracked: false,
            when: When::Always,
            format: Some(report_format(&kind)),
            kind,
            expire_in: expire_in.clone(),
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
fn report_format(kind: &str) -> Format {
    match kind {
        "junit"
        | "dotenv"
        | "metrics"
        | "cobertura"
        | "jacoco"
        | "cluster_applications"
        | "cyclonedx"
        | "annotations"
        | "repository_xray" => Format::Gzip,
        "lsif" => Format::Zip,
        _ => Format::Raw,
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
        let found = value::kind(written);
        report.error(path, format!("must be a mapping or a list of mappings, found {found}"));
        return None;
    };
    let fields = Fields::new(map, path);
    let known = ["key", "untracked", "paths", "policy", "when", "fallback_keys", "unprotect"];
    fields.only(&known, report);
    let spec = CacheSpec {
        key: String::new(),
        untracked: fields.boolean("untracked", report).unwrap_or_default(),
        policy: fields.word("policy", &["pull-push", "pull", "push"], report),
        paths: fields.texts("paths", report),
        when: saved_when(&fields, report),
        fallback_keys: fields.texts("fallback_keys", report),
    };
    if spec.paths.is_empty() && !spec.untracked {
        return None;
    }
    let key = match fields.value("key") {
        Some(Value::Mapping(key)) => files_key(&Fields::new(key, &fields.path("key")), report),
        Some(_) => CacheKey::Text(fields.text("key", report).unwrap_or_default()),
        // GitLab: `Gitlab::Ci::Config::Entry::Key.default`.
        None => CacheKey::Text("default".to_owned()),
    };
    Some(Cache { spec, key })
}

fn files_key(fields: &Fields<'_>, report: &mut Report) -> CacheKey {
    fields.only(&["files", "prefix"], report);
    let files = fields.texts("files", report);
    if files.is_empty() {
        report.error(&fields.path("files"), "must name at least one file");
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
        assert_eq!(image.pull_policy, [PullPolicy::Always]);
        assert_eq!(
            (image.platform.as_deref(), image.user.as_deref()),
            (Some("arm64"), Some("1000"))
        );
        assert!(said.is_empty());
        let (_, said) = read("image: {name: x, pull_policy: [often]}", super::image);
        assert_eq!(
            said,
            ["test.image.pull_policy: must be one of always, if-not-present, never, found `often`"]
        );
        assert_eq!(
            read("image: {entrypoint: [a]}", super::image).1,
            ["test.image: must have a `name`"]
        );
    }

    #[test]
    fn services_have_aliases_and_variables() {
        let (services, said) = read(
            "services:\n  - docker:dind\n  - {name: pg, alias: db, command: [a, b], variables: {A: 1}, color: red}",
            services,
        );
        assert_eq!(services[0].image.name, "docker:dind");
        assert_eq!((services[1].alias.as_str(), services[1].command.len()), ("db", 2));
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
                let (kind, format) = (&a.kind, a.format.unwrap().as_str());
                format!("{kind} {format} {:?} {} {:?} {}", a.when, a.name, a.paths, a.expire_in)
            })
            .collect();
        assert_eq!(
            brief,
            [
                "archive zip Always n [\"out/\"] 1 day",
                "junit gzip Always junit.xml [\"a.xml\", \"b.xml\"] 1 day",
                "dotenv gzip Always .env [\"build.env\"] 1 day",
                "cobertura gzip Always cobertura-coverage.xml [\"c.xml\"] 1 day",
                "sast raw Always gl-sast.json [\"s.json\"] 1 day",
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
        assert_eq!(caches[0].spec.policy, "pull");
        let (_, said) = read("cache: {paths: [a], policy: never}", super::caches);
        assert_eq!(
            said,
            ["test.cache.policy: must be one of pull-push, pull, push, found `never`"]
        );
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
        assert_eq!(
            said,
            [
                "test.variables.M: must be a string, a number or a mapping with `value`, found a list"
            ]
        );
    }
}
