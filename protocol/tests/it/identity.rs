//! Members of a cluster find each other; strangers are told why they are refused.

use crate::fabric::{bound, landed, plan, sites, slot, sockets};
use protocol::identity::{
    Authority, Credentials, Fingerprint, IdentityError, Request, Role, Subject,
};
use protocol::plan::Plan;
use protocol::tls::{Security, enrolment_config, server_name};
use protocol::transport::connection::{ConnectError, Connection};
use protocol::transport::{Endpoint, LinkError, Links};
use protocol::{Call, FaultKind, Rank};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

pub(crate) struct Cluster(Authority);

impl Cluster {
    pub(crate) fn new() -> Self {
        Self(Authority::new(now()).expect("an authority"))
    }

    fn credentials(&self, role: Role) -> Credentials {
        let subject = Subject::new(role, "a process", now());
        self.0.credentials(&subject).expect("credentials")
    }

    pub(crate) fn security(&self, role: Role) -> Security {
        Security::mutual(self.credentials(role)).expect("for TLS")
    }

    fn expired(&self, role: Role) -> Security {
        let subject = Subject { until: now() - 1, ..Subject::new(role, "too late", now()) };
        Security::mutual(self.0.credentials(&subject).expect("credentials")).expect("for TLS")
    }
}

type Connected = Result<Connection, ConnectError>;

/// What caller and called make of each other, the called taken for a worker.
pub(crate) async fn connect(caller: &Security, called: &Security) -> [Connected; 2] {
    connect_to(caller, Role::Worker, called).await
}

async fn connect_to(caller: &Security, role: Role, called: &Security) -> [Connected; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let accepted = async {
        let (stream, _) = listener.accept().await.expect("a caller");
        called.accept(stream).await
    };
    let (calling, accepted) = tokio::join!(caller.connect(address, role), accepted);
    [calling, accepted]
}

fn reason(connected: Connected) -> String {
    connected.expect_err("a refusal").to_string()
}

/// What the called makes of a caller that writes these bytes and waits.
async fn answer_to(bytes: &[u8]) -> String {
    let [mut stranger, accepted] = sockets().await;
    stranger.write_all(bytes).await.expect("written");
    let security = Cluster::new().security(Role::Worker);
    let refusal = reason(security.accept(accepted).await);
    stranger.read_to_end(&mut Vec::new()).await.ok(); // a reset is an end, too
    refusal
}

#[tokio::test]
async fn members_know_each_other_by_key_role_and_name() {
    let cluster = Cluster::new();
    let [one, other] = [cluster.security(Role::Worker), cluster.security(Role::Worker)];
    let [calling, called] = connect(&one, &other).await.map(|end| end.expect("members"));
    assert_eq!(calling.identity.as_ref(), other.identity());
    assert_eq!(called.identity.as_ref(), one.identity());
    let found = called.identity.expect("an identity");
    assert_eq!((found.role, &*found.name), (Role::Worker, "a-process"));
    let (mut calling, mut called) = (calling.writing, called.reading);
    calling.write_all(b"hello").await.expect("written");
    calling.flush().await.expect("flushed");
    drop(calling);
    let mut said = [0; 5];
    called.read_exact(&mut said).await.expect("read");
    assert_eq!(&said, b"hello");
}

#[tokio::test]
async fn a_peer_that_dies_is_an_end_and_no_error() {
    let cluster = Cluster::new();
    let (one, other) = (cluster.security(Role::Worker), cluster.security(Role::Worker));
    let [calling, called] = connect(&one, &other).await.map(|end| end.expect("members"));
    drop(calling);
    let mut reading = called.reading;
    assert_eq!(reading.read(&mut [0; 9]).await.expect("an end"), 0);
}

#[tokio::test]
async fn another_clusters_processes_are_refused_whoever_calls() {
    let [ours, theirs] = [Cluster::new(), Cluster::new()];
    let (one, other) = (ours.security(Role::Worker), theirs.security(Role::Worker));
    let [calling, called] = connect(&one, &other).await;
    assert_eq!(reason(calling), "its certificate is not of this cluster's authority");
    assert!(reason(called).contains("not of its cluster's authority"));
}

