//! Computing with candle's operations: on an NVIDIA GPU, in a build with `--features cuda`; or on the
//! processor, slowly, so that everything but the GPU itself is tested wherever there is none.
//!
//! One file per operation, as in [`kernels`](crate::kernels), on candle's tensors: here called
//! [`Array`]s, next to the engine's own [`Tensor`](crate::model::tensor::Tensor). Activations are in the
//! type that weights are held in; statistics and softmax in f32.

pub mod attention;
pub mod conv;
pub mod linear;
pub mod nccl;
pub mod norm;
pub mod staging;

use self::staging::{Fetch, Staging};
use candle_core::{DType, Result};
use protocol::job::Dtype;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Values in a device's memory.
pub type Array = candle_core::Tensor;

/// What a worker computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor, with our own kernels.
    #[default]
    Cpu,
    /// The processor, with the operations that a GPU would be given.
    Candle,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Candle => f.write_str("candle"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |text: &str| text.strip_prefix("cuda:")?.parse().ok();
        match text {
            "cpu" => Ok(Self::Cpu),
            "candle" => Ok(Self::Candle),
            "cuda" => Ok(Self::Cuda(0)),
            text => number(text).map(Self::Cuda).ok_or_else(|| {
                "give cpu, cuda, cuda:N, or candle (the GPU's operations on the processor: a test)"
                    .to_owned()
            }),
        }
    }
}

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// This program was built without what the device needs.
    #[error(
        "--device {0}: this worker was built for the CPU; build it with `--features cuda` \
         (docs/gpu.md), or leave --device out"
    )]
    NotBuilt(DeviceChoice),
    /// The driver refused.
    #[error("--device {choice} cannot be used: {cause}; `nvidia-smi -L` lists the GPUs there are")]
    Refused {
        /// What was asked for.
        choice: DeviceChoice,
        /// What the driver said.
        cause: String,
    },
    /// Weights in a type that the device does not compute in.
    #[error("--dtype {dtype} cannot be had on --device {choice}: use {instead}")]
    Dtype {
        /// What was asked for.
        dtype: Dtype,
        /// On what.
        choice: DeviceChoice,
        /// What can be had.
        instead: &'static str,
    },
}

impl DeviceError {
    fn refused(choice: DeviceChoice, error: candle_core::Error) -> Self {
        let cause = match error {
            // Where it happened is of no use to who chose the device.
            candle_core::Error::WithBacktrace { inner, .. } => inner.to_string(),
            error => error.to_string(),
        };
        Self::Refused { choice, cause }
    }
}

/// A device that computes with candle. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Device(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    choice: DeviceChoice,
    candle: candle_core::Device,
    staging: Staging,
}

impl Device {
    /// Opens what was chosen, to hold weights in `dtype`. None: the engine's own kernels compute.
    ///
    /// # Errors
    /// If there is no such device, this program was not built for it, or it cannot compute in `dtype`.
    pub fn open(
        choice: DeviceChoice,
        dtype: Dtype,
    ) -> std::result::Result<Option<Self>, DeviceError> {
        let candle = match choice {
            DeviceChoice::Cpu => return Ok(None),
            DeviceChoice::Candle => candle_core::Device::Cpu,
            DeviceChoice::Cuda(_) if !cfg!(feature = "cuda") => {
                return Err(DeviceError::NotBuilt(choice));
            }
            // A stream of its own, not the process's default one, which waits for all others.
            DeviceChoice::Cuda(number) => candle_core::Device::new_cuda_with_stream(number)
                .map_err(|error| DeviceError::refused(choice, error))?,
        };
        let instead = match (choice, dtype) {
            (DeviceChoice::Candle, Dtype::Bf16 | Dtype::Int8) => Some("f32 or f16"),
            (_, Dtype::Int8) => Some("f32, f16 or bf16"),
            _ => None,
        };
        if let Some(instead) = instead {
            return Err(DeviceError::Dtype { dtype, choice, instead });
        }
        let staging = Staging::of(&candle).map_err(|error| DeviceError::refused(choice, error))?;
        Ok(Some(Self(Arc::new(Opened { choice, candle, staging }))))
    }

    /// What it is.
    #[must_use]
    pub fn choice(&self) -> DeviceChoice {
        self.0.choice
    }

    /// It, as candle knows it.
    #[must_use]
    pub fn candle(&self) -> &candle_core::Device {
        &self.0.candle
    }

    /// `values` in its memory, in the shape `dims`.
    ///
    /// # Errors
    /// If they do not fit the shape, or into its memory.
    pub fn upload(&self, values: &[f32], dims: &[usize]) -> Result<Array> {
        if dims.iter().product::<usize>() != values.len() {
            candle_core::bail!("{} values for {dims:?}", values.len());
        }
        self.bring(bytemuck::cast_slice(values), DType::F32, dims)
    }

    /// Begins to copy `values` to the host as they are, beside what the device computes.
    ///
    /// # Errors
    /// If the copy cannot be started.
    pub fn fetch(&self, values: &Array) -> Result<Fetch> {
        self.0.staging.fetch(values)
    }

    /// Begins to copy `bytes`, values of `dtype`, into its memory, beside what it computes; what is
    /// computed from the result waits for the copy, this thread does not.
    ///
    /// # Errors
    /// If they do not fit the shape, or into its memory.
    pub fn bring(&self, bytes: &[u8], dtype: DType, dims: &[usize]) -> Result<Array> {
        self.0.staging.bring(bytes, dtype, dims, self.candle())
    }

    /// `values` in the host's memory, waited for.
    ///
    /// # Errors
    /// If the device fails.
    pub fn download(&self, values: &Array) -> Result<Vec<f32>> {
        values.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    /// Bytes of its own memory that are free; None where it has none but the host's.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn free_bytes(&self) -> Result<Option<u64>> {
        self.0.staging.free_bytes()
    }

    /// Waits until all it was given is computed.
    ///
    /// # Errors
    /// If the device fails.
    pub fn finish(&self) -> Result<()> {
        self.candle().synchronize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written_alike() {
        for choice in [DeviceChoice::Cpu, DeviceChoice::Candle, DeviceChoice::Cuda(3)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for wrong in ["gpu", "cuda:", "cuda:-1", "CPU", ""] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_device_cannot_compute_is_refused_by_name() {
        let refused = |choice, dtype| Device::open(choice, dtype).unwrap_err().to_string();
        assert!(refused(DeviceChoice::Candle, Dtype::Int8).contains("use f32 or f16"));
        assert!(Device::open(DeviceChoice::Cpu, Dtype::Int8).unwrap().is_none());
        #[cfg(not(feature = "cuda"))]
        assert!(refused(DeviceChoice::Cuda(1), Dtype::Auto).contains("--features cuda"));
    }
}
