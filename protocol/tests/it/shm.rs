//! What only shared memory can do wrong: other processes' writes, deaths, and values that are kept.

use crate::fabric::{landed, over, shm_pair, slot, sockets, specs};
use bytes::Bytes;
use protocol::transport::shm::layout::{DESCRIPTOR_BYTES, RING_AT, TAIL_AT};
use protocol::transport::shm::{ShmLink, establish};
use protocol::transport::{Hangup, Landed, Link, LinkError};
use protocol::{Call, Rank};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const SIZES: [usize; 3] = [64, 4096, 64];
const FOLDER: &str = "/dev/shm";
/// How soon an end must be noticed.
const SOON: Duration = Duration::from_secs(1);

async fn pair() -> [ShmLink; 2] {
    shm_pair(&specs(&SIZES, [0, 0]), &Hangup::default()).await
}

fn value(call: u32, bytes: usize) -> Bytes {
    vec![u8::try_from(call % 251).expect("small"); bytes].into()
}

fn post(link: &mut ShmLink, from: u16, call: u32) {
    link.post(slot(from, 1), Call(call), value(call, SIZES[1])).expect("posted");
}

/// The value of `call` lands next.
async fn lands(link: &mut ShmLink, call: u32) -> Bytes {
    let landed = landed(link).await.expect("landed");
    assert_eq!((landed.call, &landed.bytes), (Call(call), &value(call, landed.bytes.len())));
    landed.bytes
}

/// Whether nothing has landed.
fn is_quiet(link: &mut ShmLink) -> bool {
    link.poll_landed(&mut Context::from_waker(Waker::noop())).is_pending()
}

/// The region of one end, found on its way to the other.
struct Spied {
    name: String,
    file: File,
    relayed: JoinHandle<()>,
}

impl Spied {
    fn set(&self, at: usize, word: u32) {
        let at = u64::try_from(at).expect("small");
        self.file.write_all_at(&word.to_ne_bytes(), at).expect("written");
    }

    /// Announces a value as a sender would, but for the bell.
    fn announce(&self, position: u32, [epoch, slot, call]: [u32; 3]) {
        let place = usize::try_from(position).expect("small");
        for (at, word) in [(0, epoch), (4, slot), (8, call)] {
            self.set(RING_AT + place * DESCRIPTOR_BYTES + at, word);
        }
        self.set(TAIL_AT, position + 1);
    }
}

/// Passes on what one end says, and opens the region that it names. With `lie`, names another.
async fn relay(
    (mut from, mut to): (OwnedReadHalf, OwnedWriteHalf),
    found: oneshot::Sender<(String, File)>,
    lie: bool,
) {
    let mut found = Some(found);
    let mut said = vec![0; 4096];
    while let Ok(bytes @ 1..) = from.read(&mut said).await {
        let said = &mut said[..bytes];
        let at = said.windows(8).position(|window| window == b"tessera-");
        if let Some((at, found)) = at.and_then(|at| Some((at, found.take()?))) {
            let name = String::from_utf8_lossy(&said[at..at + 40]).into_owned();
            let path = Path::new(FOLDER).join(&name);
            let file = File::options().read(true).write(true).open(path).expect("a region");
            found.send((name, file)).expect("somebody waits for it");
            if lie {
                said[at + 8..at + 40].fill(b'0');
            }
        }
        to.write_all(said).await.expect("passed on");
    }
}

type Ends = [Result<ShmLink, LinkError>; 2];

/// Both ends, and their regions, of a link whose ends speak through relays.
async fn spied(lie: bool) -> (Ends, [Spied; 2]) {
    let ([one, one_far], [other, other_far]) = (sockets().await, sockets().await);
    let ((from_one, to_one), (from_other, to_other)) =
        (one_far.into_split(), other_far.into_split());
    let mut spies = Vec::new();
    for (ends, lie) in [((from_one, to_other), lie), ((from_other, to_one), false)] {
        let (found, region) = oneshot::channel();
        spies.push((tokio::spawn(relay(ends, found, lie)), region));
    }
    let (specs, never) = (specs(&SIZES, [0, 0]), Hangup::default());
    let (one, other) = tokio::join!(
        establish(over(one), &specs[0], &never),
        establish(over(other), &specs[1], &never)
    );
    let mut regions = Vec::new();
    for (relayed, region) in spies {
        let (name, file) = region.await.expect("a region was named");
        regions.push(Spied { name, file, relayed });
    }
    ([one, other], regions.try_into().ok().expect("two"))
}

