//! NCCL: what GPUs of one machine exchange without their hosts, on a stream of its own.
//!
//! The ranks of a communicator begin the same operations in the same order. An operation starts once all
//! that its device was given before is computed; what follows it waits for it on the device. No thread
//! waits but those that connect and leave, and whoever asks whether the device is done.

#[cfg(feature = "cuda")]
mod communicator;
#[cfg(feature = "cuda")]
mod library;

use super::{Array, Device, DeviceChoice};
use protocol::plan::{COMMUNICATOR_ID_BYTES, NcclDevice, Step};
use std::fmt;

/// Why there is no NCCL, or why it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NcclError {
    /// This program was built without it.
    #[error("this worker was built for the CPU; build it with `--features cuda` (docs/gpu.md)")]
    NotBuilt,
    /// The device is no NVIDIA GPU.
    #[error("NCCL is between NVIDIA GPUs, and this worker computes with --device {0}; use cuda:N")]
    NotOn(DeviceChoice),
    /// There is no such library here, or not all of it.
    #[error(
        "{library} cannot be loaded: {cause}; install NVIDIA's NCCL 2.18 or later, or name its folder in \
         LD_LIBRARY_PATH"
    )]
    Library {
        /// Its file.
        library: &'static str,
        /// What the system's loader said, or which function it lacks.
        cause: String,
    },
    /// A call failed.
    #[error("{call} failed: {cause}; NCCL_DEBUG=WARN makes NCCL say more")]
    Failed {
        /// Which.
        call: &'static str,
        /// What NCCL or the driver said.
        cause: String,
    },
}

/// What an operation that was begun is asked after by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// One rank of a communicator. Dropped without [`Self::leave`], it aborts what is under way.
pub trait Collective: fmt::Debug + Send {
    /// Begins `steps` in `buffer`, which is contiguous, and whose bytes they name; it must not be written
    /// or freed before what it is used for next follows the operation.
    ///
    /// # Errors
    /// If the buffer is too small or elsewhere, or NCCL fails.
    fn begin(&mut self, steps: &[Step], buffer: &Array) -> Result<Ticket, NcclError>;

    /// Lets what the device is given from now on wait for the operation. Once is enough.
    ///
    /// # Errors
    /// If the driver fails.
    fn follow(&mut self, ticket: Ticket) -> Result<(), NcclError>;

    /// Whether the device has computed all that it was given before this was first asked, since it was last
    /// true.
    ///
    /// # Errors
    /// If an operation failed, be it at a peer, or the driver did.
    fn is_done(&mut self) -> Result<bool, NcclError>;

    /// Ends what is under way, that nobody waits for it for ever. No operation can be begun any more.
    fn abort(&mut self);

    /// Ends the communicator, once all its ranks are done.
    ///
    /// # Errors
    /// If NCCL fails.
    fn leave(self: Box<Self>) -> Result<(), NcclError>;
}

/// What a new communicator's ranks find each other by.
pub type CommunicatorId = [u8; COMMUNICATOR_ID_BYTES];

/// What other ranks must know of `device` to exchange with it by NCCL.
///
/// # Errors
/// If this program, the device or the machine has no NCCL.
pub fn offer(device: &Device) -> Result<NcclDevice, NcclError> {
    #[cfg(feature = "cuda")]
    {
        communicator::offer(device)
    }
    #[cfg(not(feature = "cuda"))]
    {
        Err(none(device))
    }
}

/// The identity of a new communicator, for its first rank to hand to the others.
///
/// # Errors
/// If there is no NCCL, or it fails.
pub fn new_id(device: &Device) -> Result<CommunicatorId, NcclError> {
    #[cfg(feature = "cuda")]
    {
        communicator::new_id(device)
    }
    #[cfg(not(feature = "cuda"))]
    {
        Err(none(device))
    }
}

/// The communicator `id` of `ranks` ranks, as its rank `place`. Waits for the others.
///
/// # Errors
/// If there is no NCCL, it fails, or another rank is lost.
#[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "there is none to connect"))]
pub fn connect(
    device: &Device,
    id: &CommunicatorId,
    place: usize,
    ranks: usize,
) -> Result<Box<dyn Collective>, NcclError> {
    #[cfg(feature = "cuda")]
    {
        Ok(Box::new(communicator::Communicator::connect(device, id, place, ranks)?))
    }
    #[cfg(not(feature = "cuda"))]
    {
        Err(none(device))
    }
}

#[cfg(not(feature = "cuda"))]
fn none(device: &Device) -> NcclError {
    match device.choice() {
        DeviceChoice::Cuda(_) => NcclError::NotBuilt,
        other => NcclError::NotOn(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::job::Dtype;

    #[test]
    fn a_device_that_is_no_gpu_offers_nothing_and_says_why() {
        let device = Device::open(DeviceChoice::Candle, Dtype::F32).unwrap().unwrap();
        let refused = NcclError::NotOn(DeviceChoice::Candle);
        assert_eq!(offer(&device), Err(refused.clone()));
        assert_eq!(new_id(&device), Err(refused.clone()));
        let id = [0; COMMUNICATOR_ID_BYTES];
        assert_eq!(connect(&device, &id, 0, 2).unwrap_err(), refused);
    }
}
