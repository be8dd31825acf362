//! Which instructions the kernels are run with: chosen once, at run time.
#![expect(unsafe_code, reason = "entering code compiled for instructions this machine has")]

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use thiserror::Error;

use super::packed::Arithmetic;
use super::portable::Portable;
use super::simd::{Kernel, Simd};
use super::tile::Words;
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Whatever the compiler makes of plain loops for the target's baseline.
    Portable,
    /// 256-bit vectors with fused multiply-add (x86-64, about 2013 on).
    Avx2,
    /// 512-bit vectors (x86-64 servers from about 2017 on).
    Avx512,
    /// And products of 8-bit integers (VNNI; from about 2019 on).
    Avx512Vnni,
    /// And products of bfloat16 (AMD from Zen 4 on, Intel from Sapphire Rapids on).
    Avx512Bf16,
}

/// Why `TESSERA_ISA` names no instruction set that can be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IsaError {
    /// The name is none of those known.
    #[error(
        "unknown instruction set {0:?}: say portable, avx2, avx512, avx512-vnni or avx512-bf16"
    )]
    Unknown(String),
    /// This machine lacks it.
    #[error("this machine has no {0}")]
    Unavailable(Isa),
}

impl Isa {
    /// The environment variable that overrides the choice.
    pub const VARIABLE: &'static str = "TESSERA_ISA";

    const ALL: [Self; 5] =
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Vnni, Self::Avx512Bf16];

    /// The instruction sets of this machine, slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The instruction set to use: the one `TESSERA_ISA` names, else the fastest.
    ///
    /// # Errors
    /// When `TESSERA_ISA` names one that is unknown, or that this machine lacks.
    pub fn resolve() -> Result<Self, IsaError> {
        match std::env::var_os(Self::VARIABLE) {
            Some(name) => Self::named(&name.to_string_lossy()),
            None => Ok(Self::fastest()),
        }
    }

    /// [`Isa::resolve`], asked once and remembered; the fastest where `TESSERA_ISA` is wrong
    /// (a program says so at its start, by `resolve`).
    #[must_use]
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::resolve().unwrap_or_else(|_| Self::fastest()))
    }

    fn fastest() -> Self {
        Self::ALL.into_iter().rfind(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    fn named(name: &str) -> Result<Self, IsaError> {
        let isa: Self = name.parse()?;
        if isa.is_available() { Ok(isa) } else { Err(IsaError::Unavailable(isa)) }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
            }
            Self::Avx512Vnni => {
                Self::Avx512.is_available() && is_x86_feature_detected!("avx512vnni")
            }
            Self::Avx512Bf16 => {
                Self::Avx512Vnni.is_available() && is_x86_feature_detected!("avx512bf16")
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Self::Portable
    }

    /// Whether it multiplies bfloat16.
    #[must_use]
    pub fn has_bf16(self) -> bool {
        self == Self::Avx512Bf16
    }

    /// The words that a product in `arithmetic` is made of.
    ///
    /// # Panics
    /// For bfloat16, where there is no instruction.
    pub(super) fn words(self, arithmetic: Arithmetic) -> Words {
        match (arithmetic, self) {
            (Arithmetic::F32, _) => Words::F32,
            (Arithmetic::Bf16, _) => {
                assert!(self.has_bf16(), "{self} has no products of bfloat16");
                Words::Bf16
            }
            (Arithmetic::Int8, Self::Avx512Vnni | Self::Avx512Bf16) => Words::I8,
            (Arithmetic::Int8, _) => Words::I16,
        }
    }

    /// Rows in a tile of the product.
    pub(super) fn tile_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16 => Avx512::ROWS,
            _ => Portable::ROWS,
        }
    }

    /// Columns in a tile of the product.
    pub(super) fn tile_width(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::WIDTH,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16 => Avx512::WIDTH,
            _ => Portable::WIDTH,
        }
    }

    /// Runs `kernel`, compiled for this instruction set.
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        assert!(self.is_available(), "this machine has no {self}");
        match self {
            // SAFETY: the machine has these instructions, as just asserted.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { Avx2::run(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Vnni | Self::Avx512Bf16 => unsafe { Avx512::run(kernel) },
            _ => kernel.run(Portable),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512-vnni",
            Self::Avx512Bf16 => "avx512-bf16",
        })
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        Self::ALL
            .into_iter()
            .find(|isa| isa.to_string() == name)
            .ok_or_else(|| IsaError::Unknown(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
    }

    #[test]
    fn a_wrong_name_is_refused_by_name() {
        let error = Isa::named("sse9").unwrap_err();
        assert_eq!(
            error.to_string(),
            r#"unknown instruction set "sse9": say portable, avx2, avx512, avx512-vnni or avx512-bf16"#
        );
    }

    #[test]
    fn the_portable_one_is_everywhere_and_the_best_is_available() {
        assert_eq!(Isa::available()[0], Isa::Portable);
        assert!(Isa::available().contains(&Isa::best()));
    }
}
