//! Rows of the image where they lie: in this rank's memory, or where a peer's landed.

use crate::device::{Array, Device};
use crate::kernels::Stored;
use crate::model::tensor::{OnDevice, Tensor};
use crate::model::{Error, Result};
use crate::profile::Work;
use bytes::Bytes;
use candle_core::DType;
use half::{bf16, f16};
use protocol::job::Wire;

/// Rows or tokens [batch, count, ..] of the image.
#[derive(Clone, Debug)]
pub struct Rows {
    count: usize,
    values: Values,
}

#[derive(Clone, Debug)]
enum Values {
    Own(Tensor),
    Landed(Wire, Bytes),
    Device(Array),
    Planned,
}

impl Rows {
    /// This band's, which lie along dimension `dim` of `x`.
    ///
    /// # Errors
    /// If it has no such dimension.
    pub fn own(x: &Tensor, dim: usize) -> Result<Self> {
        Ok(Self { count: x.dim(dim)?, values: Values::Own(x.clone()) })
    }

    /// `count` of a peer's, as they landed.
    #[must_use]
    pub fn landed(count: usize, wire: Wire, bytes: Bytes) -> Self {
        // Buffers for values of thousands of bytes are aligned; none promises it.
        let aligned = bytes.as_ptr().addr().is_multiple_of(align_of::<f32>());
        let bytes = if aligned { bytes } else { Bytes::from_owner(Words::copy(&bytes)) };
        Self { count, values: Values::Landed(wire, bytes) }
    }

    /// `count` of peers', or of all bands, that are on a device.
    #[must_use]
    pub fn of_array(count: usize, values: Array) -> Self {
        Self { count, values: Values::Device(values) }
    }

    /// `count` of a peer's that will land, where memory is only planned.
    #[must_use]
    pub fn planned(count: usize) -> Self {
        Self { count, values: Values::Planned }
    }

    /// How many rows or tokens there are of each image.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Their values; none if they are on a device.
    #[must_use]
    pub fn values(&self) -> Stored<'_> {
        match &self.values {
            Values::Own(x) => Stored::F32(x.view()),
            Values::Landed(Wire::F32, bytes) => Stored::F32(bytemuck::cast_slice(bytes)),
            Values::Landed(Wire::F16, bytes) => Stored::F16(bytemuck::cast_slice::<u8, f16>(bytes)),
            Values::Landed(Wire::Bf16, bytes) => {
                Stored::Bf16(bytemuck::cast_slice::<u8, bf16>(bytes))
            }
            Values::Device(_) | Values::Planned => Stored::F32(&[]),
        }
    }

    /// Their values on `device`, in the shape `dims`.
    ///
    /// # Errors
    /// If they are this rank's and elsewhere, or the device has no room for them.
    pub fn on_device(&self, device: &Device, dims: &[usize]) -> Result<Array> {
        match &self.values {
            Values::Own(x) => Ok(x.array()?.clone()),
            Values::Landed(wire, bytes) => Ok(device.bring(bytes, dtype(*wire), dims)?),
            Values::Device(values) if values.dims() == dims => Ok(values.clone()),
            Values::Device(values) => Ok(values.reshape(dims)?),
            Values::Planned => Err(Error::Shape("rows that are only planned".to_owned())),
        }
    }

    /// All of `parts`, whose rows are [batch, rows, channels], one after another on a device that computes
    /// in `own`'s type.
    ///
    /// # Errors
    /// If this rank's are elsewhere, or the device has no room for them.
    pub fn joined_on_device(
        parts: &[Self],
        own: OnDevice<'_>,
        [batch, channels]: [usize; 2],
    ) -> Result<Array> {
        let part = |rows: &Self| -> Result<Array> {
            let values = rows.on_device(own.device, &[batch, rows.count, channels])?;
            Ok(values.to_dtype(own.values.dtype())?)
        };
        let parts = parts.iter().map(part).collect::<Result<Vec<_>>>()?;
        Ok(Array::cat(&parts, 1)?)
    }

    /// Their values, of a site whose values cross as f32.
    ///
    /// # Errors
    /// If they were rounded.
    pub fn exact(&self) -> Result<&[f32]> {
        match self.values() {
            Stored::F32(values) => Ok(values),
            _ => Err(Error::Shape("these rows should have crossed as f32".to_owned())),
        }
    }

    /// All of `parts`, whose rows are [batch, rows, channels], one after another in the memory of `own`.
    ///
    /// # Errors
    /// If they were rounded.
    pub fn joined(parts: &[Self], own: &Tensor) -> Result<Tensor> {
        let [batch, _, channels] = own.sizes()?;
        let count: usize = parts.iter().map(Self::count).sum();
        if let Some(x) = own.on_device() {
            let joined = Self::joined_on_device(parts, x, [batch, channels])?;
            return Tensor::of_array(x.device, joined);
        }
        own.make(Work::Copy, [batch, count, channels], |mut out| {
            for image in 0..batch {
                for part in parts {
                    let values = &part.exact()?[image * part.count * channels..];
                    let room = out.split_off_mut(..part.count * channels);
                    let room = room.expect("the parts' counts add up");
                    room.copy_from_slice(&values[..part.count * channels]);
                }
            }
            Ok(())
        })
    }
}

/// The type in which values cross.
#[must_use]
pub fn dtype(wire: Wire) -> DType {
    match wire {
        Wire::F32 => DType::F32,
        Wire::F16 => DType::F16,
        Wire::Bf16 => DType::BF16,
    }
}

/// Bytes that begin where a value may.
struct Words {
    words: Vec<f32>,
    length: usize,
}

impl Words {
    fn copy(bytes: &[u8]) -> Self {
        let mut words = vec![0.0; bytes.len().div_ceil(size_of::<f32>())];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, length: bytes.len() }
    }
}

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lands_anywhere_can_be_read() {
        let values = [1.5_f32, -2.0, 3.25];
        for shift in 0..4 {
            let mut bytes = vec![0; shift];
            bytes.extend(bytemuck::cast_slice::<f32, u8>(&values));
            let rows = Rows::landed(3, Wire::F32, Bytes::from(bytes).slice(shift..));
            assert_eq!(rows.exact().unwrap(), values);
        }
    }
}
