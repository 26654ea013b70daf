//! Numbers of the command line, refused where they make no sense.

use std::{fmt::Debug, ops::RangeInclusive, str::FromStr};

use crate::exit::UsageError;

/// Reads a number within a range, as run files have it for the same setting. NaN is in none.
pub(crate) fn within<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Debug + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| {
            format!(
                "expected {} from {:?} to {:?}",
                kind::<T>(),
                range.start(),
                range.end()
            )
        })
    }
}

/// Reads any number that is one.
pub(crate) fn finite(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| "expected a finite number".to_owned())
}

/// Checks that an image's side is whole tokens.
pub(crate) fn check_multiple(option: &str, pixels: usize, unit: usize) -> Result<(), UsageError> {
    if pixels > 0 && pixels.is_multiple_of(unit) {
        return Ok(());
    }
    let (below, above) = (pixels / unit * unit, pixels.div_ceil(unit).max(1) * unit);
    let near = match below {
        0 => above.to_string(),
        below => format!("{below} or {above}"),
    };
    Err(UsageError(format!(
        "{option} {pixels} is not a multiple of {unit}, the pixels that a token of this model is wide: take {near}"
    )))
}

/// Of integers, no text with a decimal point is one.
fn kind<T: FromStr>() -> &'static str {
    match "0.5".parse::<T>() {
        Ok(_) => "a number",
        Err(_) => "a whole number",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_told_the_range() {
        let steps = within(1..=1000usize);
        assert_eq!(steps("28"), Ok(28));
        for text in ["0", "-1", "1001", "2.5", "x", ""] {
            assert_eq!(
                steps(text).unwrap_err(),
                "expected a whole number from 1 to 1000",
                "{text}"
            );
        }
        let rate = within(1e-12..=1.0);
        assert_eq!(rate("1e-4"), Ok(1e-4));
        for text in ["nan", "inf", "-inf", "0", "-0.1", "2", "x"] {
            assert_eq!(
                rate(text).unwrap_err(),
                "expected a number from 1e-12 to 1.0",
                "{text}"
            );
        }
        check_multiple("--height", 48, 16).unwrap();
        for (pixels, near) in [(7, "take 16"), (50, "take 48 or 64"), (0, "take 16")] {
            let error = check_multiple("--height", pixels, 16)
                .unwrap_err()
                .to_string();
            assert!(error.ends_with(near), "{error}");
        }
        assert_eq!(finite("-0.5"), Ok(-0.5));
        for text in ["nan", "inf", "x"] {
            assert!(finite(text).is_err(), "{text}");
        }
    }
}
