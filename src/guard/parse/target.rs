//! A request's target: path and query, decoded once, with one meaning (G-23, G-24, G-25, G-40).
//! Pure.

use crate::guard::refusal::Refusal;

/// A target, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// The API version in the path.
    pub(crate) version: Option<(u32, u32)>,
    /// The path's parts, decoded.
    pub segments: Vec<String>,
    /// The parameters in their order, decoded.
    pub(crate) query: Vec<(String, String)>,
}

/// Takes a request's target apart.
///
/// # Errors
/// When it is not in origin form, or could be read in two ways.
pub fn parse(target: &str) -> Result<Target, Refusal> {
    if !target.starts_with('/') {
        return Err(Refusal::malformed("the request's target must be a path", "G-23"));
    }
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    if path.bytes().any(|b| b <= b' ' || b >= 0x7f || matches!(b, b'#' | b'\\')) {
        return Err(odd_path());
    }
    let mut segments = path[1..].split('/').map(segment).collect::<Result<Vec<_>, _>>()?;
    let version = match segments.first() {
        Some(first) => version(first, path)?,
        None => None,
    };
    if version.is_some() {
        segments.remove(0);
    }
    // The one path that the engine lists with a slash at its end.
    if segments == ["networks", ""] {
        segments.pop();
    }
    if segments.is_empty() || segments.iter().any(String::is_empty) {
        return Err(odd_path());
    }
    let query = query.map_or_else(|| Ok(Vec::new()), parse_query)?;
    Ok(Target { version, segments, query })
}

fn odd_path() -> Refusal {
    Refusal::malformed("the path is not plain", "G-24")
}

fn segment(text: &str) -> Result<String, Refusal> {
    let decoded = decode(text, false).ok_or_else(odd_path)?;
    if matches!(&*decoded, "." | "..")
        || decoded.split('/').any(|part| matches!(part, "." | ".."))
        || decoded.starts_with('/')
        || decoded.ends_with('/')
        || decoded.contains("//")
        || decoded.chars().any(char::is_control)
    {
        return Err(odd_path());
    }
    Ok(decoded)
}

/// The version in a path's first part, where it is one. What only looks like one is not found.
fn version(first: &str, path: &str) -> Result<Option<(u32, u32)>, Refusal> {
    let Some(digits) = first.strip_prefix('v') else { return Ok(None) };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(None);
    }
    let number = |text: &str| {
        let plain = !text.is_empty()
            && text.len() <= 4
            && text.bytes().all(|b| b.is_ascii_digit())
            && (text == "0" || !text.starts_with('0'));
        plain.then(|| text.parse().ok()).flatten()
    };
    let parsed =
        digits.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
    // A version with encoded characters is not one.
    match parsed {
        Some(found) if path.starts_with(&format!("/{first}/")) => Ok(Some(found)),
        _ => Err(Refusal { status: 404, message: "page not found".to_owned(), rule: "G-40" }),
    }
}

fn parse_query(query: &str) -> Result<Vec<(String, String)>, Refusal> {
    let odd = || Refusal::malformed("the query is not plain", "G-25");
    if query.bytes().any(|b| b <= b' ' || b >= 0x7f) {
        return Err(odd());
    }
    let mut found = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        if pair.contains(';') {
            return Err(odd());
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name, true).ok_or_else(odd)?;
        let value = decode(value, true).ok_or_else(odd)?;
        if value.contains('\0') || name.chars().any(char::is_control) {
            return Err(odd());
        }
        found.push((name, value));
    }
    Ok(found)
}

/// Decodes percent escapes, and `+` where that is a blank; `None` for what is no escape or no
/// text.
fn decode(text: &str, plus_is_blank: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                out.push(u8::try_from(high * 16 + low).ok()?);
            }
            b'+' if plus_is_blank => out.push(b' '),
            byte => out.push(byte),
        }
    }
    String::from_utf8(out).ok().filter(|text| !text.contains('\0'))
}

/// `text` as one part of a path.
#[must_use]
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                let digit = char::from_digit(u32::from(digit), 16).unwrap_or('0');
                out.push(digit.to_ascii_uppercase());
            }
        }
    }
    out
}

