//! W-1 to W-3, tried in every order of steps with a few preemptions: the words are the real ones,
//! [`Control`]'s; the threads follow what [`super::traffic`] does with them.

use super::control::{Control, Descriptor, Word};
use super::layout::{Layout, RING_AT};
use crate::id::{Call, Epoch, Rank, Site, Slot};
use crate::plan::SlotSpec;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

/// How often a thread is interrupted in one run. One is enough for the mistakes below to show; with
/// three there would be too many orders for a test.
const PREEMPTIONS: usize = 2;

type Condition = Box<dyn Fn() -> bool + Send>;

/// Who runs: one thread at a time, chosen before every step.
#[derive(Default)]
struct Turns {
    state: Mutex<Turn>,
    changed: Condvar,
}

#[derive(Default)]
struct Turn {
    running: Option<usize>,
    /// None: done. Some: the condition that it waits for, if any.
    threads: Vec<Option<Option<Condition>>>,
    preemptions: usize,
    /// What was chosen, of how many.
    chosen: Vec<(usize, usize)>,
    /// What to choose first; then always the first.
    plan: Vec<usize>,
    stuck: bool,
}

impl Turn {
    fn is_ready(&self, thread: usize) -> bool {
        let waits = self.threads[thread].as_ref();
        waits.is_some_and(|condition| condition.as_ref().is_none_or(|holds| holds()))
    }

    fn choose(&mut self, now: Option<usize>) {
        let goes_on = now.filter(|now| self.is_ready(*now));
        let mut options: Vec<usize> = goes_on.into_iter().collect();
        if goes_on.is_none() || self.preemptions < PREEMPTIONS {
            let others = (0..self.threads.len()).filter(|other| Some(*other) != now);
            options.extend(others.filter(|other| self.is_ready(*other)));
        }
        self.stuck = options.is_empty() && self.threads.iter().any(Option::is_some);
        if options.is_empty() {
            self.running = None;
            return;
        }
        let choice = self.plan.get(self.chosen.len()).copied().unwrap_or(0);
        self.chosen.push((choice, options.len()));
        self.preemptions += usize::from(goes_on.is_some() && choice > 0);
        self.running = Some(options[choice]);
    }
}

thread_local! {
    static SELF: RefCell<Option<(Arc<Turns>, usize)>> = const { RefCell::new(None) };
}

impl Turns {
    /// Lets the next one run, and returns when it is this one's turn again.
    fn pass(&self, own: usize, condition: Option<Condition>) {
        let mut turn = self.state.lock().expect("whole");
        turn.threads[own] = Some(condition);
        turn.choose(Some(own));
        if turn.running != Some(own) {
            self.changed.notify_all();
        }
        self.wait(turn, own);
    }

    fn wait(&self, mut turn: MutexGuard<'_, Turn>, own: usize) {
        while turn.running != Some(own) && !turn.stuck {
            turn = self.changed.wait(turn).expect("whole");
        }
        let stuck = turn.stuck;
        drop(turn);
        if stuck {
            resume_unwind(Box::new("stuck"));
        }
    }

    fn run(self: &Arc<Self>, own: usize, body: &dyn Fn()) {
        SELF.set(Some((Arc::clone(self), own)));
        let ran = catch_unwind(AssertUnwindSafe(|| {
            self.wait(self.state.lock().expect("whole"), own);
            body();
        }));
        let mut turn = self.state.lock().expect("whole");
        turn.threads[own] = None;
        if !turn.stuck {
            turn.choose(None);
        }
        turn.stuck |= ran.is_err();
        self.changed.notify_all();
    }
}

/// A step of this thread comes next; with a condition, once that holds.
fn step(condition: Option<Condition>) {
    let (turns, own) = SELF.with_borrow(|own| own.clone().expect("a thread of a run"));
    turns.pass(own, condition);
}

