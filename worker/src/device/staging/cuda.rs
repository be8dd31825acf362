//! Copies on a stream of their own, through page-locked memory.
//!
//! What orders the two streams are the events that cudarc keeps with every slice: a copy to the host
//! waits, on its stream, for the kernel that writes the values; a kernel waits, on its own, for the
//! copy to the device that it reads. Of reads a slice remembers the last one only, so a copy to the host
//! keeps its source from being freed until it is over.

#![expect(unsafe_code, reason = "page-locked memory is handed to links, and written by the driver")]

use super::Array;
use bytes::Bytes;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DeviceRepr, PinnedHostSlice,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice, CudaStorage};
use candle_core::op::BackpropOp;
use candle_core::{DType, Error, Result, Storage, Tensor, bail};
use half::{bf16, f16};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// The stream of a device's copies.
pub(in crate::device) struct Staging {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    pool: Arc<Pool>,
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Staging {
    pub(super) fn new(device: &CudaDevice) -> Result<Self> {
        let context = Arc::clone(device.cuda_stream().context());
        let stream = context.new_stream().map_err(Error::wrap)?;
        Ok(Self { device: device.clone(), stream, pool: Arc::default() })
    }

    pub(super) fn free_bytes(&self) -> Result<u64> {
        let (free, _) = self.stream.context().mem_get_info().map_err(Error::wrap)?;
        Ok(u64::try_from(free).unwrap_or(u64::MAX))
    }

    pub(super) fn fetch(&self, values: &Array) -> Result<Fetch> {
        let source = values.contiguous()?;
        let pinned = match source.dtype() {
            DType::F16 => self.to_host::<f16>(&source),
            DType::BF16 => self.to_host::<bf16>(&source),
            DType::F32 => self.to_host::<f32>(&source),
            other => bail!("values of {other:?} are not exchanged"),
        }?;
        let copied = self.stream.record_event(None).map_err(Error::wrap)?;
        Ok(Fetch { pinned, copied, _source: source, pool: Arc::clone(&self.pool) })
    }

    fn to_host<T: CudaDType + DeviceRepr>(&self, source: &Array) -> Result<PinnedHostSlice<u8>> {
        let (storage, layout) = source.storage_and_layout();
        let (Storage::Cuda(storage), Some((from, to))) = (&*storage, layout.contiguous_offsets())
        else {
            bail!("values that are not contiguous on this GPU cannot be fetched");
        };
        let values = storage.as_cuda_slice::<T>()?.slice(from..to);
        let length = (to - from) * size_of::<T>();
        // SAFETY: any bytes of a number are bytes, and these are all of them.
        let bytes = unsafe { values.transmute::<u8>(length) };
        let bytes = bytes.ok_or_else(|| Error::msg("values without bytes"))?;
        let mut pinned = self.pool.take(&self.stream, length)?;
        self.stream.memcpy_dtoh(&bytes, &mut pinned).map_err(Error::wrap)?;
        Ok(pinned)
    }

    pub(super) fn bring(&self, bytes: &[u8], dtype: DType, dims: &[usize]) -> Result<Array> {
        let count: usize = dims.iter().product();
        if bytes.len() != count * dtype.size_in_bytes() {
            bail!("{} bytes for {dims:?} of {dtype:?}", bytes.len());
        }
        let mut pinned = self.pool.take(&self.stream, bytes.len())?;
        // Not in use any more, so that nothing is waited for.
        pinned.as_mut_slice().map_err(Error::wrap)?.copy_from_slice(bytes);
        let storage = match dtype {
            DType::F16 => self.to_device::<f16>(&pinned, count),
            DType::BF16 => self.to_device::<bf16>(&pinned, count),
            DType::F32 => self.to_device::<f32>(&pinned, count),
            DType::F64 => self.to_device::<f64>(&pinned, count),
            other => bail!("values of {other:?} are not exchanged"),
        }?;
        let copied = self.stream.record_event(None).map_err(Error::wrap)?;
        self.pool.give_back_after(copied, pinned);
        Ok(Tensor::from_storage(Storage::Cuda(storage), dims, BackpropOp::none(), false))
    }

    fn to_device<T: CudaDType + DeviceRepr>(
        &self,
        pinned: &PinnedHostSlice<u8>,
        count: usize,
    ) -> Result<CudaStorage> {
        // SAFETY: the copy below writes all of it, and whoever reads it waits for the copy.
        let mut values: CudaSlice<T> = unsafe { self.stream.alloc(count) }.map_err(Error::wrap)?;
        // SAFETY: any bytes are those of a number, and these are all of them.
        let room = unsafe { values.transmute_mut::<u8>(count * size_of::<T>()) };
        let mut room = room.ok_or_else(|| Error::msg("values without bytes"))?;
        self.stream.memcpy_htod(pinned, &mut room).map_err(Error::wrap)?;
        Ok(CudaStorage::wrap_cuda_slice(values, self.device.clone()))
    }
}

/// A copy to the host.
pub(in crate::device) struct Fetch {
    // In this order: what is copied to is waited for when it is dropped, and only then is the source.
    pinned: PinnedHostSlice<u8>,
    copied: CudaEvent,
    _source: Array,
    pool: Arc<Pool>,
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").field("bytes", &self.pinned.len()).finish_non_exhaustive()
    }
}

