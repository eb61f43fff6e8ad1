//! The small languages inside values: sizes, processors, devices, limits. Each is a pure
//! function from text and knows nothing of keys, files and lines.

use super::executor::docker::{Device, Ulimit};
use crate::base::{
    decimal,
    paths::{ContainerPath, HostPath},
};

/// What to write where [`memory_size`] fails.
pub(super) const SIZE_HINT: &str = "write for example \"512m\" or \"2g\"";
/// What to write where [`nano_cpus`] fails.
pub(super) const CPUS_HINT: &str = "write for example \"1.5\" or \"1/2\"";

/// Why a text is not what its key wants; a fragment that does not repeat the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Not an amount of memory.
    #[error("not an amount of memory")]
    Size,
    /// Not a number of processors.
    #[error("not a number of processors")]
    Cpus,
    /// Device with too many or empty parts.
    #[error("must be `host[:container[:permissions]]`")]
    Device,
    /// Permissions other than `r`, `w`, `m`.
    #[error("device permissions are made of `r`, `w` and `m` only")]
    DevicePermissions,
    /// Not `soft[:hard]`.
    #[error("must be `soft[:hard]`, whole numbers")]
    Ulimit,
    /// The soft limit is over the hard one.
    #[error("the soft limit is greater than the hard one")]
    UlimitOrder,
    /// Not `NAME=value`.
    #[error("must be `NAME=value`")]
    Variable,
}

/// Parses an amount of memory with Docker's suffixes: `512m`, `1.5g`, `2GiB`, plain bytes
/// (docker/go-units: `RAMInBytes`; all units are powers of 1024).
pub fn memory_size(text: &str) -> Result<i64, ValueError> {
    let lower = text.to_ascii_lowercase();
    let end = lower.rfind(|c: char| c.is_ascii_digit() || c == '.').ok_or(ValueError::Size)? + 1;
    let (number, suffix) = lower.split_at(end);
    let suffix = suffix.strip_prefix(' ').unwrap_or(suffix);
    let power = match suffix.chars().next() {
        None => 0,
        Some('b') if suffix == "b" => 0,
        Some(first) => {
            let power = "kmgtp".find(first).ok_or(ValueError::Size)?;
            if !matches!(&suffix[1..], "" | "b" | "ib") {
                return Err(ValueError::Size);
            }
            u32::try_from(power).map_err(|_| ValueError::Size)? + 1
        }
    };
    let bytes = decimal::times(number, 1_u128 << (10 * power)).ok_or(ValueError::Size)?;
    i64::try_from(bytes).map_err(|_| ValueError::Size)
}

/// Parses a number of processors, a decimal or a fraction (`2`, `0.5`, `1/2`), into billionths.
pub fn nano_cpus(text: &str) -> Result<i64, ValueError> {
    const BILLION: u128 = 1_000_000_000;
    let nanos = match text.split_once('/') {
        Some((numerator, denominator)) => {
            let numerator: u64 = numerator.parse().map_err(|_| ValueError::Cpus)?;
            let denominator: u64 = denominator.parse().map_err(|_| ValueError::Cpus)?;
            (u128::from(numerator) * BILLION)
                .checked_div(u128::from(denominator))
                .ok_or(ValueError::Cpus)?
        }
        None => decimal::times(text, BILLION).ok_or(ValueError::Cpus)?,
    };
    i64::try_from(nanos).map_err(|_| ValueError::Cpus)
}

/// Parses `host[:container[:permissions]]`; the container's path defaults to the host's, the
/// permissions to `rwm`.
pub fn device(text: &str) -> Result<Device, ValueError> {
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
        return Err(ValueError::Device);
    }
    let permissions = parts.get(2).copied().unwrap_or("rwm");
    if !permissions.chars().all(|c| "rwm".contains(c)) {
        return Err(ValueError::DevicePermissions);
    }
    Ok(Device {
        host: HostPath::new(parts[0]),
        container: ContainerPath::new(*parts.get(1).unwrap_or(&parts[0])),
        permissions: permissions.to_owned(),
    })
}

/// Parses `soft[:hard]`; −1 is no limit.
pub fn ulimit(name: &str, text: &str) -> Result<Ulimit, ValueError> {
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| ValueError::Ulimit);
    let (soft, hard) = match text.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(text)?, number(text)?),
    };
    if hard != -1 && (soft > hard || soft == -1) {
        return Err(ValueError::UlimitOrder);
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

/// Splits `NAME=value`.
pub fn variable(text: &str) -> Result<(String, String), ValueError> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(ValueError::Variable),
    }
}

