//! Decimal numbers with a unit, without the rounding of floating point.

/// `number × unit` for a decimal `number`, fractions below the unit's last digit cut off. `None` for
/// what is no decimal, has more than 18 digits behind its point, or is too large.
#[must_use]
pub(crate) fn times(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let digits = |text: &str| {
        if text.is_empty() { Some(0_u128) } else { text.parse::<u128>().ok() }
    };
    let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let whole = digits(whole)?.checked_mul(unit)?;
    let fraction = digits(fraction)?.checked_mul(unit)? / scale;
    whole.checked_add(fraction)
}
