//! Durations as Go writes them: in `config.toml`, in the variables of jobs, and in texts that users
//! of gitlab-runner know.

use std::time::Duration;

use super::decimal;

/// The text is no duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a duration")]
pub(crate) struct NotADuration;

/// Parses a duration as Go writes it: `90s`, `1h30m`, `1.5h`, `-1s`. The sign comes back beside
/// the magnitude, as several keys mean "off" by a negative one (Go: `time.ParseDuration`).
pub(crate) fn parse(text: &str) -> Result<(bool, Duration), NotADuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok((negative, Duration::ZERO));
    }
    if rest.is_empty() {
        return Err(NotADuration);
    }
    let mut nanos = 0_u128;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|&end| end > 0)
            .ok_or(NotADuration)?;
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60 * 1_000_000_000,
            "h" => 3_600 * 1_000_000_000,
            _ => return Err(NotADuration),
        };
        nanos += decimal::times(number, unit).ok_or(NotADuration)?;
        rest = tail;
    }
    let nanos = u64::try_from(nanos).ok().filter(|&n| i64::try_from(n).is_ok());
    nanos.map(|n| (negative, Duration::from_nanos(n))).ok_or(NotADuration)
}

/// Writes a duration as Go does: `1h30m0s`, `90s` as `1m30s`, `1.5s`, `0s`.
#[must_use]
pub(crate) fn format(duration: Duration) -> String {
    let fraction = match duration.subsec_nanos() {
        0 => String::new(),
        nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}{fraction}s"),
        (0, _) => format!("{minutes}m{rest}{fraction}s"),
        _ => format!("{hours}h{minutes}m{rest}{fraction}s"),
    }
}

/// The same in whole seconds, rounded down.
#[must_use]
pub(crate) fn format_seconds(duration: Duration) -> String {
    format(Duration::from_secs(duration.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let millis = |text| parse(text).map(|(negative, d)| (negative, d.as_millis()));
        assert_eq!(millis("90s"), Ok((false, 90_000)));
        assert_eq!(millis("1h30m"), Ok((false, 5_400_000)));
        assert_eq!(millis("1.5h"), Ok((false, 5_400_000)));
        assert_eq!(millis("-1s"), Ok((true, 1_000)));
        assert_eq!(millis("0"), Ok((false, 0)));
        assert_eq!(millis(".5s"), Ok((false, 500)));
        for bad in ["", "5", "s", "1d", "1h30", "--1s", ".s", "1e3s", "9999999999h"] {
            assert_eq!(millis(bad), Err(NotADuration), "{bad}");
        }
    }

    #[test]
    fn durations_are_written_as_go_reads_them() {
        for text in ["0s", "1.5s", "1m30s", "1h0m0s", "10h0m0.25s"] {
            assert_eq!(format(parse(text).unwrap().1), text);
        }
    }

    #[test]
    fn whole_seconds_have_no_fraction() {
        assert_eq!(format_seconds(Duration::from_millis(5_900)), "5s");
        assert_eq!(format_seconds(Duration::from_secs(90)), "1m30s");
        assert_eq!(format_seconds(Duration::from_hours(1)), "1h0m0s");
    }
}
