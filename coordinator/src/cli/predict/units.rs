//! Quantities as people write them: a number and its unit.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A unit and what a number in it is multiplied with.
type Units = &'static [(&'static str, f64)];

const RATES: Units = &[("PFLOP/s", 1e15), ("TFLOP/s", 1e12), ("GFLOP/s", 1e9), ("MFLOP/s", 1e6)];
const TIMES: Units = &[("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("ns", 1e-9)];
const SIZES: Units = &[
    ("TiB", 1_099_511_627_776.0),
    ("GiB", 1_073_741_824.0),
    ("MiB", 1_048_576.0),
    ("TB", 1e12),
    ("GB", 1e9),
    ("MB", 1e6),
];
const BANDWIDTHS: Units = &[
    ("TB/s", 1e12),
    ("GB/s", 1e9),
    ("MB/s", 1e6),
    ("GiB/s", 1_073_741_824.0),
    ("MiB/s", 1_048_576.0),
    // Network cards are sold by these.
    ("Gbit/s", 1.25e8),
    ("Mbit/s", 1.25e5),
];

/// Text that is no such quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is no {what}: {problem}; for example {example}")]
pub(super) struct QuantityError {
    value: String,
    what: &'static str,
    problem: String,
    example: &'static str,
}

/// `text` in units of 1, or what is wrong with it.
fn parse(text: &str, units: Units, zero: bool) -> Result<f64, String> {
    let text = text.trim();
    let end = text.find(|letter: char| !(letter.is_ascii_digit() || letter == '.'));
    let (number, unit) = text.split_at(end.unwrap_or(text.len()));
    let number: f64 = number.parse().map_err(|_| "it does not start with a number".to_owned())?;
    let known = units.iter().find(|(name, _)| *name == unit.trim());
    let (_, factor) = known.ok_or_else(|| {
        let names: Vec<&str> = units.iter().map(|(name, _)| *name).collect();
        match unit.trim() {
            "" => format!("it has no unit; there are {}", names.join(" ")),
            unit => format!("unknown unit `{unit}`; there are {}", names.join(" ")),
        }
    })?;
    let value = number * factor;
    match value {
        _ if !value.is_finite() => Err("it is too large".to_owned()),
        _ if value <= 0.0 && !zero => Err("it must be more than 0".to_owned()),
        _ => Ok(value),
    }
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $what:literal, $example:literal, $units:ident, zero: $zero:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub(super) struct $name(pub(super) f64);

        impl FromStr for $name {
            type Err = QuantityError;

            fn from_str(text: &str) -> Result<Self, QuantityError> {
                parse(text, $units, $zero).map(Self).map_err(|problem| QuantityError {
                    value: text.to_owned(),
                    what: $what,
                    problem,
                    example: $example,
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = QuantityError;

            fn try_from(text: String) -> Result<Self, QuantityError> {
                text.parse()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&shown(self.0, $units))
            }
        }
    };
}

quantity!(
    /// FLOP a second.
    Rate, "rate", "161TFLOP/s", RATES, zero: false
);
quantity!(
    /// Seconds.
    Time, "time", "20ms", TIMES, zero: true
);
quantity!(
    /// Bytes.
    Memory, "amount of memory", "80GiB", SIZES, zero: false
);
quantity!(
    /// Bytes a second.
    Bandwidth, "bandwidth", "150GB/s", BANDWIDTHS, zero: false
);

/// `value` in the first of the units in which it is 1 or more.
fn shown(value: f64, units: Units) -> String {
    let fits = units.iter().find(|(_, factor)| value >= *factor).or_else(|| units.first());
    let (unit, factor) = fits.copied().unwrap_or(("", 1.0));
    // Three digits after the point, without those that say nothing.
    let number = format!("{:.3}", value / factor);
    format!("{}{unit}", number.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(one: f64, other: f64) -> bool {
        (one - other).abs() <= 1e-9 * other.abs()
    }

    #[test]
    fn numbers_and_units_are_read_and_written() {
        let rate: Rate = "161TFLOP/s".parse().unwrap();
        assert!(near(rate.0, 161e12));
        assert_eq!(rate.to_string(), "161TFLOP/s");
        assert!(near("20ms".parse::<Time>().unwrap().0, 0.02));
        assert!(near("1.5 us".parse::<Time>().unwrap().0, 1.5e-6));
        assert!(near("80GiB".parse::<Memory>().unwrap().0, 85_899_345_920.0));
        assert!(near("100Gbit/s".parse::<Bandwidth>().unwrap().0, 12.5e9));
        assert_eq!("0s".parse::<Time>().unwrap().to_string(), "0s");
        assert_eq!("0.02s".parse::<Time>().unwrap().to_string(), "20ms");
        assert_eq!("3000MB/s".parse::<Bandwidth>().unwrap().to_string(), "3GB/s");
    }

    #[test]
    fn what_cannot_be_read_is_told_with_an_example() {
        let cause = "161".parse::<Rate>().unwrap_err().to_string();
        assert_eq!(
            cause,
            "`161` is no rate: it has no unit; there are PFLOP/s TFLOP/s GFLOP/s MFLOP/s; for \
             example 161TFLOP/s"
        );
        let cause = "3Gb/s".parse::<Bandwidth>().unwrap_err().to_string();
        assert!(cause.contains("unknown unit `Gb/s`") && cause.contains("Gbit/s"), "{cause}");
        let cause = "fast".parse::<Time>().unwrap_err().to_string();
        assert!(cause.contains("does not start with a number"), "{cause}");
        let cause = "0GB/s".parse::<Bandwidth>().unwrap_err().to_string();
        assert!(cause.contains("more than 0") && cause.contains("150GB/s"), "{cause}");
        assert!("-1ms".parse::<Time>().is_err() && "1.2.3ms".parse::<Time>().is_err());
    }
}
