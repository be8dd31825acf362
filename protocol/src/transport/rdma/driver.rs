//! The task that serves one link: it alone talks to the queue pair.

use super::super::LinkError;
use super::super::connection::{Reading, Writing};
use super::super::stream::{FrameReader, StreamError};
use super::agreement;
use super::completions::Completions;
use super::device::EventReader;
use super::error::RdmaError;
use super::incoming::{Incoming, Release};
use super::layout::{FINISHED, read_immediate};
use super::outgoing::{Outgoing, Post};
use super::verbs::{Completion, Event, MemoryRegion, QueuePair, Scope, Status};
use crate::codec::Frame;
use crate::id::Rank;
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

/// How often a link on which nothing is under way writes nothing to its peer, to learn whether the
/// machine is still there: one that loses power or its cable ends no connection. With the retries
/// of the queue pair that is noticed within 7 s, of which the coordinator's lease is told no later.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// How long after a request failed the device may take to tell what for: events go through a queue of
/// the kernel's, completions do not.
const EXPLAINED_WITHIN: Duration = Duration::from_millis(100);

/// What serves a link. The fields are dropped in this order: first the queue pair, after which
/// nothing that the peer sends can land, then the region and its key, and last the connection,
/// whose end the peer takes for the link's.
pub(super) struct Driver {
    pub(super) pair: QueuePair,
    pub(super) _landing: MemoryRegion,
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    pub(super) waiting: Waiting,
    pub(super) peer: Rank,
    pub(super) port: u8,
    /// A request failed, and nothing says why.
    pub(super) unexplained: bool,
}

/// What can wake it.
pub(super) struct Waiting {
    pub(super) completions: Completions,
    /// The identity of their queue.
    pub(super) queue: usize,
    pub(super) events: EventReader,
    pub(super) posts: UnboundedReceiver<Post>,
    pub(super) releases: UnboundedReceiver<Release>,
    pub(super) probe: Interval,
    pub(super) reader: FrameReader<Reading>,
    /// Only kept open.
    pub(super) _writing: Writing,
}

