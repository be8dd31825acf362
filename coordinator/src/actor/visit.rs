//! A client inside the coordinator's process: says what one on a connection says, and is answered alike.

use super::session::next_client;
use super::supervisor::{Answers, ClientCame, ClientLeft, ClientSaid, Supervisor};
use crate::director::{ClientId, Standing};
use actix::Addr;
use bytes::Bytes;
use protocol::message::{FromClient, ToClient};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::mpsc;

/// A client's session. Dropping it is the client's leaving.
#[derive(Debug)]
pub struct Visit {
    supervisor: Addr<Supervisor>,
    client: ClientId,
    answers: mpsc::UnboundedReceiver<(ToClient, Bytes)>,
    /// Bytes of payloads that wait to be taken: the supervisor hangs up where they grow too many.
    unread: Arc<AtomicUsize>,
}

impl Visit {
    pub(super) fn new(supervisor: Addr<Supervisor>, standing: Standing) -> Self {
        let (out, answers) = mpsc::unbounded_channel();
        let unread = Arc::new(AtomicUsize::new(0));
        let client = next_client();
        let came = Answers { out, unread: Arc::clone(&unread) };
        supervisor.do_send(ClientCame { client, answers: came, standing });
        Self { supervisor, client, answers, unread }
    }

    /// The number of its session.
    pub(super) fn client(&self) -> ClientId {
        self.client
    }

    /// Says something.
    pub fn say(&self, message: FromClient) {
        self.supervisor.do_send(ClientSaid { client: self.client, message });
    }

    /// The next message and its payload; None once the coordinator hung up.
    pub async fn next(&mut self) -> Option<(ToClient, Bytes)> {
        let (message, payload) = self.answers.recv().await?;
        self.unread.fetch_sub(payload.len(), Ordering::Relaxed);
        Some((message, payload))
    }

    /// Says something that is answered with the next message.
    pub async fn ask(&mut self, message: FromClient) -> Option<(ToClient, Bytes)> {
        self.say(message);
        self.next().await
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.supervisor.do_send(ClientLeft { client: self.client });
    }
}