impl Fetch {
    pub(super) fn is_done(&self) -> Result<bool> {
        self.copied.try_is_complete().map_err(Error::wrap)
    }

    pub(super) fn wait(self) -> Result<Bytes> {
        let at = self.pinned.as_ptr().map_err(Error::wrap)?;
        let Self { pinned, pool, .. } = self;
        Ok(Bytes::from_owner(Arrived { at, pinned: Some(pinned), pool }))
    }
}

/// Values that arrived. Their memory is used again once nobody reads them.
struct Arrived {
    at: *const u8,
    pinned: Option<PinnedHostSlice<u8>>,
    pool: Arc<Pool>,
}

// SAFETY: `at` points into `pinned`, which may be sent; nothing writes there while this lives.
unsafe impl Send for Arrived {}

impl AsRef<[u8]> for Arrived {
    fn as_ref(&self) -> &[u8] {
        let length = self.pinned.as_ref().map_or(0, PinnedHostSlice::len);
        // SAFETY: the copy that wrote these bytes is over, and the memory is not freed before `pinned`.
        unsafe { std::slice::from_raw_parts(self.at, length) }
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        if let Some(pinned) = self.pinned.take() {
            self.pool.give_back(pinned);
        }
    }
}

/// Page-locked memory: taking it from the system takes longer than a copy.
#[derive(Default)]
struct Pool(Mutex<Pinned>);

#[derive(Default)]
struct Pinned {
    /// By length: what crosses has the same in every call.
    free: BTreeMap<usize, Vec<PinnedHostSlice<u8>>>,
    /// Read by copies until these events, in their order.
    busy: VecDeque<(CudaEvent, PinnedHostSlice<u8>)>,
}

impl Pool {
    fn take(&self, stream: &Arc<CudaStream>, length: usize) -> Result<PinnedHostSlice<u8>> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((copied, _)) = pool.busy.front() {
            if !copied.try_is_complete().map_err(Error::wrap)? {
                break;
            }
            if let Some((_, pinned)) = pool.busy.pop_front() {
                pool.free.entry(pinned.len()).or_default().push(pinned);
            }
        }
        if let Some(pinned) = pool.free.get_mut(&length).and_then(Vec::pop) {
            return Ok(pinned);
        }
        // Not write-combined: links and this thread read it.
        // SAFETY: bytes have no wrong values, and all are written before any is read.
        unsafe { stream.context().alloc_pinned_with_flags(length, 0) }.map_err(Error::wrap)
    }

    fn give_back(&self, pinned: PinnedHostSlice<u8>) {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.free.entry(pinned.len()).or_default().push(pinned);
    }

    fn give_back_after(&self, copied: CudaEvent, pinned: PinnedHostSlice<u8>) {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.busy.push_back((copied, pinned));
    }
}
