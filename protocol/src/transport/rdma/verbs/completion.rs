//! What became of requests.

#![expect(unsafe_code, reason = "calls the library's functions on completion queues")]

use super::super::error::RdmaError;
use super::context::{Context, unblock, warn, watch};
use super::library::name;
use super::{check, pair::RECEIVE};
use ibverbs_sys as sys;
use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// How many completions are taken from the device at once: more than a wake-up usually finds.
const BATCH: usize = 16;

/// What became of one request.
#[derive(Clone, Debug)]
pub(in super::super) enum Completion {
    /// A write or a message was sent, and the peer's device has taken it.
    Sent,
    /// The peer wrote into this rank's memory and announced it.
    Written {
        /// The announcement.
        immediate: u32,
        /// The length of the write.
        bytes: u32,
    },
    /// The peer sent a message, which is nothing but this number.
    Message(u32),
    /// A request failed.
    Failed {
        /// It was one to send.
        sending: bool,
        /// How.
        status: Status,
    },
}

/// How a request failed.
#[derive(Clone, Debug)]
pub(in super::super) struct Status {
    code: sys::ibv_wc_status::Type,
    /// The library's words for it.
    pub(in super::super) name: String,
}

impl Status {
    /// The peer's device refused the request: the peer gave keys or addresses that are wrong, or
    /// did not keep the receives ready that it owes.
    pub(in super::super) fn is_refusal(&self) -> bool {
        use sys::ibv_wc_status as status;
        matches!(
            self.code,
            status::IBV_WC_REM_ACCESS_ERR
                | status::IBV_WC_REM_INV_REQ_ERR
                | status::IBV_WC_REM_OP_ERR
                | status::IBV_WC_RNR_RETRY_EXC_ERR
        )
    }
}

/// Where a device puts completions, and a file that becomes readable when it does.
#[derive(Debug)]
pub(in super::super) struct CompletionQueue {
    pub(super) raw: *mut sys::ibv_cq,
    channel: *mut sys::ibv_comp_channel,
    context: Arc<Context>,
}

// SAFETY: verbs may be called from any thread, and from several at once.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// A queue with room for `depth` completions.
    pub(in super::super) fn new(
        context: &Arc<Context>,
        depth: u32,
    ) -> Result<Arc<Self>, RdmaError> {
        let depth = c_int::try_from(depth).unwrap_or(c_int::MAX);
        // SAFETY: the context is open.
        let channel = unsafe { (context.library.ibv_create_comp_channel)(context.raw) };
        if channel.is_null() {
            let error = io::Error::last_os_error();
            return Err(RdmaError::verb("ibv_create_comp_channel", &error));
        }
        // SAFETY: context and channel are open; a null cookie is never read.
        let raw =
            unsafe { (context.library.ibv_create_cq)(context.raw, depth, null_mut(), channel, 0) };
        if raw.is_null() {
            let error = io::Error::last_os_error();
            // SAFETY: no queue uses the channel.
            warn("ibv_destroy_comp_channel", unsafe {
                (context.library.ibv_destroy_comp_channel)(channel)
            });
            return Err(RdmaError::verb("ibv_create_cq", &error));
        }
        let queue = Self { raw, channel, context: Arc::clone(context) };
        unblock(queue.channel_fd())
            .map_err(|error| RdmaError::verb("fcntl(O_NONBLOCK)", &error))?;
        Ok(Arc::new(queue))
    }

    /// Distinguishes it from other queues of the process.
    pub(in super::super) fn identity(&self) -> usize {
        self.raw.addr()
    }

    fn channel_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel keeps its file open until it is destroyed, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw((*self.channel).fd) }
    }

    /// A file that is readable when the queue was armed and got a completion.
    pub(in super::super) fn file(&self) -> io::Result<AsyncFd<OwnedFd>> {
        watch(self.channel_fd())
    }

    /// Moves all completions to `into`.
    pub(in super::super) fn poll(&self, into: &mut Vec<Completion>) -> Result<(), RdmaError> {
        loop {
            let mut batch = [const { MaybeUninit::<sys::ibv_wc>::uninit() }; BATCH];
            // SAFETY: the device's functions are there once it is open, and this one writes at
            // most as many completions as it is told there is room for.
            let count = unsafe {
                let poll = (*self.context.raw).ops.poll_cq.expect("every provider polls");
                let room = c_int::try_from(BATCH).expect("small");
                poll(self.raw, room, batch.as_mut_ptr().cast())
            };
            let count = usize::try_from(count).map_err(|_| {
                RdmaError::verb("ibv_poll_cq", &io::Error::other("the queue is broken"))
            })?;
            // SAFETY: the first `count` were written.
            into.extend(batch[..count].iter().map(|wc| self.read(unsafe { wc.assume_init_ref() })));
            if count < BATCH {
                return Ok(());
            }
        }
    }

    fn read(&self, wc: &sys::ibv_wc) -> Completion {
        let sending = wc.wr_id() != RECEIVE;
        if let Some((code, vendor)) = wc.error() {
            // SAFETY: the names of statuses are constants of the library.
            let name = unsafe { name((self.context.library.ibv_wc_status_str)(code)) };
            let name = format!("{name} (status {code}, vendor's {vendor:#x})");
            return Completion::Failed { sending, status: Status { code, name } };
        }
        if sending {
            return Completion::Sent;
        }
        let immediate = u32::from_be(wc.imm_data);
        if wc.opcode() == sys::ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM {
            let bytes = u32::try_from(wc.len()).unwrap_or(u32::MAX);
            Completion::Written { immediate, bytes }
        } else {
            Completion::Message(immediate)
        }
    }

    /// Makes the next completion that is put into the queue be told of through [`Self::file`].
    pub(in super::super) fn arm(&self) -> Result<(), RdmaError> {
        // SAFETY: the queue is alive.
        let code = unsafe {
            let arm = (*self.context.raw).ops.req_notify_cq.expect("every provider notifies");
            arm(self.raw, 0)
        };
        check(code).map_err(|error| RdmaError::verb("ibv_req_notify_cq", &error))
    }

    /// Takes what made the file readable. False: it was not.
    pub(in super::super) fn take_notice(&self) -> bool {
        let (mut queue, mut cookie) = (null_mut(), null_mut());
        // SAFETY: the results outlive the call; the notice is of this queue, the channel's only
        // one, and is acknowledged once.
        unsafe {
            let library = self.context.library;
            let code = (library.ibv_get_cq_event)(self.channel, &raw mut queue, &raw mut cookie);
            if code == 0 {
                (library.ibv_ack_cq_events)(queue, 1);
            }
            code == 0
        }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // SAFETY: queue pairs hold their completion queue, so there are none left, and all
        // notices that were taken are acknowledged.
        unsafe {
            warn("ibv_destroy_cq", (self.context.library.ibv_destroy_cq)(self.raw));
            let destroy = self.context.library.ibv_destroy_comp_channel;
            warn("ibv_destroy_comp_channel", destroy(self.channel));
        }
    }
}