/// It knows our authority, as everybody may, but its own certificate is another's.
#[tokio::test]
async fn who_only_knows_the_authority_is_no_member() {
    let [ours, theirs] = [Cluster::new(), Cluster::new()];
    let made = theirs.credentials(Role::Worker);
    let own = made.certificates().replacen(theirs.0.certificate(), "", 1);
    let mixed = Credentials::from_pem(&(own + ours.0.certificate()), made.key()).expect("read");
    let mixed = Security::mutual(mixed).expect("for TLS");
    let [_, called] = connect(&mixed, &ours.security(Role::Worker)).await;
    assert_eq!(reason(called), "its certificate is not of this cluster's authority");
}

/// The called sends its refusal after the caller took the handshake for done: the first read tells.
#[tokio::test]
async fn a_refused_caller_learns_why() {
    let cluster = Cluster::new();
    let (late, worker) = (cluster.expired(Role::Worker), cluster.security(Role::Worker));
    let [calling, called] = connect(&late, &worker).await;
    assert_eq!(reason(called), "its certificate has expired, or a clock is wrong");
    let mut reading = calling.expect("done, it seems").reading;
    let error = reading.read(&mut [0; 9]).await.expect_err("refused");
    assert_eq!(error.to_string(), "it says that this process's certificate has expired");
    let [calling, _] = connect(&worker, &late).await;
    assert_eq!(reason(calling), "its certificate has expired, or a clock is wrong");
}

#[tokio::test]
async fn nobody_passes_for_another_role() {
    let cluster = Cluster::new();
    let [coordinator, worker, client] = Role::ALL.map(|role| cluster.security(role));
    let [calling, _] = connect_to(&client, Role::Coordinator, &worker).await;
    assert!(reason(calling).starts_with("it is no coordinator but the worker a-process ("));
    // Clients are never called, the coordinator calls nobody: TLS itself refuses.
    let [calling, _] = connect_to(&worker, Role::Coordinator, &client).await;
    assert_eq!(reason(calling), "its certificate is for another role");
    let [_, called] = connect(&coordinator, &worker).await;
    assert_eq!(reason(called), "its certificate is for another role");
}

#[tokio::test]
async fn garbage_and_plain_text_get_one_reason() {
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 4096], &[0; 64]] {
        let refusal = answer_to(bytes).await;
        assert!(refusal.starts_with("it does not speak TLS: "), "{refusal}");
    }
    let [stranger, accepted] = sockets().await;
    drop(stranger);
    let refusal = reason(Cluster::new().security(Role::Worker).accept(accepted).await);
    assert_eq!(refusal, "it hung up during the TLS handshake");
}

#[tokio::test]
async fn a_caller_that_says_nothing_is_given_up() {
    let refusal = answer_to(&[]).await;
    assert_eq!(refusal, "it did not finish the TLS handshake within 10 s");
}

/// A greeting of TLS 1.2: without the extension that says that its caller also speaks 1.3.
#[tokio::test]
async fn tls_1_2_is_refused() {
    let mut hello = vec![3, 3];
    hello.extend([7; 32]); // random
    hello.push(0); // no session
    hello.extend([0, 2, 0xc0, 0x2b]); // ECDHE-ECDSA with AES-128-GCM
    hello.extend([1, 0]); // no compression
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let signatures = [0, 13, 0, 4, 0, 2, 4, 3];
    hello.extend([0, 16]);
    hello.extend([groups, signatures].concat());
    let length = |bytes: usize| u8::try_from(bytes).expect("short");
    let handshake = [&[1, 0, 0, length(hello.len())][..], &hello].concat();
    let record = [&[22, 3, 1, 0, length(handshake.len())][..], &handshake].concat();
    assert_eq!(answer_to(&record).await, "it does not speak TLS 1.3");
}

