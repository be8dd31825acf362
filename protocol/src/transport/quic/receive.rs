//! The receiving direction: whatever streams the peer opens, each of one slot.

use super::Broken;
use super::closing::{self, Code};
use crate::id::{Rank, Site};
use crate::message::DataHead;
use crate::transport::incoming::{Arrival, Incoming};
use crate::transport::ledger::{Ledger, Ticket};
use crate::transport::{LinkError, LinkSpec};
use quinn::{Connection, RecvStream};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::{JoinError, JoinSet};

/// Receives all streams of one link.
pub(super) struct Receiver {
    connection: Connection,
    spec: LinkSpec,
    landing: Arc<Mutex<Landing>>,
    arrivals: UnboundedSender<Arrival>,
}

/// What the streams of a link share.
struct Landing {
    ledger: Ledger,
    /// The slots that have their stream.
    claimed: BTreeSet<Site>,
}

/// Whether anything came on a stream that has ended.
type Received = Result<bool, LinkError>;

impl Receiver {
    pub(super) fn new(
        connection: Connection,
        spec: &LinkSpec,
        arrivals: UnboundedSender<Arrival>,
    ) -> Self {
        let landing = Landing { ledger: spec.landing(), claimed: BTreeSet::new() };
        let landing = Arc::new(Mutex::new(landing));
        Self { connection, spec: spec.clone(), landing, arrivals }
    }

    /// Receives until the peer ends its direction, then closes the connection.
    pub(super) async fn run(self) -> Result<(), Broken> {
        let mut streams = JoinSet::new();
        let (mut ending, mut lost) = (false, false);
        while !(streams.is_empty() && (ending || lost)) {
            tokio::select! {
                stream = self.connection.accept_uni(), if !lost => match stream {
                    Ok(_) if ending => return self.fail(self.broke("it went on after its end")),
                    Ok(stream) => drop(streams.spawn(self.receive(stream))),
                    Err(_) => lost = true,
                },
                Some(ended) = streams.join_next() => match self.judge(ended) {
                    Ok(begun) => ending |= !begun,
                    Err(error) => return self.fail(error),
                },
            }
        }
        if ending {
            let closed = LinkError::Closed { peer: self.spec.peer, cause: String::new() };
            self.arrivals.send(Err(closed)).ok(); // or dropped: nobody is left to tell
            Code::Done.close(&self.connection);
            return Ok(());
        }
        self.fail(closing::lost(self.spec.peer, &self.connection))
    }

    /// A stream that failed because the connection did is no news: others may still hold values.
    fn judge(&self, ended: Result<Received, JoinError>) -> Received {
        match ended {
            Ok(Err(LinkError::Closed { .. })) if self.connection.close_reason().is_some() => {
                Ok(true)
            }
            Ok(received) => received,
            Err(panicked) => Err(closed(self.spec.peer, &panicked)),
        }
    }

    fn fail(&self, error: LinkError) -> Result<(), Broken> {
        self.arrivals.send(Err(error)).ok(); // or dropped: nobody is left to tell
        Code::Broke.close(&self.connection);
        Err(Broken)
    }

    fn broke(&self, cause: &str) -> LinkError {
        LinkError::Protocol { peer: self.spec.peer, cause: cause.to_owned() }
    }

    /// Receives one stream to its end.
    fn receive(&self, stream: RecvStream) -> impl Future<Output = Received> + Send + 'static {
        let (landing, arrivals) = (Arc::clone(&self.landing), self.arrivals.clone());
        let mut own = None;
        let enter = move |head: DataHead, bytes| {
            landing.lock().unwrap_or_else(PoisonError::into_inner).enter(&mut own, head, bytes)
        };
        let mut incoming = Incoming::new(stream, &self.spec, enter);
        async move {
            incoming.run(&arrivals).await?;
            Ok(incoming.begun())
        }
    }
}

fn closed(peer: Rank, cause: &impl ToString) -> LinkError {
    LinkError::Closed { peer, cause: cause.to_string() }
}

impl Landing {
    /// Enters a value that came on the stream of `own`, which its first value decides.
    fn enter(
        &mut self,
        own: &mut Option<Site>,
        head: DataHead,
        bytes: usize,
    ) -> Result<Option<Ticket>, String> {
        let slot = self.ledger.slot(head.site);
        if own.is_none() && !self.claimed.insert(head.site) {
            return Err(format!("{slot} came on a second stream"));
        }
        if *own.get_or_insert(head.site) != head.site {
            return Err(format!("{slot} came on another slot's stream"));
        }
        self.ledger.land(head, bytes)
    }
}
