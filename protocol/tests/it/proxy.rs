//! A network between two UDP sockets that does to packets what a test says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

/// What becomes of one packet.
pub(crate) enum Fate {
    Passes,
    IsLost,
    IsLate(Duration),
}

/// Whoever sends to its address reaches the target, and is answered from there.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    carrying: AbortHandle,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}

impl Proxy {
    /// `fate` is asked about every packet to the target (true) or from it (false).
    pub(crate) async fn start(
        target: SocketAddr,
        fate: impl FnMut(bool, &[u8]) -> Fate + Send + 'static,
    ) -> Self {
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a free port"));
        let back = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a free port"));
        let address = front.local_addr().expect("bound");
        let carrying = tokio::spawn(carry(front, back, target, fate)).abort_handle();
        Self { address, carrying }
    }
}

async fn carry(
    front: Arc<UdpSocket>,
    back: Arc<UdpSocket>,
    target: SocketAddr,
    mut fate: impl FnMut(bool, &[u8]) -> Fate,
) {
    let (mut there, mut answer) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut caller = target;
    loop {
        let (packet, out, to, forth) = tokio::select! {
            Ok((bytes, from)) = front.recv_from(&mut there) => {
                caller = from;
                (&there[..bytes], &back, target, true)
            }
            Ok((bytes, _)) = back.recv_from(&mut answer) => (&answer[..bytes], &front, caller, false),
            else => return,
        };
        match fate(forth, packet) {
            Fate::Passes => {
                out.send_to(packet, to).await.ok(); // nobody there: lost, as on any network
            }
            Fate::IsLost => {}
            Fate::IsLate(delay) => {
                let (out, packet) = (Arc::clone(out), packet.to_vec());
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    out.send_to(&packet, to).await.ok(); // as above
                });
            }
        }
    }
}