/// A process with a token: it knows the authority's fingerprint and has no certificate.
async fn enrolling(authority: Fingerprint, called: &Security) -> (std::io::Result<()>, Connected) {
    let [near, far] = sockets().await;
    let calling = TlsConnector::from(enrolment_config(authority)).connect(server_name(), near);
    let (calling, called) = tokio::join!(calling, called.accept_enrolling(far));
    (calling.map(drop), called)
}

#[tokio::test]
async fn who_wants_to_become_a_member_knows_the_cluster_by_its_fingerprint() {
    let cluster = Cluster::new();
    let coordinator = cluster.security(Role::Coordinator);
    let (calling, called) = enrolling(cluster.0.fingerprint(), &coordinator).await;
    calling.expect("the token's cluster");
    assert_eq!(called.expect("let in").identity, None);
    let (calling, called) = enrolling(Cluster::new().0.fingerprint(), &coordinator).await;
    assert!(calling.is_err() && called.is_err(), "another cluster's token");
    // Where members alone are let in, it is not.
    let [near, far] = sockets().await;
    let config = enrolment_config(cluster.0.fingerprint());
    let calling = TlsConnector::from(config).connect(server_name(), near);
    let worker = cluster.security(Role::Worker);
    let (_, called) = tokio::join!(calling, worker.accept(far));
    assert_eq!(reason(called), "it shows no certificate");
}

#[test]
fn an_authority_and_credentials_survive_as_text() {
    let cluster = Cluster::new();
    let again = Authority::from_pem(cluster.0.certificate(), &cluster.0.key()).expect("read");
    assert_eq!(again.fingerprint(), cluster.0.fingerprint());
    let made = again.credentials(&Subject::new(Role::Client, "späte Gäste", now())).expect("made");
    let read = Credentials::from_pem(made.certificates(), made.key()).expect("read");
    assert_eq!(read.identity(), made.identity());
    assert_eq!(read.authority(), cluster.0.fingerprint());
    assert_eq!(read.identity().name, "sp-te-G-ste");
    assert!(!format!("{read:?} {again:?}").contains("KEY"));

    let other = cluster.credentials(Role::Client);
    let mixed = Credentials::from_pem(made.certificates(), other.key());
    assert_eq!(mixed.expect_err("two keys"), IdentityError::OtherKey);
    let alone = made.certificates().replacen(cluster.0.certificate(), "", 1);
    let missing = Credentials::from_pem(&alone, made.key());
    assert_eq!(missing.expect_err("no authority"), IdentityError::NoAuthority);
    let cut = Credentials::from_pem(&made.certificates()[..300], made.key());
    assert!(cut.is_err());
    let swapped = Authority::from_pem(cluster.0.certificate(), &Cluster::new().0.key());
    assert_eq!(swapped.expect_err("two keys"), IdentityError::OtherKey);
}

/// What a request says of itself is not taken over, and it must be signed by its key.
#[test]
fn only_the_authority_decides_whom_a_certificate_is_for() {
    let cluster = Cluster::new();
    let request = Request::new().expect("a key");
    let subject = Subject::new(Role::Worker, "w", now());
    let issued = cluster.0.issue(request.text(), &subject).expect("issued");
    assert_eq!(request.answered(&issued).expect("its key").identity().role, Role::Worker);
    let mut damaged = Request::new().expect("a key").text().to_owned();
    let at = damaged.match_indices('\n').nth(1).expect("lines").0 + 10; // within key or signature
    let other = if damaged[at..].starts_with('A') { "B" } else { "A" };
    damaged.replace_range(at..=at, other);
    for wrong in ["", "no request", &damaged] {
        let refused = cluster.0.issue(wrong, &subject);
        assert!(matches!(refused, Err(IdentityError::Request(_))), "{refused:?}");
    }
    let another = Request::new().expect("a key");
    assert_eq!(another.answered(&issued).expect_err("not its key"), IdentityError::OtherKey);
}

/// Endpoints of a cluster, and a plan that knows their workers by these identities.
async fn endpoints(securities: &[Security]) -> (Vec<Endpoint>, Plan) {
    let mut endpoints = Vec::new();
    for security in securities {
        let address = "127.0.0.1:0".parse().expect("an address");
        endpoints.push(bound(address, security.clone(), Vec::new()).await);
    }
    let addresses: Vec<_> = endpoints.iter().map(Endpoint::address).collect();
    let mut plan = plan(0, &addresses);
    for (member, security) in plan.members.iter_mut().zip(securities) {
        member.identity = security.identity().map(|identity| identity.fingerprint);
    }
    (endpoints, plan)
}

