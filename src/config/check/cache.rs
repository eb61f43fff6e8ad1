//! `[runners.cache]` and its stores. A store that cannot be used is a warning and means local
//! caches alone, as for gitlab-runner: a wrong cache must not stop jobs.

use url::Url;

use crate::config::{
    cache::{CacheConfig, S3Config},
    file::Section,
};

/// The region when the file names none.
const DEFAULT_REGION: &str = "us-east-1";

pub(super) fn cache(section: Section<'_>) -> CacheConfig {
    let kind = section.text("Type").unwrap_or_default();
    let s3_section = section.table("s3");
    let s3 = match kind.to_ascii_lowercase().as_str() {
        "" => None,
        "s3" => s3(&s3_section),
        "gcs" | "azure" => {
            section.warn("Type", format!("the store `{kind}` is not supported: no remote cache"));
            None
        }
        _ => {
            section.warn("Type", format!("the store `{kind}` is unknown: no remote cache"));
            None
        }
    };
    read_all_keys(&s3_section);
    s3_section.finish();
    for (table, keys) in [
        (
            "gcs",
            ["AccessID", "PrivateKey", "CredentialsFile", "BucketName", "UniverseDomain"]
                .as_slice(),
        ),
        ("azure", ["AccountName", "AccountKey", "ContainerName", "StorageDomain"].as_slice()),
    ] {
        let table = section.table(table);
        for key in keys {
            table.has(key);
        }
        table.finish();
    }
    let cache = CacheConfig {
        path: section.text("Path").unwrap_or_default(),
        shared: section.boolean("Shared").unwrap_or(false),
        max_uploaded_archive_size: section.positive("MaxUploadedArchiveSize").unwrap_or(0),
        s3,
    };
    section.finish();
    cache
}

/// Keys of a store that is not in use are not warned of.
fn read_all_keys(section: &Section<'_>) {
    for key in [
        "ServerAddress",
        "AccessKey",
        "SecretKey",
        "SessionToken",
        "BucketName",
        "BucketLocation",
        "Insecure",
        "AuthenticationType",
        "ServerSideEncryption",
        "ServerSideEncryptionKeyID",
        "DualStack",
        "PathStyle",
        "Accelerate",
        "RoleARN",
        "UploadRoleARN",
        "AssumeRoleMaxConcurrency",
        "DisableAssumeRoleCredentialsCaching",
    ] {
        section.has(key);
    }
}

fn s3(section: &Section<'_>) -> Option<S3Config> {
    let server = section.text("ServerAddress");
    let access_key = section.text("AccessKey");
    let secret_key = section.secret("SecretKey");
    let incomplete = server.is_none() || access_key.is_none() || secret_key.is_empty();
    match section.text("AuthenticationType").map(|text| text.to_ascii_lowercase()).as_deref() {
        Some("access-key") => {}
        None if !incomplete => {}
        Some("iam") => {
            section.warn("AuthenticationType", "`iam` is not supported: no remote cache");
            return None;
        }
        None => {
            let message = "without ServerAddress, AccessKey and SecretKey gitlab-runner asks \
                           for the machine's role (iam), which is not supported: no remote cache";
            section.warn("AuthenticationType", message);
            return None;
        }
        Some(_) => {
            section.warn("AuthenticationType", "must be access-key or iam: no remote cache");
            return None;
        }
    }
    for key in ["RoleARN", "UploadRoleARN"] {
        if section.text(key).is_some() {
            section.warn(key, "roles are not supported: no remote cache");
            return None;
        }
    }
    let Some(access_key) = access_key.filter(|_| !secret_key.is_empty()) else {
        section.warn("AccessKey", "AccessKey and SecretKey are needed: no remote cache");
        return None;
    };
    let Some(bucket) = section.text("BucketName") else {
        section.warn("BucketName", "is missing: no remote cache");
        return None;
    };
    section.unsupported(
        "ServerSideEncryption",
        "is not supported: objects get what the bucket's own default says",
    );
    section.unsupported("Accelerate", "is not supported");

    let region = section.text("BucketLocation").unwrap_or_else(|| DEFAULT_REGION.to_owned());
    let host = server.unwrap_or_else(|| amazon_host(&region));
    let scheme = if section.boolean("Insecure").unwrap_or(false) { "http" } else { "https" };
    let endpoint = Url::parse(&format!("{scheme}://{host}"))
        .ok()
        .filter(|url| url.has_host() && url.path() == "/" && url.username().is_empty());
    let Some(endpoint) = endpoint else {
        section.warn("ServerAddress", "must be `host` or `host:port`: no remote cache");
        return None;
    };
    let path_style =
        section.boolean("PathStyle").unwrap_or_else(|| !is_virtual_host_store(&endpoint, &bucket));
    Some(S3Config {
        endpoint,
        access_key,
        secret_key,
        session_token: Some(section.secret("SessionToken")).filter(|token| !token.is_empty()),
        bucket,
        region,
        path_style,
    })
}

/// Amazon's own address of a region.
fn amazon_host(region: &str) -> String {
    match region {
        DEFAULT_REGION => "s3.amazonaws.com".to_owned(),
        _ if region.starts_with("cn-") => format!("s3.{region}.amazonaws.com.cn"),
        _ => format!("s3.{region}.amazonaws.com"),
    }
}

/// Whether the bucket goes into the host name: at Amazon and Google, unless its dots would fall
/// out of their wildcard certificates.
fn is_virtual_host_store(endpoint: &Url, bucket: &str) -> bool {
    let host = endpoint.host_str().unwrap_or_default();
    let known = ["amazonaws.com", "amazonaws.com.cn", "storage.googleapis.com"];
    let known = known.iter().any(|name| host == *name || host.ends_with(&format!(".{name}")));
    known && !(endpoint.scheme() == "https" && bucket.contains('.'))
}
