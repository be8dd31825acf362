//! A rank of a communicator, on a stream of its own beside the one that computes.
//!
//! All that orders the two streams is here: an operation waits for what the compute stream was given before
//! it, and the compute stream for the operation, once that is to be followed. Buffers live as long as the
//! communicator's owner keeps them, and it drops them after this (see `parallel/nccl.rs`).

#![expect(unsafe_code, reason = "NCCL reads and writes tensors' memory by its address")]

use super::library::{Comm, Config, Nccl, Stretch, UniqueId, nccl};
use super::{Array, Collective, CommunicatorId, Device, NcclError, Ticket};
use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaStream, DevicePtr, DeviceRepr, DriverError,
};
use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::{DType, Storage};
use half::{bf16, f16};
use protocol::plan::{NcclDevice, Step};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// Multiprocessors that exchange may take: a few per cent of a large GPU's 108 to 132. A call's keys and
/// values of SDXL are some 0.3 GB and have its whole time to cross, so few are enough. Not measured.
const CTAS_MAX: c_int = 4;

/// Before the compute stream's, so that what peers wait for is not last in line for a multiprocessor.
const PRIORITY: i32 = -1;

/// A rank of a communicator.
pub(super) struct Communicator {
    nccl: &'static Nccl,
    /// None: it was aborted, or left.
    comm: Option<Comm>,
    place: usize,
    ranks: usize,
    compute: Arc<CudaStream>,
    exchange: Arc<CudaStream>,
    /// Ends of operations that nobody follows yet.
    ends: BTreeMap<Ticket, CudaEvent>,
    begun: u64,
    /// The end of what the compute stream was given when somebody began to ask for it.
    asked: Option<CudaEvent>,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time; only its owner does.
unsafe impl Send for Communicator {}

impl fmt::Debug for Communicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, ranks, .. } = self;
        f.debug_struct("Communicator")
            .field("place", place)
            .field("ranks", ranks)
            .finish_non_exhaustive()
    }
}

fn failed(call: &'static str) -> impl Fn(DriverError) -> NcclError {
    move |error| NcclError::Failed { call, cause: error.to_string() }
}

fn gpu(device: &Device) -> Result<&CudaDevice, NcclError> {
    match device.candle() {
        candle_core::Device::Cuda(gpu) => Ok(gpu),
        _ => Err(NcclError::NotOn(device.choice())),
    }
}

/// What NCCL tells machines apart by: the name and the boot; containers with other names are others.
fn host() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let boot = read("/proc/sys/kernel/random/boot_id");
    format!("{} {}", read("/proc/sys/kernel/hostname").trim(), boot.trim())
}

pub(super) fn offer(device: &Device) -> Result<NcclDevice, NcclError> {
    let gpu = gpu(device)?;
    let version = nccl()?.version()?;
    let uuid = gpu.cuda_stream().context().uuid().map_err(failed("cuDeviceGetUuid"))?;
    let uuid: String =
        uuid.bytes.iter().map(|byte| format!("{:02x}", byte.to_ne_bytes()[0])).collect();
    Ok(NcclDevice { host: host(), gpu: uuid, version })
}

pub(super) fn new_id(device: &Device) -> Result<CommunicatorId, NcclError> {
    gpu(device)?;
    Ok(nccl()?.unique_id()?.bytes)
}

impl Communicator {
    /// Waits for all other ranks; and for a first exchange with each, so that none of a run's waits for
    /// channels to be made.
    pub(super) fn connect(
        device: &Device,
        id: &CommunicatorId,
        place: usize,
        ranks: usize,
    ) -> Result<Self, NcclError> {
        let (gpu, nccl) = (gpu(device)?, nccl()?);
        let compute = gpu.cuda_stream();
        let context = Arc::clone(compute.context());
        context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))?;
        let exchange = context
            .new_stream_with_priority(PRIORITY)
            .map_err(failed("cuStreamCreateWithPriority"))?;
        let comm = nccl.init(
            UniqueId { bytes: *id },
            (number(place), number(ranks)),
            Config::new(CTAS_MAX),
        )?;
        let mut communicator = Self {
            nccl,
            comm: Some(comm),
            place,
            ranks,
            compute,
            exchange,
            ends: BTreeMap::new(),
            begun: 0,
            asked: None,
        };
        communicator.meet(device)?;
        Ok(communicator)
    }

    fn meet(&mut self, device: &Device) -> Result<(), NcclError> {
        let buffer = Array::zeros(2 * self.ranks, DType::F32, device.candle());
        let buffer = buffer.map_err(|error| NcclError::Failed {
            call: "cuMemAllocAsync",
            cause: error.to_string(),
        })?;
        let all = self.ranks * size_of::<f32>();
        let part =
            |place: usize| all + place * size_of::<f32>()..all + (place + 1) * size_of::<f32>();
        let peers = (0..self.ranks).filter(|peer| *peer != self.place);
        let own = self.place;
        let sent =
            peers.flat_map(|peer| [Step::Send(peer, part(own)), Step::Receive(peer, part(peer))]);
        let sent: Vec<Step> = sent.collect();
        for steps in [&[Step::AllGather(0..all)][..], &sent] {
            let ticket = self.begin(steps, &buffer)?;
            self.follow(ticket)?;
        }
        // The buffer is freed in the compute stream's order.
        self.exchange.synchronize().map_err(failed("cuStreamSynchronize"))
    }

    fn comm(&self) -> Result<Comm, NcclError> {
        let aborted =
            || NcclError::Failed { call: "NCCL", cause: "the communicator was aborted".to_owned() };
        self.comm.ok_or_else(aborted)
    }

    /// # Safety
    /// As of [`Nccl::receive`], of all bytes of `buffer` that `step` names.
    unsafe fn call(&self, comm: Comm, step: &Step, buffer: Stretch) -> Result<(), NcclError> {
        let on = (comm, self.exchange.cu_stream().cast::<c_void>());
        // SAFETY: as the caller says; a part lies inside the bytes of which it is one.
        unsafe {
            match step {
                Step::AllGather(bytes) => {
                    let all = within(buffer, bytes)?;
                    let part = all.bytes / self.ranks;
                    let address = all.address + (self.place * part) as u64;
                    self.nccl.all_gather(Stretch { address, bytes: part }, all, on)
                }
                Step::Send(peer, bytes) => {
                    self.nccl.send(within(buffer, bytes)?, number(*peer), on)
                }
                Step::Receive(peer, bytes) => {
                    self.nccl.receive(within(buffer, bytes)?, number(*peer), on)
                }
            }
        }
    }
}

