//! Lists and choices as people write them.

use protocol::plan::RANKS_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Text that is no such value: what it is not, and what one looks like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` {problem}")]
pub(super) struct ListError {
    value: String,
    problem: String,
}

fn wrong(value: &str, problem: impl Into<String>) -> ListError {
    ListError { value: value.to_owned(), problem: problem.into() }
}

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Size {
    pub(super) width: u32,
    pub(super) height: u32,
}

impl FromStr for Size {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        let (width, height) = text.split_once('x').unwrap_or((text, text));
        match (width.trim().parse(), height.trim().parse()) {
            (Ok(width), Ok(height)) if width > 0 && height > 0 => Ok(Self { width, height }),
            _ => Err(wrong(text, "is no size; for example 1024 or 2048x1024")),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// Sizes with commas between them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Sizes(pub(super) Vec<Size>);

impl FromStr for Sizes {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        text.split(',').map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

/// Numbers of workers with commas between them; `A..B` is A, 2A, 4A and so on up to B.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Workers(pub(super) Vec<usize>);

impl FromStr for Workers {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        let example = "for example 8, or 1,2,3, or 1..64 for 1, 2, 4 up to 64";
        let number = |part: &str| match part.trim().parse::<usize>() {
            Ok(count) if (1..=RANKS_MAX).contains(&count) => Ok(count),
            Ok(_) => {
                Err(wrong(part, format!("workers cannot share an image; 1 to {RANKS_MAX} can")))
            }
            Err(_) => Err(wrong(part, format!("is no number of workers; {example}"))),
        };
        let mut all = Vec::new();
        for part in text.split(',') {
            match part.split_once("..") {
                None => all.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(wrong(part, format!("has no numbers; {example}")));
                    }
                    let doubled = std::iter::successors(Some(first), |count| Some(2 * count));
                    all.extend(doubled.take_while(|count| *count <= last));
                }
            }
        }
        all.sort_unstable();
        all.dedup();
        Ok(Self(all))
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Switch(pub(super) bool);

impl FromStr for Switch {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        match text {
            "on" => Ok(Self(true)),
            "off" => Ok(Self(false)),
            _ => Err(wrong(text, "is neither on nor off")),
        }
    }
}

/// How much of a displaced call's exchange is waited for: a share, or what takes longer than computing.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Exposed {
    Auto,
    Share(f64),
}

impl FromStr for Exposed {
    type Err = ListError;

    fn from_str(text: &str) -> Result<Self, ListError> {
        match (text, text.parse::<f64>()) {
            ("auto", _) => Ok(Self::Auto),
            (_, Ok(share)) if (0.0..=1.0).contains(&share) => Ok(Self::Share(share)),
            _ => Err(wrong(text, "is no share of the exchange: auto, or 0 to 1, for example 0.5")),
        }
    }
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Share(share) => write!(f, "{share}"),
        }
    }
}

macro_rules! from_string {
    ($($name:ident)+) => { $(
        impl TryFrom<String> for $name {
            type Error = ListError;

            fn try_from(text: String) -> Result<Self, ListError> {
                text.parse()
            }
        }
    )+ };
}

from_string!(Sizes Workers Switch Exposed);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_squares_or_width_by_height() {
        let sizes: Sizes = "1024,2048x1024".parse().unwrap();
        let of = |width, height| Size { width, height };
        assert_eq!(sizes.0, [of(1024, 1024), of(2048, 1024)]);
        for wrong in ["", "1024,", "1024x", "x", "0", "10x-1", "1k"] {
            let cause = wrong.parse::<Sizes>().unwrap_err().to_string();
            assert!(cause.contains("for example 1024 or 2048x1024"), "{cause}");
        }
    }

    #[test]
    fn workers_are_numbers_or_doubled_from_the_first_to_the_last() {
        let workers = |text: &str| text.parse::<Workers>().map(|workers| workers.0);
        assert_eq!(workers("8"), Ok(vec![8]));
        assert_eq!(workers("1..64"), Ok(vec![1, 2, 4, 8, 16, 32, 64]));
        assert_eq!(workers("3..20,1,6"), Ok(vec![1, 3, 6, 12]));
        let cause = |text| workers(text).unwrap_err().to_string();
        assert!(cause("0").contains("1 to 64 can"), "{}", cause("0"));
        assert!(cause("1..65").contains("`65` workers cannot"), "{}", cause("1..65"));
        assert!(cause("8..4").contains("`8..4` has no numbers"), "{}", cause("8..4"));
        assert!(cause("many").contains("for example 8"), "{}", cause("many"));
    }

    #[test]
    fn a_share_is_a_number_from_0_to_1() {
        assert_eq!("auto".parse(), Ok(Exposed::Auto));
        assert_eq!("0.5".parse(), Ok(Exposed::Share(0.5)));
        for wrong in ["2", "-1", "all", "NaN"] {
            let cause = wrong.parse::<Exposed>().unwrap_err().to_string();
            assert!(cause.contains("auto, or 0 to 1"), "{cause}");
        }
        assert_eq!("on".parse(), Ok(Switch(true)));
        assert!("yes".parse::<Switch>().is_err());
    }
}
