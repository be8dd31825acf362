//! QUIC's parameters for this traffic, from the plan's sizes where they depend on it.

use crate::codec::{DATA_BODY_BYTES_MAX, LENGTHS_BYTES};
use crate::plan::SlotSpec;
use crate::transport::{LinkSpec, VERSIONS_MAX};
use quinn::congestion::{BbrConfig, ControllerFactory, CubicConfig, NewRenoConfig};
use quinn::udp::UdpSocketState;
use quinn::{Connection, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

/// How long nothing may come from a peer before it counts as dead. A process that is killed says
/// nothing over UDP, and the system does not say it in its place as with TCP; between live ends
/// something comes every [`KEEP_ALIVE`]. Five of those in a row are not lost by chance, nor does a
/// busy machine keep a thread waiting that long. With the one that may still be on its way, death
/// is noticed within 3 s.
pub const IDLE_TIMEOUT: Duration = Duration::from_millis(2500);

/// How often a connection without traffic shows that it lives.
pub const KEEP_ALIVE: Duration = Duration::from_millis(500);

/// The largest packet that is tried for, in bytes of UDP payload. Discovery goes up to what the
/// path carries: 1,472 on Ethernet, this where frames are jumbo, and on loopback. Not more,
/// because ten packets, which quinn hands to the kernel at once, must fit the 65,507 bytes of one
/// send with segmentation offload: the kernel refuses a longer one, and all ten are lost.
pub const MTU_BYTES_MAX: u16 = 6500;

/// The round trip that is assumed until one was measured. A packet of the handshake that is lost
/// is sent again after three of these; quinn's 333 ms are for the internet.
const RTT_INITIAL: Duration = Duration::from_millis(50);

/// What one stream may have on its way. quinn fixes it before the plan is known. 32 MiB keep
/// 10 Gbit/s busy over 25 ms; what they may take in memory is bounded by the connection's window.
const STREAM_WINDOW_BYTES: u32 = 32 << 20;

/// What a connection may have on its way at most, though the plan has more: 25 Gbit/s over 80 ms.
/// Values are read as they come, so that only what came after a lost packet takes memory.
const WINDOW_BYTES_MAX: u64 = 256 << 20;

/// What someone unknown may send before the hello is done: twice the longest hello, so that it
/// need not wait for credit.
const GREETING_WINDOW_BYTES: u32 = 128 << 10;

/// What the sockets of an endpoint hold in the kernel: 3 ms at 10 Gbit/s, while the thread that
/// serves the socket is not running.
const SOCKET_BYTES: usize = 4 << 20;

/// What decides how fast a connection sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// As TCP on Linux: slows down at loss.
    Cubic,
    /// Measures bandwidth and round trip: does not slow down at loss that is not congestion.
    #[default]
    Bbr,
    /// The simplest: halves at loss.
    NewReno,
}

impl Congestion {
    fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Cubic => Arc::new(CubicConfig::default()),
            Self::Bbr => Arc::new(BbrConfig::default()),
            Self::NewReno => Arc::new(NewRenoConfig::default()),
        }
    }
}

/// What holds for connections of either side until their plan is known: one stream for the hello.
pub(super) fn transport(congestion: Congestion) -> TransportConfig {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(MTU_BYTES_MAX);
    let idle_ms = u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(1_u32.into())
        .max_concurrent_uni_streams(0_u32.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(GREETING_WINDOW_BYTES.into())
        .send_window(GREETING_WINDOW_BYTES.into())
        .datagram_receive_buffer_size(None)
        .initial_rtt(RTT_INITIAL)
        .mtu_discovery_config(Some(mtu))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .congestion_controller_factory(congestion.factory());
    config
}

/// Opens the windows of a connection as far as the slots of its link need: two versions of each.
pub(super) fn widen(connection: &Connection, spec: &LinkSpec) {
    let streams = u32::try_from(spec.lands().len()).unwrap_or(u32::MAX);
    let end = 1;
    connection.set_max_concurrent_uni_streams(streams.saturating_add(end).into());
    let window = VarInt::from_u64(window_bytes(spec.lands())).unwrap_or(VarInt::MAX);
    connection.set_receive_window(window);
    connection.set_send_window(window_bytes(spec.posts()));
}

fn window_bytes(slots: &[SlotSpec]) -> u64 {
    let frame = |spec: &SlotSpec| LENGTHS_BYTES + DATA_BODY_BYTES_MAX + spec.bytes;
    let bytes = slots.iter().map(frame).sum::<usize>().saturating_mul(VERSIONS_MAX.into());
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    bytes.clamp(GREETING_WINDOW_BYTES.into(), WINDOW_BYTES_MAX)
}

/// Gives a socket the buffers that a burst needs, or as much as the kernel lets.
pub(super) fn enlarge(socket: &UdpSocket) -> io::Result<()> {
    let state = UdpSocketState::new(socket.into())?;
    state.set_recv_buffer_size(socket.into(), SOCKET_BYTES)?;
    state.set_send_buffer_size(socket.into(), SOCKET_BYTES)?;
    let received = state.recv_buffer_size(socket.into())?;
    let sent = state.send_buffer_size(socket.into())?;
    if received.min(sent) < SOCKET_BYTES {
        tracing::warn!(
            received,
            sent,
            wanted = SOCKET_BYTES,
            "the kernel keeps the buffers of UDP small, which costs throughput: \
             raise net.core.rmem_max and net.core.wmem_max"
        );
    }
    Ok(())
}
