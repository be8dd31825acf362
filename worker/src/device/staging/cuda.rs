//! Copies on a stream of their own, through page-locked memory.
//!
//! Two streams, and all that orders them is here. A copy to the host waits, on the copies' stream, for what
//! the compute stream was given before; its source is kept until it is over. The compute stream waits
//! for a copy to the device before all that it is given after; from then on the memory is its own,
//! and freed in its order. cudarc's tracking of each slice's uses is therefore off: it would cost several driver
//! calls a kernel, and candle's kernels, which take bare pointers, are not seen by it.

#![expect(unsafe_code, reason = "page-locked memory is handed to links, and written by the driver")]

use super::Array;
use bytes::Bytes;
use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute;
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaSlice, CudaStream, DeviceRepr, DriverError, PinnedHostSlice, result,
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
    compute: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    pool: Arc<Pool>,
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staging").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Staging {
    /// That of a device which has computed nothing yet.
    pub(super) fn new(device: &CudaDevice) -> Result<Self> {
        // SAFETY: no tensor exists yet, and those to come are used by the compute stream alone, but for the
        // copies here, which are ordered as the module says.
        unsafe { device.disable_event_tracking() };
        let compute = device.cuda_stream();
        let copies = compute.context().new_stream().map_err(Error::wrap)?;
        keep_memory(&compute).map_err(Error::wrap)?;
        Ok(Self { device: device.clone(), compute, copies, pool: Arc::default() })
    }

    pub(super) fn free_bytes(&self) -> Result<u64> {
        let (free, _) = self.compute.context().mem_get_info().map_err(Error::wrap)?;
        Ok(u64::try_from(free).unwrap_or(u64::MAX))
    }

    pub(super) fn fetch(&self, values: &Array) -> Result<Fetch> {
        let source = values.contiguous()?;
        let computed = self.compute.record_event(None).map_err(Error::wrap)?;
        self.copies.wait(&computed).map_err(Error::wrap)?;
        let pinned = match source.dtype() {
            DType::F16 => self.to_host::<f16>(&source),
            DType::BF16 => self.to_host::<bf16>(&source),
            DType::F32 => self.to_host::<f32>(&source),
            other => bail!("values of {other:?} are not exchanged"),
        }?;
        let copied = self.copies.record_event(None).map_err(Error::wrap)?;
        let under_way = UnderWay { copied, pinned, _source: source };
        Ok(Fetch { under_way: Some(under_way), pool: Arc::clone(&self.pool) })
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
        let mut pinned = self.pool.take(&self.copies, length)?;
        self.copies.memcpy_dtoh(&bytes, &mut pinned).map_err(Error::wrap)?;
        Ok(pinned)
    }

    pub(super) fn bring(&self, bytes: &[u8], dtype: DType, dims: &[usize]) -> Result<Array> {
        let count: usize = dims.iter().product();
        if bytes.len() != count * dtype.size_in_bytes() {
            bail!("{} bytes for {dims:?} of {dtype:?}", bytes.len());
        }
        let mut pinned = self.pool.take(&self.copies, bytes.len())?;
        pinned.as_mut_slice().map_err(Error::wrap)?.copy_from_slice(bytes);
        let brought = match dtype {
            DType::F16 => self.to_device::<f16>(&pinned, count),
            DType::BF16 => self.to_device::<bf16>(&pinned, count),
            DType::F32 => self.to_device::<f32>(&pinned, count),
            DType::F64 => self.to_device::<f64>(&pinned, count),
            other => bail!("values of {other:?} are not exchanged"),
        };
        // Whether or not all went well: a copy may have begun.
        let copied = self.copies.record_event(None).map_err(Error::wrap)?;
        self.pool.give_back_after(copied, pinned);
        let storage = brought?;
        Ok(Tensor::from_storage(Storage::Cuda(storage), dims, BackpropOp::none(), false))
    }

    fn to_device<T: CudaDType + DeviceRepr>(
        &self,
        pinned: &PinnedHostSlice<u8>,
        count: usize,
    ) -> Result<CudaStorage> {
        // SAFETY: the copy below writes all of it, and whoever reads it waits for the copy.
        let mut values: CudaSlice<T> = unsafe { self.copies.alloc(count) }.map_err(Error::wrap)?;
        // SAFETY: any bytes are those of a number, and these are all of them.
        let room = unsafe { values.transmute_mut::<u8>(count * size_of::<T>()) };
        let mut room = room.ok_or_else(|| Error::msg("values without bytes"))?;
        self.copies.memcpy_htod(pinned, &mut room).map_err(Error::wrap)?;
        let copied = self.copies.record_event(None).map_err(Error::wrap)?;
        self.compute.wait(&copied).map_err(Error::wrap)?;
        // SAFETY: it is the allocation above, of so many values, given up by its first owner; the compute
        // stream, in whose order it is read and freed from now on, waits for the copy that fills it.
        let values = unsafe { self.compute.upgrade_device_ptr::<T>(values.leak(), count) };
        Ok(CudaStorage::wrap_cuda_slice(values, self.device.clone()))
    }
}

