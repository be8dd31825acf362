//! TEMP
#![allow(missing_docs)]
use bytes::Bytes;
use protocol::transport::{Landed, Link, LinkError};
use protocol::{Call, Rank, Slot};
use std::task::{Context, Poll};
use tokio::sync::mpsc;
#[derive(Debug)]
struct L {
    peer: Rank,
    tx: mpsc::UnboundedSender<Landed>,
    rx: mpsc::UnboundedReceiver<Landed>,
}
impl Link for L {
    fn post(&mut self, slot: Slot, call: Call, bytes: &[u8]) -> Result<(), LinkError> {
        let _x = self.tx.send(Landed { slot, call, bytes: Bytes::copy_from_slice(bytes) });
        Ok(())
    }
    fn poll_landed(&mut self, cx: &mut Context<'_>) -> Poll<Result<Landed, LinkError>> {
        self.rx
            .poll_recv(cx)
            .map(|o| o.ok_or(LinkError::Closed { peer: self.peer, cause: String::new() }))
    }
}
pub fn mesh(n: u16) -> Vec<Vec<(Rank, Box<dyn Link>)>> {
    let mut out: Vec<Vec<(Rank, Box<dyn Link>)>> = (0..n).map(|_| vec![]).collect();
    for a in 0..n {
        for b in a + 1..n {
            let (t1, r1) = mpsc::unbounded_channel();
            let (t2, r2) = mpsc::unbounded_channel();
            out[a as usize].push((Rank(b), Box::new(L { peer: Rank(b), tx: t1, rx: r2 })));
            out[b as usize].push((Rank(a), Box::new(L { peer: Rank(a), tx: t2, rx: r1 })));
        }
    }
    out
}
