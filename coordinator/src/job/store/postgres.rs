//! A Postgres database, or a schema of one.
//!
//! It is used from a thread of its own: its client waits for the network, which the coordinator's decisions must not
//! for long. What takes longer than [`PATIENCE`] goes on there, and the caller hears that it is not known what came of
//! it; until it is, nothing else is begun.

mod session;

use super::StoreError;
use super::database::{Database, Durable, Row, Statement};
use session::{RETRY, Session};
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How long the coordinator waits for an answer: a commit takes milliseconds, and meanwhile it does nothing else.
const PATIENCE: Duration = Duration::from_secs(2);

/// Hears that another coordinator took the jobs.
pub(super) type OnTaken = Box<dyn FnOnce(StoreError) + Send>;

/// What the thread is asked to do.
struct Call {
    what: String,
    kind: Kind,
    answer: SyncSender<Result<Answer, StoreError>>,
}

enum Kind {
    Change(Durable, Vec<Statement>),
    Select(Statement),
}

#[derive(Debug)]
enum Answer {
    Changed(Vec<i64>),
    Rows(Vec<Row>),
}

/// A database that no other coordinator uses.
#[derive(Debug)]
pub(super) struct Postgres {
    place: String,
    /// None once it is dropped.
    calls: Option<Sender<Call>>,
    /// Whether the thread is at something whose caller left.
    late: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Postgres {
    /// The database at `url`; makes its tables if they are not there.
    pub(super) fn connect(url: &str, on_taken: OnTaken) -> Result<Self, StoreError> {
        let (calls, called) = channel();
        let (opened, open) = sync_channel(1);
        let late = Arc::new(AtomicBool::new(false));
        let (url, ours) = (url.to_owned(), Arc::clone(&late));
        // The client blocks, which it may not do on a thread that runs a coordinator's futures.
        let serve = move || match Session::open(&url) {
            Err(error) => drop(opened.send(Err(error))),
            Ok(session) => {
                if opened.send(Ok(session.place().to_owned())).is_ok() {
                    serve(session, &called, &ours, on_taken);
                }
            }
        };
        let failed = |cause: String| StoreError::Io {
            place: "Postgres".to_owned(),
            what: "the thread that uses it".to_owned(),
            cause,
        };
        let thread = thread::Builder::new().name("postgres".to_owned()).spawn(serve);
        let thread = thread.map_err(|error| failed(error.to_string()))?;
        let place = open.recv().map_err(|error| failed(error.to_string()))??;
        Ok(Self { place, calls: Some(calls), late, thread: Some(thread) })
    }

    fn call(&self, what: &dyn Display, kind: Kind) -> Result<Answer, StoreError> {
        let (place, what) = (self.place.clone(), what.to_string());
        if self.late.load(Ordering::Acquire) {
            let cause = "it is still at what it was asked before".to_owned();
            return Err(StoreError::Unreachable { place, what, cause });
        }
        let changes = matches!(kind, Kind::Change(..));
        let (answer, answered) = sync_channel(1);
        let call = Call { what: what.clone(), kind, answer };
        let gone = || "its thread has ended".to_owned();
        let sent = self.calls.as_ref().map(|calls| calls.send(call));
        if !matches!(sent, Some(Ok(()))) {
            return Err(StoreError::Unreachable { place, what, cause: gone() });
        }
        let cause = match answered.recv_timeout(PATIENCE) {
            Ok(answer) => return answer,
            Err(RecvTimeoutError::Timeout) => {
                self.late.store(true, Ordering::Release);
                // It may have answered just now, and then nothing is late.
                if let Ok(answer) = answered.try_recv() {
                    self.late.store(false, Ordering::Release);
                    return answer;
                }
                format!("no answer within {} s", PATIENCE.as_secs())
            }
            Err(RecvTimeoutError::Disconnected) => gone(),
        };
        Err(match changes {
            true => StoreError::Unanswered { place, what, cause },
            false => StoreError::Unreachable { place, what, cause },
        })
    }
}

/// Does what it is asked until nobody can ask any more.
fn serve(mut session: Session, called: &Receiver<Call>, late: &AtomicBool, on_taken: OnTaken) {
    let mut on_taken = Some(on_taken);
    loop {
        let taken = match called.recv_timeout(RETRY) {
            Err(RecvTimeoutError::Disconnected) => return,
            // Whoever took over is to be noticed, and a connection to be there again, before it is needed.
            Err(RecvTimeoutError::Timeout) => session.keep_up().err(),
            Ok(Call { what, kind, answer }) => {
                let said = match kind {
                    Kind::Change(durable, statements) => {
                        session.change(durable, &what, &statements).map(Answer::Changed)
                    }
                    Kind::Select(statement) => session.select(&what, &statement).map(Answer::Rows),
                };
                let taken = match &said {
                    Err(StoreError::Taken(place)) => Some(StoreError::Taken(place.clone())),
                    _ => None,
                };
                answer.send(said).ok(); // whoever asked may have left
                late.store(false, Ordering::Release);
                taken
            }
        };
        if let Some(taken @ StoreError::Taken(_)) = taken
            && let Some(on_taken) = on_taken.take()
        {
            on_taken(taken);
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.calls = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok(); // one that panicked has said so
        }
    }
}

impl Database for Postgres {
    fn place(&self) -> &str {
        &self.place
    }

    fn is_kept(&self) -> bool {
        true
    }

    fn change(
        &mut self,
        durable: Durable,
        what: &dyn Display,
        statements: Vec<Statement>,
    ) -> Result<Vec<i64>, StoreError> {
        match self.call(what, Kind::Change(durable, statements))? {
            Answer::Changed(rows) => Ok(rows),
            Answer::Rows(_) => Ok(Vec::new()),
        }
    }

    fn select(&self, what: &dyn Display, statement: Statement) -> Result<Vec<Row>, StoreError> {
        match self.call(what, Kind::Select(statement))? {
            Answer::Rows(rows) => Ok(rows),
            Answer::Changed(_) => Ok(Vec::new()),
        }
    }
}
