//! Copies between a device and the host, beside what the device computes.
//!
//! On a GPU they run on a stream of their own, from and to page-locked memory, which is used again. A
//! copy to the host starts once its values are computed; what is computed from a copy to the device
//! waits for it there. This thread waits for neither.

#[cfg(feature = "cuda")]
mod cuda;

use super::Array;
use bytes::Bytes;
use candle_core::{DType, Device, Result, Tensor, WithDType, bail};
use half::{bf16, f16};

/// How a device's values are copied.
#[derive(Debug)]
pub(super) enum Staging {
    /// They are in the host's memory.
    Host,
    /// Through page-locked memory.
    #[cfg(feature = "cuda")]
    Cuda(cuda::Staging),
}

/// Values on their way to the host.
#[derive(Debug)]
pub struct Fetch(Fetching);

#[derive(Debug)]
enum Fetching {
    /// Not begun: on the processor a copy is made when it is waited for, as late as a GPU's may be.
    Host(Array),
    #[cfg(feature = "cuda")]
    Cuda(cuda::Fetch),
}

impl Staging {
    pub(super) fn of(device: &Device) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Host),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::Staging::new(device).map(Self::Cuda),
            other => bail!("no staging for {:?}", other.location()),
        }
    }

    pub(super) fn free_bytes(&self) -> Result<Option<u64>> {
        match self {
            Self::Host => Ok(None),
            #[cfg(feature = "cuda")]
            Self::Cuda(staging) => staging.free_bytes().map(Some),
        }
    }

    pub(super) fn fetch(&self, values: &Array) -> Result<Fetch> {
        match self {
            Self::Host => Ok(Fetch(Fetching::Host(values.clone()))),
            #[cfg(feature = "cuda")]
            Self::Cuda(staging) => Ok(Fetch(Fetching::Cuda(staging.fetch(values)?))),
        }
    }

    pub(super) fn bring(
        &self,
        bytes: &[u8],
        dtype: DType,
        dims: &[usize],
        device: &Device,
    ) -> Result<Array> {
        match self {
            Self::Host => match dtype {
                DType::F16 => from_bytes::<f16>(bytes, dims, device),
                DType::BF16 => from_bytes::<bf16>(bytes, dims, device),
                DType::F32 => from_bytes::<f32>(bytes, dims, device),
                DType::F64 => from_bytes::<f64>(bytes, dims, device),
                other => bail!("values of {other:?} are not exchanged"),
            },
            #[cfg(feature = "cuda")]
            Self::Cuda(staging) => staging.bring(bytes, dtype, dims),
        }
    }
}

impl Fetch {
    /// Whether they have arrived.
    ///
    /// # Errors
    /// If the device fails.
    pub fn is_done(&self) -> Result<bool> {
        match &self.0 {
            Fetching::Host(_) => Ok(false),
            #[cfg(feature = "cuda")]
            Fetching::Cuda(fetch) => fetch.is_done(),
        }
    }

    /// Their bytes, little-endian, waited for.
    ///
    /// # Errors
    /// If the device fails.
    pub fn wait(self) -> Result<Bytes> {
        match self.0 {
            Fetching::Host(values) => match values.dtype() {
                DType::F16 => to_bytes::<f16>(&values),
                DType::BF16 => to_bytes::<bf16>(&values),
                DType::F32 => to_bytes::<f32>(&values),
                other => bail!("values of {other:?} are not exchanged"),
            },
            #[cfg(feature = "cuda")]
            Fetching::Cuda(fetch) => fetch.wait(),
        }
    }
}

fn to_bytes<T: WithDType + bytemuck::Pod>(values: &Array) -> Result<Bytes> {
    let values = values.flatten_all()?.to_vec1::<T>()?;
    Ok(Bytes::copy_from_slice(bytemuck::cast_slice(&values)))
}

fn from_bytes<T: WithDType + bytemuck::Pod>(
    bytes: &[u8],
    dims: &[usize],
    device: &Device,
) -> Result<Array> {
    Tensor::from_vec(bytemuck::pod_collect_to_vec::<u8, T>(bytes), dims, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_go_there_and_back_in_every_type() {
        let values = Tensor::new(&[[1.5_f32, -2.0, 0.25]], &Device::Cpu).unwrap();
        let staging = Staging::of(&Device::Cpu).unwrap();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let fetch = staging.fetch(&values.to_dtype(dtype).unwrap()).unwrap();
            let bytes = fetch.wait().unwrap();
            assert_eq!(bytes.len(), 3 * dtype.size_in_bytes());
            let back = staging.bring(&bytes, dtype, &[1, 3], &Device::Cpu).unwrap();
            let back = back.to_dtype(DType::F32).unwrap();
            assert_eq!(back.to_vec2::<f32>().unwrap(), [[1.5, -2.0, 0.25]]);
        }
        let integers = values.to_dtype(DType::U8).unwrap();
        assert!(staging.fetch(&integers).unwrap().wait().is_err());
    }
}
