//! Queue pairs: reliable connections between two devices.

#![expect(unsafe_code, reason = "calls the library's functions on queue pairs")]

use super::super::error::RdmaError;
use super::check;
use super::completion::CompletionQueue;
use super::context::{Mtu, warn};
use super::memory::{MemoryRegion, ProtectionDomain};
use ibverbs_sys as sys;
use std::io;
use std::mem::zeroed;
use std::ptr::null_mut;
use std::sync::Arc;

/// Marks requests to receive.
pub(super) const RECEIVE: u64 = 0;
/// Marks requests to send.
const SEND: u64 = 1;

/// How long the device waits for the peer's to acknowledge: 4.096 us times two to this power, so
/// 1.1 s. A peer's device answers in microseconds; an emulated one, on a machine that is busy, was
/// seen to take some 100 ms for a burst.
const ACK_TIMEOUT_EXPONENT: u8 = 18;

/// How often it sends again before the peer counts as gone. Four waits are 4.3 s: a lost packet in
/// the midst of others is asked for again at once and does not use these up, and a switch that
/// reroutes takes less. 7 would be the most, but is without end on some devices (soft-RoCE).
const RETRIES: u8 = 3;

/// How often it sends again when the peer had no receive ready. A link's receives cover all that
/// its peer may send, so that one is enough to tell.
const RECEIVE_RETRIES: u8 = 1;

/// What the peer is asked to wait before that: 0.64 ms, as the specification codes it.
const RECEIVE_WAIT_CODE: u8 = 12;

/// How many routers a RoCE packet may pass: any network's.
const HOPS_MAX: u8 = 64;

/// How many requests each queue takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Depths {
    pub(in super::super) sends: u32,
    pub(in super::super) receives: u32,
}

/// Where the other queue pair is.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Peer {
    /// Its number.
    pub(in super::super) number: u32,
    /// The number of the first packet that comes from it.
    pub(in super::super) sequence: u32,
    /// The way there.
    pub(in super::super) hop: Hop,
    /// The largest packets that both ports take.
    pub(in super::super) mtu: Mtu,
}

/// The way to another port.
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Hop {
    /// By its address in the InfiniBand subnet.
    Lid(u16),
    /// By its global address, from the own one with this index.
    Gid {
        /// The peer's.
        to: [u8; 16],
        /// The own one's index in the port's table.
        from: u8,
        /// The peer's address in the subnet; 0 with RoCE.
        lid: u16,
    },
}

/// A part of a registered region, to be sent.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Piece<'a> {
    pub(in super::super) region: &'a MemoryRegion,
    pub(in super::super) at: usize,
    pub(in super::super) bytes: u32,
}

/// A place in the peer's memory.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Remote {
    pub(in super::super) address: u64,
    pub(in super::super) key: u32,
}

/// One end of a reliable connection. Once it is dropped nothing that the peer sends arrives.
#[derive(Debug)]
pub(in super::super) struct QueuePair {
    raw: *mut sys::ibv_qp,
    port: u8,
    domain: Arc<ProtectionDomain>,
    _completions: Arc<CompletionQueue>,
}

