//! Random values of the kernel.

use std::{ops::RangeInclusive, time::Duration};

use rustix::{
    io::retry_on_intr,
    rand::{GetRandomFlags, getrandom},
};

/// `N` random bytes, at most 256, fit for secrets.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    const { assert!(N <= 256, "more may come in parts (getrandom(2))") };
    let mut bytes = [0; N];
    let filled = retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()));
    assert_eq!(filled, Ok(N), "Linux has had getrandom since 3.17");
    bytes
}

/// A duration within `range`; its end if the range is empty.
pub(crate) fn duration(range: RangeInclusive<Duration>) -> Duration {
    let (start, end) = range.into_inner();
    let spread = u64::try_from(end.saturating_sub(start).as_nanos()).unwrap_or(u64::MAX);
    // Of a spread of seconds, the remainder prefers no value that anyone would notice.
    let random = u64::from_ne_bytes(bytes());
    start + Duration::from_nanos(random.checked_rem(spread.saturating_add(1)).unwrap_or(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_lie_within_their_range() {
        let (start, end) = (Duration::from_millis(100), Duration::from_millis(101));
        let drawn: Vec<_> = (0..200).map(|_| duration(start..=end)).collect();
        assert!(drawn.iter().all(|drawn| (start..=end).contains(drawn)));
        assert!(drawn.iter().any(|other| *other != drawn[0]));
        assert_eq!(duration(end..=end), end);
    }
}