/// Runs the threads in all such orders. How many there were, and whether they got stuck in one.
fn explore<const N: usize>(threads: impl Fn() -> [Box<dyn Fn() + Send>; N]) -> (usize, bool) {
    let mut plan = Vec::new();
    for runs in 1.. {
        let turns = Arc::new(Turns::default());
        {
            let mut turn = turns.state.lock().expect("whole");
            turn.threads = (0..N).map(|_| Some(None)).collect();
            turn.plan = std::mem::take(&mut plan);
            turn.choose(None);
        }
        thread::scope(|scope| {
            for (own, body) in threads().into_iter().enumerate() {
                let turns = &turns;
                scope.spawn(move || turns.run(own, &*body));
            }
        });
        let turn = turns.state.lock().expect("whole");
        if turn.stuck {
            return (runs, true);
        }
        let Some(last) = turn.chosen.iter().rposition(|(choice, of)| choice + 1 < *of) else {
            return (runs, false);
        };
        plan = turn.chosen[..=last].iter().map(|(choice, _)| *choice).collect();
        plan[last] += 1;
    }
    unreachable!("each run is another one, and they are finite")
}

#[derive(Default)]
struct SimulatedWord {
    /// Nobody looks before another word says so: no order of its steps matters.
    quiet: bool,
    value: AtomicU32,
    asleep: Arc<AtomicBool>,
}

impl SimulatedWord {
    fn step_before(&self) {
        if !self.quiet {
            step(None);
        }
    }
}

impl Word for SimulatedWord {
    fn get(&self) -> u32 {
        self.step_before();
        self.value.load(SeqCst)
    }

    fn set(&self, value: u32) {
        self.step_before();
        self.value.store(value, SeqCst);
    }

    fn step(&self) {
        step(None);
        self.value.fetch_add(1, SeqCst);
    }

    fn wake(&self) {
        step(None);
        self.asleep.store(false, SeqCst);
    }

    fn sleep(&self, heard: u32) {
        step(None);
        if self.value.load(SeqCst) == heard {
            self.asleep.store(true, SeqCst);
            let asleep = Arc::clone(&self.asleep);
            step(Some(Box::new(move || !asleep.load(SeqCst))));
        }
    }
}

/// True until it is taken: a lock, or what a parked thread waits for.
#[derive(Clone, Default)]
struct Token(Arc<AtomicBool>);

impl Token {
    fn put(&self) {
        self.0.store(true, SeqCst);
    }

    fn take(&self) {
        let there = Arc::clone(&self.0);
        step(Some(Box::new(move || there.load(SeqCst))));
        self.0.store(false, SeqCst);
    }
}

/// Both ends of one direction with one slot, and the other direction's region for its bell.
struct Ends {
    layout: Layout,
    receivers: Vec<SimulatedWord>,
    senders: Vec<SimulatedWord>,
    lock: Token,
    parked: Token,
    waker: AtomicBool,
    taken: AtomicU32,
    dropped: AtomicBool,
    queued: AtomicBool,
}

impl Ends {
    fn new() -> Arc<Self> {
        let slot = Slot { from: Rank(0), site: Site(0) };
        let layout = Layout::new(&[SlotSpec { slot, to: Rank(1), bytes: 8 }]);
        let ring = RING_AT / size_of::<u32>()..layout.states_at();
        let word = |at| SimulatedWord { quiet: ring.contains(&at), ..SimulatedWord::default() };
        let words = || (0..layout.words).map(word).collect();
        let (receivers, senders, lock) = (words(), words(), Token::default());
        lock.put();
        let (parked, waker, taken) = (Token::default(), AtomicBool::default(), AtomicU32::new(0));
        let (dropped, queued) = (AtomicBool::default(), AtomicBool::new(true));
        Arc::new(Self { layout, receivers, senders, lock, parked, waker, taken, dropped, queued })
    }