// SAFETY: verbs may be called from any thread, and from several at once.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// A queue pair on `port` that takes receives but is connected to nothing. Its completions
    /// must have room for those of all its requests.
    pub(in super::super) fn new(
        domain: &Arc<ProtectionDomain>,
        completions: &Arc<CompletionQueue>,
        depths: Depths,
        port: u8,
    ) -> Result<Self, RdmaError> {
        // SAFETY: all-zero is valid for this structure of numbers and pointers.
        let mut wanted: sys::ibv_qp_init_attr = unsafe { zeroed() };
        wanted.send_cq = completions.raw;
        wanted.recv_cq = completions.raw;
        wanted.qp_type = sys::ibv_qp_type::IBV_QPT_RC;
        wanted.cap.max_send_wr = depths.sends;
        wanted.cap.max_recv_wr = depths.receives;
        wanted.cap.max_send_sge = 1;
        wanted.cap.max_recv_sge = 1; // none are used, but some providers refuse 0
        // SAFETY: domain and completion queue are alive, and are held from here on.
        let raw = unsafe { (domain.context.library.ibv_create_qp)(domain.raw, &raw mut wanted) };
        if raw.is_null() {
            return Err(RdmaError::verb("ibv_create_qp", &io::Error::last_os_error()));
        }
        let (domain, completions) = (Arc::clone(domain), Arc::clone(completions));
        let pair = Self { raw, port, domain, _completions: completions };
        pair.initialise()?;
        Ok(pair)
    }

    /// Its number, by which the peer's device names it.
    pub(in super::super) fn number(&self) -> u32 {
        // SAFETY: the queue pair is alive.
        unsafe { (*self.raw).qp_num }
    }

    /// Distinguishes it from other queues of the process.
    pub(in super::super) fn identity(&self) -> usize {
        self.raw.addr()
    }

    fn initialise(&self) -> Result<(), RdmaError> {
        use sys::ibv_qp_attr_mask as mask;
        // SAFETY: all-zero is valid for this structure of numbers.
        let mut to: sys::ibv_qp_attr = unsafe { zeroed() };
        to.qp_state = sys::ibv_qp_state::IBV_QPS_INIT;
        to.port_num = self.port;
        to.qp_access_flags = sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0;
        let given = mask::IBV_QP_STATE
            | mask::IBV_QP_PKEY_INDEX
            | mask::IBV_QP_PORT
            | mask::IBV_QP_ACCESS_FLAGS;
        self.modify("ibv_modify_qp(INIT)", &mut to, given)
    }

    /// Connects it to `peer`; its own first packet has the number `sequence`.
    pub(in super::super) fn connect(&self, peer: &Peer, sequence: u32) -> Result<(), RdmaError> {
        use sys::ibv_qp_attr_mask as mask;
        // SAFETY: all-zero is valid for this structure of numbers.
        let mut to: sys::ibv_qp_attr = unsafe { zeroed() };
        to.qp_state = sys::ibv_qp_state::IBV_QPS_RTR;
        to.path_mtu = peer.mtu;
        to.dest_qp_num = peer.number;
        to.rq_psn = peer.sequence;
        to.min_rnr_timer = RECEIVE_WAIT_CODE;
        to.ah_attr = self.way(peer.hop);
        let given = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        self.modify("ibv_modify_qp(RTR)", &mut to, given)?;
        // SAFETY: as above.
        let mut to: sys::ibv_qp_attr = unsafe { zeroed() };
        to.qp_state = sys::ibv_qp_state::IBV_QPS_RTS;
        to.timeout = ACK_TIMEOUT_EXPONENT;
        to.retry_cnt = RETRIES;
        to.rnr_retry = RECEIVE_RETRIES;
        to.sq_psn = sequence;
        let given = mask::IBV_QP_STATE
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify("ibv_modify_qp(RTS)", &mut to, given)
    }

    fn way(&self, hop: Hop) -> sys::ibv_ah_attr {
        // SAFETY: all-zero is valid for this structure of numbers.
        let mut way: sys::ibv_ah_attr = unsafe { zeroed() };
        way.port_num = self.port;
        match hop {
            Hop::Lid(lid) => way.dlid = lid,
            Hop::Gid { to, from, lid } => {
                way.dlid = lid;
                way.is_global = 1;
                way.grh.dgid.raw = to;
                way.grh.sgid_index = from;
                way.grh.hop_limit = HOPS_MAX;
            }
        }
        way
    }

    fn modify(
        &self,
        verb: &'static str,
        to: &mut sys::ibv_qp_attr,
        given: sys::ibv_qp_attr_mask,
    ) -> Result<(), RdmaError> {
        let given = given.0.try_into().expect("a mask is small");
        // SAFETY: the queue pair is alive, and `to` outlives the call.
        let code = unsafe { (self.domain.context.library.ibv_modify_qp)(self.raw, to, given) };
        check(code).map_err(|error| RdmaError::verb(verb, &error))
    }

    /// Makes ready for one more message or announced write. It has no memory of its own: writes
    /// say where they go, and messages are empty.
    pub(in super::super) fn receive(&self) -> Result<(), RdmaError> {
        // SAFETY: all-zero is a request without memory; it and `refused` outlive the call, and the
        // device's functions are there once it is open.
        let code = unsafe {
            let mut request: sys::ibv_recv_wr = zeroed();
            request.wr_id = RECEIVE;
            let mut refused = null_mut();
            let post = (*self.domain.context.raw).ops.post_recv.expect("every provider receives");
            post(self.raw, &raw mut request, &raw mut refused)
        };
        check(code).map_err(|error| RdmaError::verb("ibv_post_recv", &error))
    }

    /// Writes `piece` to the peer's memory, and announces it if `immediate` says as what.
    pub(in super::super) fn write(
        &self,
        piece: &Piece<'_>,
        to: Remote,
        immediate: Option<u32>,
    ) -> Result<(), RdmaError> {
        let at = u64::try_from(piece.at).expect("addresses have at most 64 bits");
        let mut part = sys::ibv_sge {
            addr: piece.region.address() + at,
            length: piece.bytes,
            lkey: piece.region.local_key(),
        };
        // SAFETY: all-zero is valid for this structure of numbers and pointers.
        let mut request: sys::ibv_send_wr = unsafe { zeroed() };
        request.sg_list = &raw mut part;
        request.num_sge = i32::from(piece.bytes > 0);
        request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
        if let Some(immediate) = immediate {
            request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
            request.__bindgen_anon_1.imm_data = immediate.to_be();
        }
        request.wr.rdma.remote_addr = to.address;
        request.wr.rdma.rkey = to.key;
        self.post(&mut request)
    }

    /// Sends a message that is nothing but a number.
    pub(in super::super) fn send(&self, immediate: u32) -> Result<(), RdmaError> {
        // SAFETY: all-zero is valid for this structure of numbers and pointers.
        let mut request: sys::ibv_send_wr = unsafe { zeroed() };
        request.opcode = sys::ibv_wr_opcode::IBV_WR_SEND_WITH_IMM;
        request.__bindgen_anon_1.imm_data = immediate.to_be();
        self.post(&mut request)
    }

    fn post(&self, request: &mut sys::ibv_send_wr) -> Result<(), RdmaError> {
        request.wr_id = SEND;
        request.send_flags = sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
        let mut refused = null_mut();
        // SAFETY: the request, the part it names and `refused` outlive the call, which copies
        // them; the region stays registered until the link's queue pair is gone.
        let code = unsafe {
            let post = (*self.domain.context.raw).ops.post_send.expect("every provider sends");
            post(self.raw, request, &raw mut refused)
        };
        check(code).map_err(|error| RdmaError::verb("ibv_post_send", &error))
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: it is destroyed once, here, and its events are acknowledged when they are taken.
        let code = unsafe { (self.domain.context.library.ibv_destroy_qp)(self.raw) };
        warn("ibv_destroy_qp", code);
    }
}