async fn linked() -> ([ShmLink; 2], [Spied; 2]) {
    let (ends, regions) = spied(false).await;
    (ends.map(|end| end.expect("linked")), regions)
}

#[tokio::test]
async fn the_names_are_gone_once_the_link_is_up() {
    let (ends, regions) = linked().await;
    for Spied { name, file, .. } in &regions {
        let region = file.metadata().expect("an open file");
        assert_eq!((region.mode() & 0o777, region.nlink()), (0o600, 0), "{name}");
        assert!(!Path::new(FOLDER).join(name).exists(), "{name}");
    }
    drop(ends);
}

#[tokio::test]
async fn a_region_that_the_peer_cannot_find_is_an_error_at_both_ends() {
    let (ends, regions) = spied(true).await;
    for end in ends {
        let Err(LinkError::Refused { fault, .. }) = &end else { panic!("{end:?}") };
        assert!(fault.cause.contains("is not in /dev/shm"), "{fault}");
    }
    for Spied { name, .. } in &regions {
        assert!(!Path::new(FOLDER).join(name).exists(), "{name}");
    }
}

#[tokio::test]
async fn memory_that_is_not_there_is_an_error_with_its_size() {
    let (specs, never) = (specs(&[16 << 30; 64], [0, 0]), Hangup::default());
    let [near, far] = sockets().await;
    let (one, other) = tokio::join!(
        establish(over(near), &specs[0], &never),
        establish(over(far), &specs[1], &never)
    );
    for end in [one, other] {
        let Err(LinkError::Refused { fault, .. }) = &end else { panic!("{end:?}") };
        for part in ["needs 2199023", "bytes in /dev/shm", "free"] {
            assert!(fault.cause.contains(part), "{fault} does not say: {part}");
        }
    }
}

type Write<'a> = &'a dyn Fn(&Spied);

#[tokio::test]
async fn garbage_in_the_region_breaks_the_link() {
    let announce = |words: &'static [[u32; 3]]| {
        move |region: &Spied| {
            for (position, words) in (0..).zip(words) {
                region.announce(position, *words);
            }
        }
    };
    let unknown = announce(&[[0, 3, 0]]);
    let huge = announce(&[[0, u32::MAX, 0]]);
    let future = announce(&[[1, 0, 0]]);
    let count = |region: &Spied| region.set(TAIL_AT, 1000);
    let backwards = |region: &Spied| region.set(TAIL_AT, u32::MAX);
    let cases: [(Write<'_>, &str); 5] = [
        (&unknown, "slot 3 of 3"),
        (&huge, "slot 4294967295 of 3"),
        (&future, "data of epoch 1 in epoch 0"),
        (&count, "announced 1000 values at once, of 6"),
        (&backwards, "announced 4294967295 values at once, of 6"),
    ];
    for (write, cause) in cases {
        let ([mut one, mut other], [_, region]) = linked().await;
        write(&region);
        for _ in 0..2 {
            let error = landed(&mut other).await.expect_err(cause);
            assert!(matches!(error, LinkError::Protocol { peer: Rank(0), .. }), "{error:?}");
            assert!(error.to_string().contains(cause), "{error} does not say: {cause}");
        }
        let error = other.post(slot(1, 1), Call(0), value(0, SIZES[1])).expect_err("broken");
        assert!(error.to_string().contains("broke before"), "{error}");
        let closed = landed(&mut one).await.expect_err("the other end closed");
        assert!(matches!(closed, LinkError::Closed { peer: Rank(1), .. }), "{closed:?}");
    }
}

