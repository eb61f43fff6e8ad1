//! Ids as the engine writes them.

/// Whether `text` is an image's id in full.
pub(crate) fn is_id(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && is_hex(hex))
}

/// Whether `text` could be an id, or the beginning of one that clients shorten to (G-48, G-61).
pub(crate) fn is_id_like(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    (12..=64).contains(&hex.len()) && is_hex(hex) || text.starts_with("sha256:")
}

/// Whether `text` has lower-case hexadecimal digits only, as ids have.
pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