    fn receiver(&self) -> Control<'_, SimulatedWord> {
        Control::new(&self.receivers, &self.layout)
    }

    fn sender(&self) -> Control<'_, SimulatedWord> {
        Control::new(&self.senders, &self.layout)
    }

    fn publish(&self, tail: &mut u32, call: u32) {
        let value = Descriptor { epoch: Epoch(0), slot: 0, call: Call(call) };
        self.receiver().publish(tail, Layout::buffer(0, Call(call)), value);
    }

    /// What the compute thread does to get the value of `call`; `late` says that it waits only after
    /// it has looked.
    fn read(&self, call: u32, late: bool) {
        loop {
            self.lock.take();
            let mut known = self.waker.load(SeqCst);
            let found = loop {
                let taken = self.taken.load(SeqCst);
                if self.receiver().announced(taken) != 0 {
                    assert_eq!(self.receiver().descriptor(taken).call, Call(call));
                    self.taken.store(taken + 1, SeqCst);
                    if self.waker.swap(false, SeqCst) {
                        self.receiver().want_values(false);
                    }
                    break true;
                }
                if known {
                    break false;
                }
                self.waker.store(true, SeqCst);
                self.receiver().want_values(true);
                known = true;
                if late {
                    break false;
                }
            };
            self.lock.put();
            if found {
                return;
            }
            self.parked.take();
        }
    }

    /// What a post does that has no room; `late` says that it asks only after it has looked.
    fn queue(&self, late: bool) {
        if late {
            self.flush();
        }
        self.lock.take();
        self.sender().want_credit(self.queued.load(SeqCst));
        self.lock.put();
        if !late {
            self.flush();
        }
        if !self.queued.load(SeqCst) {
            self.sender().ring(); // for the waiter to end
        }
    }

    /// What the waiter thread of the receiver does.
    fn wake_reader(&self) {
        loop {
            let heard = self.receiver().heard();
            if self.dropped.load(SeqCst) {
                return;
            }
            self.lock.take();
            let due = self.receiver().announced(self.taken.load(SeqCst)) != 0;
            let woken = due && self.waker.swap(false, SeqCst);
            if woken {
                self.receiver().want_values(false);
            }
            self.lock.put();
            if woken {
                self.parked.put();
            }
            self.receiver().sleep(heard);
        }
    }

    /// Sends what is queued if it has room, as a flush does.
    fn flush(&self) {
        self.lock.take();
        if self.queued.load(SeqCst) && self.receiver().is_free(0) {
            self.publish(&mut 1, 2);
            self.queued.store(false, SeqCst);
        }
        if !self.queued.load(SeqCst) {
            self.sender().want_credit(false);
        }
        self.lock.put();
    }

    /// What the waiter thread of the sender does.
    fn wake_queue(&self) {
        loop {
            let heard = self.sender().heard();
            self.flush();
            if !self.queued.load(SeqCst) {
                return;
            }
            self.sender().sleep(heard);
        }
    }
}

fn values(late: bool) -> (usize, bool) {
    explore(|| {
        let ends = Ends::new();
        let [sender, reader, waiter] = [(); 3].map(|()| Arc::clone(&ends));
        [
            Box::new(move || {
                let mut tail = 0;
                sender.publish(&mut tail, 0);
                sender.publish(&mut tail, 1);
            }),
            Box::new(move || {
                reader.read(0, late);
                reader.read(1, late);
                reader.dropped.store(true, SeqCst);
                reader.receiver().ring();
            }),
            Box::new(move || waiter.wake_reader()),
        ]
    })
}

fn buffers(late: bool) -> (usize, bool) {
    explore(|| {
        let ends = Ends::new();
        ends.receivers[ends.layout.states_at()].value.store(1, SeqCst);
        let [poster, waiter, receiver] = [(); 3].map(|()| Arc::clone(&ends));
        [
            Box::new(move || poster.queue(late)),
            Box::new(move || waiter.wake_queue()),
            Box::new(move || receiver.receiver().free(0, &receiver.sender())),
        ]
    })
}

#[test]
fn w1_whoever_waits_for_a_value_is_woken() {
    let (runs, stuck) = values(false);
    assert!(!stuck, "in run {runs}");
    assert!(runs > 100, "{runs} orders are not all");
}

#[test]
fn w1_whoever_waits_for_a_buffer_is_woken() {
    let (runs, stuck) = buffers(false);
    assert!(!stuck, "in run {runs}");
    assert!(runs > 100, "{runs} orders are not all");
}

/// The search finds the mistake it is for: looking before saying that one waits.
#[test]
fn a_waiter_that_does_not_look_again_is_found_stuck() {
    assert!(values(true).1);
    assert!(buffers(true).1);
}