/// Ranks are far below 2^31.
fn number(place: usize) -> c_int {
    c_int::try_from(place).unwrap_or(c_int::MAX)
}

/// `bytes` of a buffer.
fn within(buffer: Stretch, bytes: &Range<usize>) -> Result<Stretch, NcclError> {
    if bytes.start > bytes.end || bytes.end > buffer.bytes {
        let cause = format!("bytes {bytes:?} of a buffer of {}", buffer.bytes);
        return Err(NcclError::Failed { call: "NCCL", cause });
    }
    let address = buffer.address + bytes.start as u64;
    Ok(Stretch { address, bytes: bytes.len() })
}

/// Where the values of `buffer` lie.
fn stretch(buffer: &Array, stream: &CudaStream) -> Result<Stretch, NcclError> {
    let stretch = match buffer.dtype() {
        DType::F16 => stretch_of::<f16>(buffer, stream),
        DType::BF16 => stretch_of::<bf16>(buffer, stream),
        DType::F32 => stretch_of::<f32>(buffer, stream),
        _ => None,
    };
    let cause = || format!("{:?} of {:?} is no buffer on this GPU", buffer.dims(), buffer.dtype());
    stretch.ok_or_else(|| NcclError::Failed { call: "NCCL", cause: cause() })
}

fn stretch_of<T: CudaDType + DeviceRepr>(buffer: &Array, stream: &CudaStream) -> Option<Stretch> {
    let (storage, layout) = buffer.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return None };
    let (from, to) = layout.contiguous_offsets()?;
    let values = storage.as_cuda_slice::<T>().ok()?.slice(from..to);
    // Nothing is recorded with it: the tracking of slices is off (`staging/cuda.rs`).
    let (address, _) = values.device_ptr(stream);
    Some(Stretch { address, bytes: (to - from) * size_of::<T>() })
}

impl Collective for Communicator {
    fn begin(&mut self, steps: &[Step], buffer: &Array) -> Result<Ticket, NcclError> {
        let comm = self.comm()?;
        let buffer = stretch(buffer, &self.exchange)?;
        let computed = self.compute.record_event(None).map_err(failed("cuEventRecord"))?;
        self.exchange.wait(&computed).map_err(failed("cuStreamWaitEvent"))?;
        self.nccl.group(|| {
            // SAFETY: communicator and streams are this GPU's, and so is the buffer, which its owner neither
            // touches nor frees before it follows the operation; what computed it is waited for.
            steps.iter().try_for_each(|step| unsafe { self.call(comm, step, buffer) })
        })?;
        let end = self.exchange.record_event(None).map_err(failed("cuEventRecord"))?;
        self.begun += 1;
        let ticket = Ticket(self.begun);
        self.ends.insert(ticket, end);
        Ok(ticket)
    }

    fn follow(&mut self, ticket: Ticket) -> Result<(), NcclError> {
        let Some(end) = self.ends.remove(&ticket) else { return Ok(()) };
        self.compute.wait(&end).map_err(failed("cuStreamWaitEvent"))
    }

    fn is_done(&mut self) -> Result<bool, NcclError> {
        let comm = self.comm()?;
        // SAFETY: it is neither aborted nor destroyed.
        unsafe { self.nccl.check(comm) }?;
        let asked = match self.asked.take() {
            Some(asked) => asked,
            None => self.compute.record_event(None).map_err(failed("cuEventRecord"))?,
        };
        let done = asked.try_is_complete().map_err(failed("cuEventQuery"))?;
        if !done {
            self.asked = Some(asked);
        }
        Ok(done)
    }

    fn abort(&mut self) {
        let Some(comm) = self.comm.take() else { return };
        // SAFETY: it is used no more.
        if let Err(error) = unsafe { self.nccl.abort(comm) } {
            tracing::warn!("{error}");
        }
        // What was under way has ended; the buffers may be freed.
        if let Err(error) = self.exchange.synchronize() {
            tracing::warn!("the exchange that was aborted: {error}");
        }
    }

    fn leave(mut self: Box<Self>) -> Result<(), NcclError> {
        let Some(comm) = self.comm.take() else { return Ok(()) };
        self.exchange.synchronize().map_err(failed("cuStreamSynchronize"))?;
        // SAFETY: it is used no more.
        unsafe { self.nccl.destroy(comm) }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        self.abort();
    }
}