#[tokio::test]
async fn l2_l3_a_version_lands_once_and_never_after_a_newer_one() {
    for second in [5, 4] {
        let ([_one, mut other], [_, region]) = linked().await;
        region.announce(0, [0, 2, 5]);
        region.announce(1, [0, 2, second]);
        assert_eq!(landed(&mut other).await.expect("the first").call, Call(5));
        let error = landed(&mut other).await.expect_err("not newer");
        assert!(error.to_string().contains("came after call 5"), "{error}");
    }
}

#[tokio::test]
async fn b2_a_value_over_one_that_is_read_breaks_the_link() {
    let ([_one, mut other], [_, region]) = linked().await;
    region.announce(0, [0, 1, 0]);
    let held = landed(&mut other).await.expect("the first");
    region.announce(1, [0, 1, 2]);
    let error = landed(&mut other).await.expect_err("its buffer is not free");
    assert!(error.to_string().contains("over one that is still read"), "{error}");
    drop(held);
}

#[tokio::test]
async fn b1_b4_values_that_are_read_stay_and_newer_ones_wait_in_order() {
    let [mut one, mut other] = pair().await;
    post(&mut one, 0, 0);
    post(&mut one, 0, 1);
    let (even, odd) = (lands(&mut other, 0).await, lands(&mut other, 1).await);
    post(&mut one, 0, 2);
    post(&mut one, 0, 3);
    let third = one.post(slot(0, 1), Call(4), value(4, SIZES[1])).expect_err("a third version");
    assert!(matches!(third, LinkError::Unposted { .. }), "{third:?}");
    drop(odd);
    tokio::time::sleep(Duration::from_millis(20)).await; // call 3 would have room, but call 2 has not
    assert!(is_quiet(&mut other));
    assert_eq!(even, value(0, SIZES[1]));
    let place = even.as_ptr();
    drop(even);
    let next = lands(&mut other, 2).await;
    assert_eq!(next.as_ptr(), place, "values land in the buffer of their parity");
    lands(&mut other, 3).await;
}

#[tokio::test]
async fn other_slots_do_not_wait_for_a_full_one() {
    let [mut one, mut other] = pair().await;
    post(&mut one, 0, 0);
    let held = lands(&mut other, 0).await;
    post(&mut one, 0, 2);
    one.post(slot(0, 2), Call(2), value(2, SIZES[2])).expect("posted");
    assert_eq!(landed(&mut other).await.expect("landed").slot, slot(0, 2));
    drop(held);
    lands(&mut other, 2).await;
}

#[tokio::test]
async fn a_value_outlives_its_link() {
    let [mut one, mut other] = pair().await;
    post(&mut one, 0, 0);
    let held = lands(&mut other, 0).await;
    let copy = held.clone();
    drop((one, other, held));
    tokio::time::sleep(Duration::from_millis(50)).await; // both threads and both tasks end
    assert_eq!(copy, value(0, SIZES[1]));
    drop(copy);
}

#[tokio::test]
async fn a_dropped_link_delivers_what_waits_and_then_closes() {
    let [mut one, mut other] = pair().await;
    post(&mut one, 0, 0);
    let held = lands(&mut other, 0).await;
    post(&mut one, 0, 2);
    post(&mut one, 0, 3);
    drop(one);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(is_quiet(&mut other));
    drop(held);
    lands(&mut other, 2).await;
    lands(&mut other, 3).await;
    let closed = landed(&mut other).await.expect_err("all was taken");
    assert!(matches!(closed, LinkError::Closed { peer: Rank(0), .. }), "{closed:?}");
}

