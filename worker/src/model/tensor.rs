//! Activations: contiguous values and their shape, as f32 in an arena of the host's memory, or on a device.
//!
//! A layer's result is made in the memory of its input ([`Tensor::make`], [`Tensor::on_device`]), so
//! whoever makes the first tensor of a call decides where all are, and what computes them; and in a
//! planning arena nothing is computed, but what the call needs is counted.

use super::{Error, Result};
use crate::device::{Array, Device};
use crate::kernels::{Arena, Block};
use crate::profile::{self, Work};
use std::borrow::{Borrow, Cow};
use std::fmt;
use std::sync::Arc;

/// Dimensions of any tensor here: images have four.
const RANK_MAX: usize = 4;

/// The values of a layer's input or output, and how they are arranged. Clones share them.
#[derive(Clone)]
pub struct Tensor {
    dims: Dims,
    values: Values,
}

#[derive(Clone)]
enum Values {
    Host(Arc<Block>),
    Device(Device, Array),
}

/// Where tensors are made.
#[derive(Clone, Debug)]
pub enum Memory {
    /// In the host's memory: our own kernels compute.
    Host(Arena),
    /// On a device, which computes.
    Device(Device),
}

impl Default for Memory {
    fn default() -> Self {
        Self::Host(Arena::default())
    }
}

impl From<Arena> for Memory {
    fn from(arena: Arena) -> Self {
        Self::Host(arena)
    }
}

/// A tensor's values on a device.
#[derive(Clone, Copy, Debug)]
pub struct OnDevice<'a> {
    /// Where they are.
    pub device: &'a Device,
    /// They.
    pub values: &'a Array,
}

impl<'a> OnDevice<'a> {
    /// What is to be computed with these values, on the same device.
    ///
    /// # Errors
    /// If it is not there.
    pub fn with(&self, other: Option<&'a Tensor>) -> Result<Option<&'a Array>> {
        other.map(Tensor::array).transpose()
    }

    /// What `compute` makes, on the same device. While a profile is taken, it is waited for.
    ///
    /// # Errors
    /// As `compute`, or if it makes something of more dimensions than tensors have.
    pub fn make(
        &self,
        work: Work,
        compute: impl FnOnce() -> candle_core::Result<Array>,
    ) -> Result<Tensor> {
        let _timed = profile::span(work);
        let made = compute()?;
        if profile::is_wanted() {
            self.device.finish()?;
        }
        Tensor::of_array(self.device, made)
    }
}

/// Up to four dimensions, the outermost first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    sizes: [usize; RANK_MAX],
    rank: usize,
}

impl<const N: usize> From<[usize; N]> for Dims {
    fn from(dims: [usize; N]) -> Self {
        const { assert!(N <= RANK_MAX, "more dimensions than any tensor here has") };
        let mut sizes = [1; RANK_MAX];
        sizes[..N].copy_from_slice(&dims);
        Self { sizes, rank: N }
    }
}

impl Dims {
    fn as_slice(&self) -> &[usize] {
        &self.sizes[..self.rank]
    }

    fn count(&self) -> usize {
        self.as_slice().iter().product()
    }

    /// The same with `size` in place of the one at `dim`.
    fn with(mut self, dim: usize, size: usize) -> Self {
        self.sizes[dim] = size;
        self
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor{:?}", self.dims)
    }
}

impl Tensor {
    /// A tensor of these values in `memory`.
    ///
    /// # Errors
    /// If their number is not the shape's, or the device has no room for them.
    pub fn new(memory: &Memory, values: &[f32], dims: impl Into<Dims>) -> Result<Self> {
        let dims = dims.into();
        if dims.count() != values.len() {
            return Err(Error::Shape(format!("{} values for a tensor of {dims:?}", values.len())));
        }
        match memory {
            Memory::Host(arena) => {
                let mut block = arena.take(values.len());
                if !arena.is_planning() {
                    block.copy_from_slice(values);
                }
                Ok(Self { dims, values: Values::Host(Arc::new(block)) })
            }
            Memory::Device(device) => {
                Self::of_array(device, device.upload(values, dims.as_slice())?)
            }
        }
    }