/// Replaces `$NAME` and `${NAME}` by what `lookup` knows; a name that it does not know gives
/// nothing and is noted in the second value (Go: `os.Expand`).
pub fn expand_environment(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> (String, Vec<String>) {
    let mut out = String::with_capacity(text.len());
    let mut unset = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, after) = if let Some(braced) = tail.strip_prefix('{') {
            braced.split_once('}').unwrap_or(("", braced))
        } else {
            let end = tail.find(|c| !word(c)).unwrap_or(tail.len());
            if end == 0 {
                out.push('$');
                rest = tail;
                continue;
            }
            tail.split_at(end)
        };
        match lookup(name) {
            Some(value) => out.push_str(&value),
            None => unset.push(name.to_owned()),
        }
        rest = after;
    }
    out.push_str(rest);
    (out, unset)
}

/// A boolean as Go's `strconv.ParseBool` and the job's typed variables take it.
#[must_use]
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_42_memory_has_docker_suffixes_and_bad_text_is_an_error() {
        for (text, bytes) in [
            ("512m", 512 << 20),
            ("1.5g", 3 << 29),
            ("2GiB", 2 << 30),
            ("32 kB", 32 << 10),
            ("1024", 1024),
            ("1024b", 1024),
            ("1T", 1 << 40),
        ] {
            assert_eq!(memory_size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "m", "-1", "4 parsecs", "1mm", "1.2.3m", "99999999999p"] {
            assert_eq!(memory_size(bad), Err(ValueError::Size), "{bad}");
        }
    }

    #[test]
    fn docker_40_processors_are_rational_numbers() {
        assert_eq!(nano_cpus("0.5"), Ok(500_000_000));
        assert_eq!(nano_cpus("1/2"), Ok(500_000_000));
        assert_eq!(nano_cpus("1/3"), Ok(333_333_333));
        assert_eq!(nano_cpus("2"), Ok(2_000_000_000));
        for bad in ["", "two", "1/0", "-1", "1/-2"] {
            assert_eq!(nano_cpus(bad), Err(ValueError::Cpus), "{bad}");
        }
    }

    #[test]
    fn docker_43_a_device_has_one_to_three_fields() {
        let parse = |text| device(text).map(|d| (d.host, d.container, d.permissions));
        let of = |host: &str, container: &str, permissions: &str| {
            Ok((HostPath::new(host), ContainerPath::new(container), permissions.to_owned()))
        };
        assert_eq!(parse("/dev/kvm"), of("/dev/kvm", "/dev/kvm", "rwm"));
        assert_eq!(parse("/dev/kvm:/dev/vm"), of("/dev/kvm", "/dev/vm", "rwm"));
        assert_eq!(parse("/dev/kvm:/dev/vm:r"), of("/dev/kvm", "/dev/vm", "r"));
        assert_eq!(parse("/dev/kvm:/dev/vm:r:w"), Err(ValueError::Device));
        assert_eq!(parse("/dev/kvm:/dev/vm:x"), Err(ValueError::DevicePermissions));
    }

    #[test]
    fn a_limit_has_one_or_two_numbers_in_order() {
        let parse = |text| ulimit("nofile", text).map(|u| (u.soft, u.hard));
        assert_eq!(parse("1024"), Ok((1024, 1024)));
        assert_eq!(parse("1024:2048"), Ok((1024, 2048)));
        assert_eq!(parse("-1"), Ok((-1, -1)));
        assert_eq!(parse("1:-1"), Ok((1, -1)));
        assert_eq!(parse("2048:1024"), Err(ValueError::UlimitOrder));
        assert_eq!(parse("many"), Err(ValueError::Ulimit));
    }

    #[test]
    fn environment_references_are_replaced_once() {
        let lookup = |name: &str| match name {
            "HOST" => Some("gitlab.example".to_owned()),
            "LOOP" => Some("$HOST".to_owned()),
            _ => None,
        };
        let expand = |text| expand_environment(text, &lookup);
        assert_eq!(expand("https://${HOST}/x").0, "https://gitlab.example/x");
        assert_eq!(expand("https://$HOST:80").0, "https://gitlab.example:80");
        assert_eq!(expand("$LOOP").0, "$HOST");
        assert_eq!(expand("a$NO-b"), ("a-b".to_owned(), vec!["NO".to_owned()]));
        assert_eq!(expand("50$").0, "50$");
    }
}