/// Neither reads any more, so that each has to take the other's values for both to close.
#[tokio::test]
async fn two_dropped_ends_with_values_under_way_close() {
    let ([mut one, mut other], regions) = linked().await;
    for call in 0..4 {
        post(&mut one, 0, call);
        post(&mut other, 1, call);
    }
    drop((one, other));
    for region in regions {
        tokio::time::timeout(SOON, region.relayed).await.expect("closed").expect("relayed");
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The next value, waited for by a thread outside the runtime, as the compute thread does.
fn wait(link: &mut ShmLink) -> Result<Landed, LinkError> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match link.poll_landed(&mut Context::from_waker(&waker)) {
            Poll::Ready(landed) => return landed,
            Poll::Pending => thread::park(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_closes_both_ends_though_threads_wait() {
    let hangup = Hangup::default();
    let ends = shm_pair(&specs(&SIZES, [0, 0]), &hangup).await;
    let waiting = ends.map(|mut end| thread::spawn(move || wait(&mut end)));
    tokio::time::sleep(Duration::from_millis(20)).await; // both wait
    let start = Instant::now();
    hangup.now();
    for end in waiting {
        let ended = end.join().expect("it waits in vain");
        assert!(matches!(ended, Err(LinkError::Closed { .. })), "{ended:?}");
    }
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

/// W-1: whoever waits is woken, for values and for buffers, at every pace. A wake-up that is lost
/// leaves both ends asleep.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn w1_no_wake_up_is_lost() {
    const ROUNDS: u32 = 5_000;
    let [mut one, mut other] = pair().await;
    let answering = thread::spawn(move || {
        let mut kept = Bytes::new();
        for call in 0..ROUNDS {
            let landed = wait(&mut other).expect("landed");
            other.post(slot(1, 0), Call(call), value(call, SIZES[0])).expect("posted");
            for _ in 0..call % 64 * 8 {
                std::hint::spin_loop(); // the next but one may be posted before this returns its buffer
            }
            kept = landed.bytes;
        }
        drop(kept);
    });
    for call in 0..ROUNDS {
        post(&mut one, 0, call);
        if call > 0 {
            assert_eq!(wait(&mut one).expect("answered").call, Call(call - 1));
        }
    }
    answering.join().expect("the answers");
}

const CHILD: &str = "TESSERA_TEST_SHM_CHILD";

/// Kills the child when the test is over, however it ends.
struct Kill(Child);

impl Drop for Kill {
    fn drop(&mut self) {
        self.0.kill().ok(); // it may be gone
        self.0.wait().ok();
    }
}

#[tokio::test]
async fn a_killed_process_is_noticed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "shm::answers_until_killed"])
        .env(CHILD, address)
        .stdout(Stdio::null())
        .spawn();
    let mut child = Kill(child.expect("a child"));
    let connection = over(listener.accept().await.expect("the child calls").0);
    let [spec, _] = specs(&SIZES, [0, 0]);
    let mut link = establish(connection, &spec, &Hangup::default()).await.expect("linked");
    for call in 0..200 {
        post(&mut link, 0, call);
        lands(&mut link, call).await;
    }
    for call in 200..202 {
        post(&mut link, 0, call);
    }
    child.0.kill().expect("killed");
    let start = Instant::now();
    let error = loop {
        match tokio::time::timeout(SOON, landed(&mut link)).await.expect("noticed in time") {
            Ok(landed) => assert_eq!(landed.bytes, value(landed.call.0, SIZES[1])),
            Err(error) => break error,
        }
    };
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert!(matches!(error, LinkError::Closed { peer: Rank(1), .. }), "{error:?}");
    assert_eq!(link.post(slot(0, 1), Call(202), value(202, SIZES[1])), Ok(()), "void");
}

/// The other process of the test above; as a test of its own it only looks whether it is one.
#[tokio::test]
async fn answers_until_killed() {
    let Ok(address) = std::env::var(CHILD) else { return };
    let connection = over(TcpStream::connect(address).await.expect("the parent listens"));
    let [_, spec] = specs(&SIZES, [0, 0]);
    let mut link = establish(connection, &spec, &Hangup::default()).await.expect("linked");
    while let Ok(landed) = landed(&mut link).await {
        link.post(slot(1, 1), landed.call, landed.bytes).expect("posted");
    }
}