/// A query string of these parameters, with its question mark; empty when there are none.
#[must_use]
pub fn encode_query(parameters: &[(String, String)]) -> String {
    if parameters.is_empty() {
        return String::new();
    }
    let mut query = url::form_urlencoded::Serializer::new("?".to_owned());
    let mut text = String::new();
    query.clear();
    for (name, value) in parameters {
        query.append_pair(name, value);
    }
    text.push('?');
    text.push_str(&query.finish());
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_are_taken_apart_and_decoded_once() {
        let target = parse("/v1.41/containers/a%62c/json?all=1&filters=%7B%7D&x").unwrap();
        assert_eq!(target.version, Some((1, 41)));
        assert_eq!(target.segments, ["containers", "abc", "json"]);
        let query = [("all", "1"), ("filters", "{}"), ("x", "")];
        assert_eq!(target.query, query.map(|(n, v)| (n.to_owned(), v.to_owned())));
        assert_eq!(parse("/%252e/x").unwrap().segments, ["%2e", "x"]);
        assert_eq!(parse("/v1.41/networks/").unwrap().segments, ["networks"]);
    }

    #[test]
    fn g_24_odd_paths_are_refused() {
        for path in [
            "/",
            "//x",
            "/x/",
            "/x//y",
            "/./x",
            "/x/../y",
            "/%2e%2e/x",
            "/x/%2E/y",
            "/x/a%2f..%2fb",
            "/%00",
            "/a%0d%0ab",
            "/%zz",
            "/%4",
            "/%ff",
            "/a b",
            "/a#b",
            "/a\\b",
            "/x/%2fy",
            "/v1.41",
            "/v1.41/",
            "/v1.41//x",
        ] {
            assert!(parse(path).is_err(), "{path}");
        }
    }

    #[test]
    fn g_23_only_the_origin_form_is_taken() {
        for target in ["http://x/containers/json", "*", "x:80", "", "containers/json"] {
            assert_eq!(parse(target).unwrap_err().rule, "G-23", "{target}");
        }
    }

    #[test]
    fn g_40_versions_have_one_spelling() {
        for path in [
            "/v1.41.0/info",
            "/v01.41/info",
            "/v1.041/info",
            "/v1.41./info",
            "/v1/info",
            "/v1./info",
            "/%761.41/info",
            "/v1.4%31/info",
            "/v1.99999/info",
        ] {
            assert_eq!(parse(path).unwrap_err().status, 404, "{path}");
        }
        assert_eq!(parse("/V1.41/info").unwrap().segments, ["V1.41", "info"]);
        assert_eq!(parse("/volumes").unwrap().segments, ["volumes"]);
    }

    #[test]
    fn g_25_a_semicolon_or_a_bad_escape_is_refused() {
        for query in ["a=1;b=2", "a=%", "a=%zz", "a=%00", "%00=a", "a=%ff"] {
            assert!(parse(&format!("/x?{query}")).is_err(), "{query}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_one_plain_segment_again(text in "[^\\x00-\\x1f\\x7f-\\u{9f}]{1,40}") {
            let encoded = encode(&text);
            prop_assert!(!encoded.contains('/') && encoded.is_ascii());
            if let Ok(target) = parse(&format!("/x/{encoded}")) {
                prop_assert_eq!(&target.segments[1], &text);
            }
        }

        #[test]
        fn no_target_panics_or_leaves_dots_or_empty_parts(target in "\\PC{0,60}") {
            if let Ok(target) = parse(&target) {
                for segment in target.segments {
                    prop_assert!(!segment.is_empty());
                    prop_assert!(segment.split('/').all(|p| !matches!(p, "" | "." | "..")));
                }
            }
        }

        #[test]
        fn queries_survive_the_way_through(name in "[a-z]{1,8}", value in "[^\\x00]{0,40}") {
            let query = encode_query(&[(name.clone(), value.clone())]);
            prop_assert_eq!(parse(&format!("/x{query}")).unwrap().query, vec![(name, value)]);
        }
    }
}
