//! Where archives of caches are kept.

use crate::base::secret::Secret;

/// `[runners.cache]`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CacheConfig {
    /// Prefix of all objects.
    pub path: String,
    /// Leaves the runner's part out of object names.
    pub shared: bool,
    /// Largest archive that is uploaded, in bytes; 0 for no limit.
    pub max_uploaded_archive_size: u64,
    /// The store; `None` for local caches alone.
    pub s3: Option<S3Config>,
}

/// `[runners.cache.s3]`, with credentials.
#[derive(Debug, Clone, PartialEq)]
pub struct S3Config {
    /// `scheme://host[:port]` of the store.
    pub endpoint: url::Url,
    /// Access key.
    pub access_key: String,
    /// Secret key.
    pub secret_key: Secret,
    /// Session token of temporary credentials.
    pub session_token: Option<Secret>,
    /// Bucket.
    pub bucket: String,
    /// Region, `us-east-1` when the file has none.
    pub region: String,
    /// Bucket in the path, not in the host name.
    pub path_style: bool,
}