    /// A tensor in the host's memory, where this one is, whose values `fill` computes: all of them, for
    /// they begin as whatever was there. Where memory is only planned, it is not asked to.
    ///
    /// # Errors
    /// As `fill`; or if this one is on a device.
    pub fn make(
        &self,
        work: Work,
        dims: impl Into<Dims>,
        fill: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let dims = dims.into();
        let Values::Host(block) = &self.values else {
            let cause = format!("{work:?} of {:?} is not known to the device", self.dims);
            return Err(Error::Shape(cause));
        };
        let mut block = block.arena().take(dims.count());
        if !self.is_planned() {
            let _timed = profile::span(work);
            fill(&mut block)?;
        }
        Ok(Self { dims, values: Values::Host(Arc::new(block)) })
    }

    /// As [`Self::make`], of a tensor that may be on a device: what the host computed is copied there.
    ///
    /// # Errors
    /// As `fill`; or if the device has no room for them.
    pub fn make_on_host(
        &self,
        work: Work,
        dims: impl Into<Dims>,
        fill: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<Self> {
        let dims = dims.into();
        let Values::Device(device, _) = &self.values else { return self.make(work, dims, fill) };
        let mut values = vec![0.0; dims.count()];
        fill(&mut values)?;
        Self::of_array(device, device.upload(&values, dims.as_slice())?)
    }

    /// What was put into `block`, in this shape.
    ///
    /// # Errors
    /// If it has room for more or fewer values.
    pub fn of(block: Block, dims: impl Into<Dims>) -> Result<Self> {
        let dims = dims.into();
        if dims.count() != block.room() {
            return Err(Error::Shape(format!("{} values for {dims:?}", block.room())));
        }
        Ok(Self { dims, values: Values::Host(Arc::new(block)) })
    }

    /// What `device` computed.
    ///
    /// # Errors
    /// If it has more dimensions than tensors here.
    pub fn of_array(device: &Device, values: Array) -> Result<Self> {
        let (mut sizes, rank) = ([1; RANK_MAX], values.rank());
        let room = sizes.get_mut(..rank);
        let room = room.ok_or_else(|| Error::Shape(format!("{:?} dimensions", values.dims())))?;
        room.copy_from_slice(values.dims());
        Ok(Self { dims: Dims { sizes, rank }, values: Values::Device(device.clone(), values) })
    }

    /// The same values in another shape.
    ///
    /// # Errors
    /// If it has more or fewer.
    pub fn reshape(&self, dims: impl Into<Dims>) -> Result<Self> {
        let dims = dims.into();
        if dims.count() != self.dims.count() {
            return Err(Error::Shape(format!("{:?} cannot become {dims:?}", self.dims)));
        }
        let values = match &self.values {
            Values::Host(block) => Values::Host(Arc::clone(block)),
            Values::Device(device, values) => {
                Values::Device(device.clone(), values.reshape(dims.as_slice())?)
            }
        };
        Ok(Self { dims, values })
    }

    /// The memory it is in.
    #[must_use]
    pub fn memory(&self) -> Memory {
        match &self.values {
            Values::Host(block) => Memory::Host(block.arena().clone()),
            Values::Device(device, _) => Memory::Device(device.clone()),
        }
    }

    /// Whether it has a shape, but no values.
    #[must_use]
    pub fn is_planned(&self) -> bool {
        matches!(&self.values, Values::Host(block) if block.is_empty() && self.dims.count() > 0)
    }

    /// Its values on a device, if they are on one.
    #[must_use]
    pub fn on_device(&self) -> Option<OnDevice<'_>> {
        match &self.values {
            Values::Host(_) => None,
            Values::Device(device, values) => Some(OnDevice { device, values }),
        }
    }

