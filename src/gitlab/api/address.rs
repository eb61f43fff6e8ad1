//! Addresses: from a runner's `url` to the API's base, and how an address is shown.

use url::Url;

use super::error::ClientError;

/// The API's base address, ending in `/api/v4/`. Trailing slashes and one legacy `/ci` are dropped
/// from `url`; a relative installation root stays (GitLab Runner: `network/client.go`).
pub(super) fn api_base(url: &str) -> Result<Url, ClientError> {
    let trimmed = url.trim().trim_end_matches('/');
    let root = trimmed.strip_suffix("/ci").unwrap_or(trimmed);
    let wrong = |reason: String| ClientError::Address { value: shown(url), reason };
    let parsed =
        Url::parse(&format!("{root}/api/v4/")).map_err(|error| wrong(error.to_string()))?;
    if !matches!(parsed.scheme(), "http" | "https") {
        return Err(wrong(format!("scheme `{}` is not supported", parsed.scheme())));
    }
    Ok(parsed)
}

/// The address without user, query and fragment: only this may be in a message.
pub(super) fn clean(url: &Url) -> String {
    let mut clean = url.clone();
    clean.set_query(None);
    clean.set_fragment(None);
    // Both fail only for addresses that can have no user, which then have nothing to hide.
    let _ = clean.set_username("");
    let _ = clean.set_password(None);
    clean.to_string()
}

/// What may be shown of text that need not be an address: nothing up to an `@`, no query.
pub(super) fn shown(text: &str) -> String {
    let text = text.trim();
    let end = text.find(['?', '#']).unwrap_or(text.len());
    let text = &text[..end];
    match text.rsplit_once('@') {
        Some((_, rest)) => format!("[REDACTED]@{rest}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_1_the_base_keeps_the_root_and_drops_slashes_and_ci() {
        for (url, base) in [
            ("https://h/x/ci/", "https://h/x/api/v4/"),
            ("https://h/ci///", "https://h/api/v4/"),
            ("https://h/", "https://h/api/v4/"),
            ("https://h", "https://h/api/v4/"),
            ("http://h:8080/gitlab", "http://h:8080/gitlab/api/v4/"),
            ("https://h/ci/ci", "https://h/ci/api/v4/"),
        ] {
            assert_eq!(api_base(url).unwrap().as_str(), base, "{url}");
        }
    }

    #[test]
    fn api_2_other_schemes_are_refused_by_name() {
        let error = api_base("ftp://user:hunter2@h/").unwrap_err().to_string();
        assert!(error.contains("url") && error.contains("ftp"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
        let error = api_base("user:hunter2@gitlab").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        assert!(api_base("").is_err());
    }

    #[test]
    fn a_shown_address_has_no_user_and_no_query() {
        let url = Url::parse("https://u:p@h/api/v4/jobs/1?token=s#f").unwrap();
        assert_eq!(clean(&url), "https://h/api/v4/jobs/1");
    }
}