async fn open(endpoint: &Endpoint, plan: &Plan, rank: u16) -> Result<Links, LinkError> {
    endpoint.open(plan, Rank(rank), &sites(&[64])).await.map(|(links, _)| links)
}

#[tokio::test]
async fn the_ranks_of_a_plan_link_up_and_exchange_values_under_tls() {
    let cluster = Cluster::new();
    let securities = [Role::Worker; 3].map(|role| cluster.security(role));
    let (endpoints, plan) = endpoints(&securities).await;
    let ranks = tokio::join!(
        open(&endpoints[0], &plan, 0),
        open(&endpoints[1], &plan, 1),
        open(&endpoints[2], &plan, 2)
    );
    let mut all = [ranks.0, ranks.1, ranks.2].map(|links| links.expect("linked"));
    for (own, links) in (0_u16..).zip(&mut all) {
        for (_, link) in links {
            link.post(slot(own, 0), Call(0), vec![9; 64].into()).expect("posted");
        }
    }
    for (peer, link) in all.iter_mut().flatten() {
        assert_eq!(landed(link.as_mut()).await.expect("landed").slot, slot(peer.0, 0));
    }
}

/// A worker of the same cluster, though with a certificate as good as the others', is let into no run
/// but its own: one that was revoked is in no plan.
#[tokio::test]
async fn a_member_that_is_not_the_plans_is_refused_on_either_side() {
    let cluster = Cluster::new();
    let securities = [Role::Worker; 2].map(|role| cluster.security(role));
    let (endpoints, plan) = endpoints(&securities).await;
    let stranger = cluster.security(Role::Worker).identity().map(|identity| identity.fingerprint);
    // Rank 1 calls a rank 0 that is somebody else.
    let mut other = plan.clone();
    other.members[0].identity = stranger;
    let calling = async { open(&endpoints[1], &other, 1).await.expect_err("somebody else") };
    let answering =
        tokio::time::timeout(std::time::Duration::from_millis(500), open(&endpoints[0], &other, 0));
    let (error, _) = tokio::join!(calling, answering);
    let LinkError::Refused { peer: Rank(0), fault } = error else { panic!("{error:?}") };
    assert_eq!(fault.kind, FaultKind::Unauthorised);
    // Rank 0 is called by a rank 1 that is somebody else, then by the right one.
    let mut other = plan.clone();
    other.members[1].identity = stranger;
    let calling = async { open(&endpoints[1], &plan, 1).await.expect_err("somebody else") };
    let answering =
        tokio::time::timeout(std::time::Duration::from_millis(500), open(&endpoints[0], &other, 0));
    let (error, waiting) = tokio::join!(calling, answering);
    let LinkError::Refused { peer: Rank(0), fault } = error else { panic!("{error:?}") };
    assert_eq!(fault.kind, FaultKind::Unauthorised);
    assert!(fault.cause.contains("is not rank 1"), "{fault}");
    assert!(waiting.is_err(), "rank 0 waits for the right one");
}

#[tokio::test]
async fn plain_text_on_a_secured_link_door_does_not_disturb_a_run() {
    let cluster = Cluster::new();
    let securities = [Role::Worker; 2].map(|role| cluster.security(role));
    let (endpoints, plan) = endpoints(&securities).await;
    let mut plain = TcpStream::connect(endpoints[0].address()).await.expect("connected");
    plain.write_all(&[0; 100]).await.expect("written");
    let theirs = Cluster::new().security(Role::Worker);
    let wrong = theirs.connect(endpoints[0].address(), Role::Worker).await;
    assert!(reason(wrong).contains("not of this cluster's authority"));
    let (one, other) = tokio::join!(open(&endpoints[0], &plan, 0), open(&endpoints[1], &plan, 1));
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
}