/// Ticks when a quiet link is to be probed.
pub(super) fn probe_interval() -> Interval {
    let mut interval = interval_at(Instant::now() + PROBE_EVERY, PROBE_EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

impl Driver {
    /// Serves the link until both ends have finished or one is gone. Posts are void from then on.
    pub(super) async fn serve(mut self) {
        let mut ended = self.run().await;
        if self.unexplained
            && let Ok(Err(why)) = timeout(EXPLAINED_WITHIN, self.explanation()).await
        {
            ended = Err(why);
        }
        let broken = matches!(ended, Err(LinkError::Protocol { .. }));
        if let Err(error) = ended {
            tracing::debug!(%error, "a link over RDMA ends");
            self.incoming.end(error);
        }
        let mut posts = self.into_posts();
        while !broken && posts.recv().await.is_some() {}
    }

    /// Drops everything but the posts.
    fn into_posts(self) -> UnboundedReceiver<Post> {
        self.waiting.posts
    }

    async fn run(&mut self) -> Result<(), LinkError> {
        loop {
            self.take_completions()?;
            self.take_requests();
            self.outgoing.pump(&self.pair).map_err(|error| self.failed(&error))?;
            if self.incoming.has_ended() && self.outgoing.is_over() {
                return Ok(());
            }
            if self.waiting.completions.prepare().map_err(|error| self.failed(&error))? {
                match self.wait().await? {
                    Wake::Something => {}
                    Wake::Ended(how) => return self.connection_ended(how),
                    Wake::Quiet => self.probe()?,
                }
            } else {
                tokio::task::yield_now().await; // to see whether the run was aborted
            }
        }
    }

    fn take_completions(&mut self) -> Result<(), LinkError> {
        let completions = self.waiting.completions.take().map_err(|error| self.failed(&error))?;
        completions.into_iter().try_for_each(|completion| self.complete(completion))
    }

    fn complete(&mut self, completion: Completion) -> Result<(), LinkError> {
        match completion {
            Completion::Sent => self.outgoing.sent(),
            Completion::Written { immediate, bytes } => {
                self.receive_again()?;
                self.incoming.land(immediate, bytes).map_err(|cause| self.broke(cause))?;
            }
            Completion::Message(FINISHED) => self.incoming.end(self.closed(String::new())),
            Completion::Message(credit) => {
                self.receive_again()?;
                let (slot, call) = read_immediate(credit);
                self.outgoing.returned(slot, call).map_err(|cause| self.broke(cause))?;
            }
            Completion::Failed { sending, status } => return Err(self.refused(sending, &status)),
        }
        Ok(())
    }

    /// Replaces a receive before anything is done that lets the peer send once more.
    fn receive_again(&self) -> Result<(), LinkError> {
        self.pair.receive().map_err(|error| self.failed(&error))
    }

    /// What posts and readers have left.
    fn take_requests(&mut self) {
        while let Ok(post) = self.waiting.posts.try_recv() {
            self.outgoing.post(post);
        }
        while let Ok(release) = self.waiting.releases.try_recv() {
            self.release(release);
        }
    }

    fn release(&mut self, release: Release) {
        if let Some(call) = self.incoming.release(release) {
            self.outgoing.give_back(release.slot, call);
        }
    }

    /// Sleeps until there may be something to do.
    async fn wait(&mut self) -> Result<Wake, LinkError> {
        let Waiting { completions, events, posts, releases, probe, reader, .. } = &mut self.waiting;
        let ready = tokio::select! {
            ready = completions.ready() => ready,
            post = posts.recv(), if !self.outgoing.ends() => {
                match post {
                    Some(post) => self.outgoing.post(post),
                    None => self.outgoing.end(),
                }
                Ok(())
            }
            Some(release) = releases.recv() => {
                self.release(release);
                Ok(())
            }
            how = reader.next_frame() => return Ok(Wake::Ended(how)),
            ready = events.ready() => match ready {
                Ok(()) => return self.take_events().map(|()| Wake::Something),
                failed => failed,
            },
            _ = probe.tick() => return Ok(Wake::Quiet),
        };
        let failed = |error| self.failed(&RdmaError::verb("epoll", &error));
        ready.map(|()| Wake::Something).map_err(failed)
    }

    /// Waits until the device tells of something that ends the link.
    async fn explanation(&mut self) -> Result<(), LinkError> {
        loop {
            self.take_events()?;
            let ready = self.waiting.events.ready().await;
            ready.map_err(|error| self.failed(&RdmaError::verb("epoll", &error)))?;
        }
    }

    fn take_events(&mut self) -> Result<(), LinkError> {
        while let Some(Event { name, scope, trespass }) = self.waiting.events.take() {
            let concerned = match scope {
                Scope::Device => true,
                Scope::Port(port) => port == self.port,
                Scope::Queue(id) => id == self.pair.identity() || id == self.waiting.queue,
            };
            if concerned && trespass {
                return Err(self.broke(format!("it reached for memory that it may not: {name}")));
            }
            if concerned {
                return Err(self.closed(format!("the device reports: {name}")));
            }
        }
        Ok(())
    }

    fn probe(&mut self) -> Result<(), LinkError> {
        if self.outgoing.is_idle() && !self.incoming.has_ended() {
            self.outgoing.probe(&self.pair).map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    /// The connection beside the link is over, and so the peer is; what has landed counts.
    fn connection_ended(
        &mut self,
        how: Result<Option<Frame>, StreamError>,
    ) -> Result<(), LinkError> {
        self.take_completions()?;
        match how {
            _ if self.incoming.has_ended() => Ok(()),
            Ok(None) => Err(self.closed("its process or its run ended before the link".to_owned())),
            Ok(Some(_)) => Err(self.broke("it sent a message after the link was open".to_owned())),
            Err(error) => Err(agreement::failed(self.peer, &error)),
        }
    }

    fn refused(&mut self, sending: bool, status: &Status) -> LinkError {
        let name = &status.name;
        if status.is_refusal() {
            return self.broke(match sending {
                true => format!("its device refused what this link may do: {name}"),
                false => format!("it reached for memory that it may not: {name}"),
            });
        }
        self.unexplained = true;
        self.closed(format!("its device is gone or failed: {name}"))
    }

    fn failed(&self, error: &RdmaError) -> LinkError {
        self.closed(error.to_string())
    }

    fn closed(&self, cause: String) -> LinkError {
        LinkError::Closed { peer: self.peer, cause }
    }

    fn broke(&self, cause: String) -> LinkError {
        LinkError::Protocol { peer: self.peer, cause }
    }
}

/// Why a wait was over.
enum Wake {
    Something,
    /// The connection ended, or carried what it should not.
    Ended(Result<Option<Frame>, StreamError>),
    /// It may be time for a probe.
    Quiet,
}