    /// Its values in the host's memory, the last dimension's next to each other. None where they are
    /// only planned, or on a device.
    #[must_use]
    pub fn view(&self) -> &[f32] {
        match &self.values {
            Values::Host(block) => block,
            Values::Device(..) => &[],
        }
    }

    /// Its values, wherever they are: a device's are waited for.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_host(&self) -> Result<Cow<'_, [f32]>> {
        match &self.values {
            Values::Host(block) => Ok(Cow::Borrowed(block)),
            Values::Device(device, values) => Ok(Cow::Owned(device.download(values)?)),
        }
    }

    /// Its dimensions.
    #[must_use]
    pub fn dims(&self) -> &[usize] {
        self.dims.as_slice()
    }

    /// Its dimensions, to make another like it.
    #[must_use]
    pub fn shape(&self) -> Dims {
        self.dims
    }

    /// How many values it has.
    #[must_use]
    pub fn elem_count(&self) -> usize {
        self.dims.count()
    }

    /// The size of one dimension.
    ///
    /// # Errors
    /// If it has fewer.
    pub fn dim(&self, dim: usize) -> Result<usize> {
        let size = self.dims().get(dim).copied();
        size.ok_or_else(|| Error::Shape(format!("{:?} has no dimension {dim}", self.dims)))
    }

    /// All dimensions.
    ///
    /// # Errors
    /// If there are more or fewer.
    pub fn sizes<const N: usize>(&self) -> Result<[usize; N]> {
        let sizes = <[usize; N]>::try_from(self.dims());
        sizes.map_err(|_| Error::Shape(format!("{:?} has not {N} dimensions", self.dims)))
    }

    /// Its dimensions with the last one replaced.
    #[must_use]
    pub fn with_last(&self, size: usize) -> Dims {
        self.dims.with(self.dims.rank - 1, size)
    }

    /// `count` of the places along `dim`, from `from` on.
    ///
    /// # Errors
    /// If it has no such places.
    pub fn narrow(&self, dim: usize, from: usize, count: usize) -> Result<Self> {
        let size = self.dim(dim)?;
        if from + count > size {
            let cause =
                format!("{:?} has no places {from}..{} along {dim}", self.dims, from + count);
            return Err(Error::Shape(cause));
        }
        if count == size {
            return Ok(self.clone());
        }
        if let Some(x) = self.on_device() {
            return x.make(Work::Copy, || x.values.narrow(dim, from, count)?.contiguous());
        }
        let inner: usize = self.dims()[dim + 1..].iter().product();
        self.make(Work::Copy, self.dims.with(dim, count), |out| {
            let parts = self.view().chunks_exact(size * inner);
            for (out, values) in out.chunks_exact_mut(count * inner).zip(parts) {
                out.copy_from_slice(&values[from * inner..(from + count) * inner]);
            }
            Ok(())
        })
    }

    /// Tensors one after another along `dim`, in the memory of the first.
    ///
    /// # Errors
    /// If there are none, or they differ in another dimension.
    pub fn cat(parts: &[impl Borrow<Self>], dim: usize) -> Result<Self> {
        let parts: Vec<&Self> = parts.iter().map(Borrow::borrow).collect();
        let first = *parts.first().ok_or_else(|| Error::Shape("no tensors to join".to_owned()))?;
        if let [only] = parts[..] {
            return Ok(only.clone());
        }
        first.dim(dim)?;
        let alike = |part: &&Self| {
            part.dims.rank == first.dims.rank && part.dims.with(dim, 1) == first.dims.with(dim, 1)
        };
        if let Some(other) = parts.iter().find(|part| !alike(part)) {
            let cause = format!("{:?} and {:?} do not join along {dim}", first.dims, other.dims);
            return Err(Error::Shape(cause));
        }
        if let Some(x) = first.on_device() {
            let parts = parts.iter().map(|part| part.array()).collect::<Result<Vec<&Array>>>()?;
            return x.make(Work::Copy, || Array::cat(&parts, dim));
        }
        let size = parts.iter().map(|part| part.dims.sizes[dim]).sum();
        let inner: usize = first.dims()[dim + 1..].iter().product();
        first.make(Work::Copy, first.dims.with(dim, size), |out| {
            for (index, mut out) in out.chunks_exact_mut(size * inner).enumerate() {
                for part in &parts {
                    let length = part.dims.sizes[dim] * inner;
                    let room = out.split_off_mut(..length).expect("the parts' sizes add up");
                    room.copy_from_slice(&part.view()[index * length..(index + 1) * length]);
                }
            }
            Ok(())
        })
    }

    /// The array of one that must be on a device.
    ///
    /// # Errors
    /// If it is not.
    pub fn array(&self) -> Result<&Array> {
        let elsewhere = || Error::Shape(format!("{self:?} is not on the device that reads it"));
        self.on_device().map(|x| x.values).ok_or_else(elsewhere)
    }

    /// Each value times `scale` plus `shift`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn affine(&self, scale: f32, shift: f32) -> Result<Self> {
        if let Some(x) = self.on_device() {
            return x.make(Work::Pointwise, || x.values.affine(scale.into(), shift.into()));
        }
        self.make(Work::Pointwise, self.dims, |out| {
            let values = out.iter_mut().zip(self.view());
            values.for_each(|(out, value)| *out = value * scale + shift);
            Ok(())
        })
    }
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "test values are small")]
mod tests {
    use super::*;
    use crate::device::DeviceChoice;
    use protocol::job::Dtype;