/// Lets the driver keep the memory that tensors give back: it would return all of it to the system whenever
/// a stream is waited for. And lets no stream wait for another because it was given its memory.
fn keep_memory(stream: &CudaStream) -> std::result::Result<(), DriverError> {
    let context = stream.context();
    context.bind_to_thread()?;
    let (mut all, mut no) = (u64::MAX, 0_i32);
    // SAFETY: the device is the context's; the driver reads a number of 64 bits, and one of 32.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut all).cast())?;
        let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut no).cast())
    }
}

/// A copy to the host.
pub(in crate::device) struct Fetch {
    /// None: it was waited for.
    under_way: Option<UnderWay>,
    pool: Arc<Pool>,
}

struct UnderWay {
    copied: CudaEvent,
    pinned: PinnedHostSlice<u8>,
    /// Read until then.
    _source: Array,
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").finish_non_exhaustive()
    }
}

impl Fetch {
    pub(super) fn is_done(&self) -> Result<bool> {
        let copied = self.under_way.as_ref().map_or(Ok(true), |copy| copy.copied.try_is_complete());
        copied.map_err(Error::wrap)
    }

    pub(super) fn wait(mut self) -> Result<Bytes> {
        let Some(UnderWay { copied, .. }) = &self.under_way else { return Ok(Bytes::new()) };
        copied.synchronize().map_err(Error::wrap)?;
        let Some(UnderWay { pinned, .. }) = self.under_way.take() else { return Ok(Bytes::new()) };
        let at = pinned.as_ptr().map_err(Error::wrap)?;
        let pool = Arc::clone(&self.pool);
        Ok(Bytes::from_owner(Arrived { at, pinned: Some(pinned), pool }))
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        // A run that ends early must not free what a copy still reads or writes. A device that failed
        // copies nothing any more.
        if let Some(UnderWay { copied, .. }) = &self.under_way {
            copied.synchronize().ok();
        }
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

/// Free page-locked memory is kept up to here, for the next values of its length. What images of other sizes
/// left behind goes back to the system once there is more.
const FREE_BYTES_MAX: usize = 1 << 30;

/// Page-locked memory: taking it from the system takes longer than a copy.
#[derive(Default)]
struct Pool(Mutex<Pinned>);

#[derive(Default)]
struct Pinned {
    /// By length: what crosses has the same in every call.
    free: BTreeMap<usize, Vec<PinnedHostSlice<u8>>>,
    free_bytes: usize,
    /// Read by copies until these events, in their order.
    busy: VecDeque<(CudaEvent, PinnedHostSlice<u8>)>,
}

impl Pinned {
    fn keep(&mut self, pinned: PinnedHostSlice<u8>) {
        if self.free_bytes + pinned.len() > FREE_BYTES_MAX {
            self.free.clear();
            self.free_bytes = 0;
        }
        self.free_bytes += pinned.len();
        self.free.entry(pinned.len()).or_default().push(pinned);
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The last copy ends last.
        if let Some((copied, _)) = self.busy.back() {
            copied.synchronize().ok();
        }
    }
}

impl Pool {
    fn take(&self, stream: &Arc<CudaStream>, length: usize) -> Result<PinnedHostSlice<u8>> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((copied, _)) = pool.busy.front() {
            if !copied.try_is_complete().map_err(Error::wrap)? {
                break;
            }
            if let Some((_, pinned)) = pool.busy.pop_front() {
                pool.keep(pinned);
            }
        }
        if let Some(pinned) = pool.free.get_mut(&length).and_then(Vec::pop) {
            pool.free_bytes -= length;
            return Ok(pinned);
        }
        // Not write-combined: links and this thread read it.
        // SAFETY: bytes have no wrong values, and all are written before any is read.
        unsafe { stream.context().alloc_pinned_with_flags(length, 0) }.map_err(Error::wrap)
    }

    fn give_back(&self, pinned: PinnedHostSlice<u8>) {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.keep(pinned);
    }

    fn give_back_after(&self, copied: CudaEvent, pinned: PinnedHostSlice<u8>) {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.busy.push_back((copied, pinned));
    }
}