    fn counting(dims: [usize; 3]) -> Tensor {
        let values: Vec<f32> = (0..dims.iter().product::<usize>()).map(|at| at as f32).collect();
        Tensor::new(&Memory::default(), &values, dims).unwrap()
    }

    #[test]
    fn a_part_along_any_dimension_and_back() {
        let x = counting([2, 3, 4]);
        for dim in 0..3 {
            let size = x.dims()[dim];
            let (first, rest) = (x.narrow(dim, 0, 1).unwrap(), x.narrow(dim, 1, size - 1).unwrap());
            assert_eq!(Tensor::cat(&[&first, &rest], dim).unwrap().view(), x.view(), "{dim}");
        }
        assert_eq!(x.narrow(1, 1, 1).unwrap().view(), [4.0, 5.0, 6.0, 7.0, 16.0, 17.0, 18.0, 19.0]);
        assert!(x.narrow(1, 2, 2).is_err() && x.narrow(3, 0, 1).is_err());
        assert!(Tensor::cat(&[&x, &counting([2, 3, 5])], 1).is_err());
    }

    #[test]
    fn what_is_elsewhere_is_an_error() {
        let device = Device::open(DeviceChoice::Candle, Dtype::F32).unwrap().unwrap();
        let here = counting([1, 2, 3]);
        let there = Tensor::new(&Memory::Device(device), here.view(), [1, 2, 3]).unwrap();
        assert_eq!(*there.to_host().unwrap(), *here.view());
        assert!(there.make(Work::Norm, [6], |_| Ok(())).is_err(), "no operation of the device");
        assert!(Tensor::cat(&[&there, &here], 1).is_err());
        let reading = there.on_device().unwrap();
        assert!(reading.with(Some(&here)).is_err() && reading.with(None).unwrap().is_none());
        assert!(reading.with(Some(&there)).unwrap().is_some());
    }

    #[test]
    fn what_is_planned_has_a_shape_only() {
        let plan = Memory::from(Arena::planning());
        let x = Tensor::new(&plan, &[1.0; 6], [2, 3]).unwrap();
        let never = |_: &mut [f32]| -> Result<()> { panic!("nothing is computed") };
        let y = x.make(Work::Copy, [3, 3], never).unwrap();
        assert_eq!((y.dims(), y.view().len(), y.is_planned()), (&[3, 3][..], 0, true));
        assert!(y.reshape([10]).is_err());
    }
}
