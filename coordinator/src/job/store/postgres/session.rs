//! A connection to Postgres that is made again when it is lost, and the lock that makes the jobs there one
//! coordinator's.
//!
//! The lock is a session's: it ends with its connection. So whoever has it again knows that whatever the connection
//! before was doing is done, or never will be; and by the tenure, which each coordinator counts up when it opens the
//! database, that nobody else had it in between.

use crate::job::store::StoreError;
use crate::job::store::database::{Cell, Durable, Row, SCHEMA, Statement, Value};
use postgres::config::{Host, SslMode};
use postgres::error::SqlState;
use postgres::types::{ToSql, Type};
use postgres::{Client, Config, Transaction};
use rustls::{ClientConfig, RootCertStore, crypto};
use std::error::Error as _;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How often a lost connection is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// How long a connection may take to be made, and to be found dead.
const CONNECT: Duration = Duration::from_secs(2);
/// How long the coordinator that had the jobs before may take to be gone: the server looks for a client that says nothing
/// for two seconds, and gives up after another three.
const HAND_OVER: Duration = Duration::from_secs(10);
/// With the schema's number, which lock it is: `tess`.
const LOCK: i64 = 0x7465_7373;

/// How a session behaves: the server ends one that hangs, and notices one whose client is gone.
const BEHAVIOUR: &str = "
    SET statement_timeout = '30s';
    SET idle_in_transaction_session_timeout = '30s';
    SET tcp_keepalives_idle = 2;
    SET tcp_keepalives_interval = 1;
    SET tcp_keepalives_count = 3;
    SET tcp_user_timeout = 5000;
    SET client_min_messages = 'warning';
";

/// The tables of an empty database: those of SQLite, with this system's types.
///
/// Images are pixels as they are, on which the server's fast compression is wasted time.
const TABLES: &str = "
    CREATE TABLE jobs (
        id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        wire BIGINT NOT NULL,
        release TEXT NOT NULL,
        accepted BIGINT NOT NULL,
        ended BIGINT,
        seed BIGINT NOT NULL,
        epoch BIGINT,
        model TEXT,
        request BYTEA NOT NULL,
        owner TEXT NOT NULL,
        priority TEXT NOT NULL,
        once TEXT,
        started BIGINT,
        stage TEXT,
        spec BYTEA,
        plan BYTEA,
        events BYTEA,
        image BYTEA
    );
    ALTER TABLE jobs ALTER COLUMN image SET STORAGE EXTERNAL;
    CREATE INDEX jobs_by_end ON jobs (ended, id);
    CREATE UNIQUE INDEX jobs_once ON jobs (owner, once) WHERE once IS NOT NULL;
    CREATE TABLE checkpoints (
        job BIGINT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
        calls BIGINT NOT NULL,
        calls_total BIGINT NOT NULL,
        bytes BYTEA NOT NULL
    );
    ALTER TABLE checkpoints ALTER COLUMN bytes SET STORAGE EXTERNAL;
    CREATE TABLE tessera (schema BIGINT NOT NULL, tenure BIGINT NOT NULL);
";

/// The database, as the coordinator whose jobs are there.
pub(super) struct Session {
    config: Config,
    tls: MakeRustlsConnect,
    place: String,
    client: Option<Client>,
    /// The server's process for the connection that was there last.
    process: i64,
    /// Which of the coordinators that opened the database this one is.
    tenure: i64,
    tried: Instant,
    taken: bool,
}

impl Session {
    /// Opens the database, once whoever had it is gone.
    pub(super) fn open(url: &str) -> Result<Self, StoreError> {
        let mut config: Config =
            url.parse().map_err(|error: postgres::Error| StoreError::Url(said(&error)))?;
        let place = place(&config);
        let local = config.get_hosts().iter().all(is_local);
        // `prefer` would go on without encryption, and nobody would know.
        if config.get_ssl_mode() == SslMode::Prefer && !local {
            config.ssl_mode(SslMode::Require);
        }
        if config.get_application_name().is_none() {
            config.application_name("tessera coordinator");
        }
        config.connect_timeout(CONNECT).tcp_user_timeout(CONNECT);
        config.keepalives_idle(CONNECT).keepalives_interval(RETRY).keepalives_retries(3);
        let (tls, tried) = (MakeRustlsConnect::new(tls()), Instant::now());
        let (client, process, tenure, taken) = (None, 0, 0, false);
        let mut session = Self { config, tls, place, client, process, tenure, tried, taken };
        let mut client = session.connect("its tables")?;
        session.check_schema(&mut client)?;
        session.lock(&mut client, HAND_OVER)?;
        session.tenure = session.begin(&mut client)?;
        session.client = Some(client);
        Ok(session)
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Sees to it that there is a connection, if it is time to.
    pub(super) fn keep_up(&mut self) -> Result<(), StoreError> {
        self.client("the connection").map(drop)
    }

    pub(super) fn change(
        &mut self,
        durable: Durable,
        what: &str,
        statements: &[Statement],
    ) -> Result<Vec<i64>, StoreError> {
        match write(self.client(what)?, durable, statements) {
            Ok((answers, Ok(()))) => Ok(answers),
            // Lost at the last word, which may have been heard.
            Ok((_, Err(error))) if leaves_doubt(&error) => {
                let (place, cause) = (self.place.clone(), said(&error));
                self.client = None;
                Err(StoreError::Unanswered { place, what: what.to_owned(), cause })
            }
            Ok((_, Err(error))) | Err(error) => Err(self.failed(what, &error)),
        }
    }

    pub(super) fn select(
        &mut self,
        what: &str,
        statement: &Statement,
    ) -> Result<Vec<Row>, StoreError> {
        let values: Vec<_> = statement.values.iter().map(typed).collect();
        let rows = self.client(what)?.query_typed(&statement.sql, &values);
        let rows = rows.and_then(|rows| rows.iter().map(row).collect());
        rows.map_err(|error| self.failed(what, &error))
    }

    /// The connection; a new one if the one before was lost.
    fn client(&mut self, what: &str) -> Result<&mut Client, StoreError> {
        if self.taken {
            return Err(StoreError::Taken(self.place.clone()));
        }
        if self.client.as_ref().is_some_and(Client::is_closed) {
            self.client = None;
        }
        if self.client.is_none() {
            if self.tried.elapsed() < RETRY {
                return Err(self.unreachable(what, "the connection was lost"));
            }
            self.tried = Instant::now();
            let client = self.reconnect(what)?;
            tracing::info!("{} answers again", self.place);
            self.client = Some(client);
        }
        match &mut self.client {
            Some(client) => Ok(client),
            None => Err(StoreError::Taken(self.place.clone())),
        }
    }

    /// A connection with the lock, if nobody else had it since.
    fn reconnect(&mut self, what: &str) -> Result<Client, StoreError> {
        let before = self.process;
        let mut client = self.connect(what)?;
        let tenure = "SELECT tenure FROM tessera";
        let tenure = client.query_typed_one(tenure, &[]).and_then(|row| row.try_get::<_, i64>(0));
        let tenure = tenure.map_err(|error| self.failed(what, &error))?;
        self.taken = tenure != self.tenure;
        if self.taken {
            return Err(StoreError::Taken(self.place.clone()));
        }
        // The server may not have noticed that the connection before is lost.
        let end = "SELECT pg_terminate_backend(pid) FROM pg_locks \
                   WHERE locktype = 'advisory' AND classid = $1 AND pid = $2 AND granted";
        let values: [(&(dyn ToSql + Sync), Type); 2] =
            [(&u32::try_from(LOCK).unwrap_or_default(), Type::OID), (&narrow(before), Type::INT4)];
        client.query_typed(end, &values).map_err(|error| self.failed(what, &error))?;
        self.lock(&mut client, RETRY)?;
        Ok(client)
    }

    fn connect(&mut self, what: &str) -> Result<Client, StoreError> {
        let connected = (|| {
            let mut client = self.config.connect(self.tls.clone())?;
            client.batch_execute(BEHAVIOUR)?;
            let process = "SELECT pg_backend_pid()::bigint";
            let process = client.query_typed_one(process, &[])?.try_get(0)?;
            Ok((client, process))
        })();
        let (client, process) = connected.map_err(|error| self.failed(what, &error))?;
        self.process = process;
        Ok(client)
    }

    /// Without a schema there is nowhere to make tables, and nothing to lock.
    fn check_schema(&mut self, client: &mut Client) -> Result<(), StoreError> {
        let what = "its tables";
        let schema = client.query_typed_one("SELECT current_schema()::text", &[]);
        let schema = schema.and_then(|row| row.try_get::<_, Option<String>>(0));
        match schema.map_err(|error| self.failed(what, &error))? {
            Some(_) => Ok(()),
            None => {
                let cause =
                    "there is no schema of that name: make it with CREATE SCHEMA".to_owned();
                Err(StoreError::Io { place: self.place.clone(), what: what.to_owned(), cause })
            }
        }
    }

    /// Takes the lock, once whoever has it is gone.
    fn lock(&mut self, client: &mut Client, patience: Duration) -> Result<(), StoreError> {
        let what = "its lock";
        let lock = format!(
            "SELECT pg_try_advisory_lock({LOCK}, (SELECT oid::bigint::int FROM pg_namespace \
             WHERE nspname = current_schema()))"
        );
        let since = Instant::now();
        let mut waits = false;
        loop {
            let locked =
                client.query_typed_one(&lock, &[]).and_then(|row| row.try_get::<_, bool>(0));
            if locked.map_err(|error| self.failed(what, &error))? {
                return Ok(());
            }
            if since.elapsed() > patience {
                let by = self.holder(client);
                return Err(StoreError::Held { place: self.place.clone(), by });
            }
            if !std::mem::replace(&mut waits, true) {
                tracing::info!("another coordinator uses {}: waiting for it to end", self.place);
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Whose the lock is.
    fn holder(&self, client: &mut Client) -> String {
        let who = format!(
            "SELECT coalesce(host(client_addr), 'this machine'), pid::bigint FROM pg_locks \
             JOIN pg_stat_activity USING (pid) \
             WHERE locktype = 'advisory' AND classid = {LOCK} AND granted \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND objid = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())"
        );
        let row = client.query_typed_one(&who, &[]);
        let row = row.and_then(|row| Ok((row.try_get::<_, String>(0)?, row.try_get::<_, i64>(1)?)));
        row.map_or_else(
            |_| "which is not known".to_owned(),
            |(host, process)| format!("from {host}, the server's process {process}"),
        )
    }

    /// Makes the tables, or finds them, and says which coordinator this is.
    fn begin(&self, client: &mut Client) -> Result<i64, StoreError> {
        let begun = (|| {
            let mut transaction = client.transaction()?;
            let there =
                "SELECT to_regclass(quote_ident(current_schema()) || '.tessera') IS NOT NULL";
            if !transaction.query_typed_one(there, &[])?.try_get::<_, bool>(0)? {
                transaction.batch_execute(TABLES)?;
                let first = format!("INSERT INTO tessera VALUES ({SCHEMA}, 0)");
                transaction.batch_execute(&first)?;
            }
            let next = "UPDATE tessera SET tenure = tenure + 1 RETURNING schema, tenure";
            let row = transaction.query_typed_one(next, &[])?;
            let (found, tenure): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            if found <= SCHEMA {
                transaction.commit()?;
            }
            Ok((found, tenure))
        })();
        let (found, tenure) = begun.map_err(|error| self.error("its tables", &error))?;
        if found > SCHEMA {
            return Err(StoreError::Newer { place: self.place.clone(), found, known: SCHEMA });
        }
        Ok(tenure)
    }

    /// What an error means, after which the connection may be gone.
    fn failed(&mut self, what: &str, error: &postgres::Error) -> StoreError {
        if error.as_db_error().is_none() {
            self.client = None;
        }
        self.error(what, error)
    }

    fn error(&self, what: &str, error: &postgres::Error) -> StoreError {
        let (place, what, cause) = (self.place.clone(), what.to_owned(), said(error));
        match error.code() {
            None => StoreError::Unreachable { place, what, cause },
            Some(code) if *code == SqlState::DISK_FULL => StoreError::Full { place, what },
            Some(code)
                if matches!(code.code().get(..2), Some("28" | "3D" | "57" | "53" | "08")) =>
            {
                StoreError::Unreachable { place, what, cause }
            }
            Some(_) => StoreError::Io { place, what, cause },
        }
    }

    fn unreachable(&self, what: &str, cause: &str) -> StoreError {
        let (place, what, cause) = (self.place.clone(), what.to_owned(), cause.to_owned());
        StoreError::Unreachable { place, what, cause }
    }
}

/// What the statements changed, and whether that was made to last; or why it was not tried.
type Written = Result<(Vec<i64>, Result<(), postgres::Error>), postgres::Error>;

fn write(client: &mut Client, durable: Durable, statements: &[Statement]) -> Written {
    let mut transaction = client.transaction()?;
    if durable == Durable::Later {
        transaction.batch_execute("SET LOCAL synchronous_commit TO off")?;
    }
    let answers = statements.iter().map(|statement| execute(&mut transaction, statement));
    let answers = answers.collect::<Result<_, _>>()?;
    Ok((answers, transaction.commit()))
}

/// How many rows a statement changed, or what it returned.
fn execute(
    transaction: &mut Transaction<'_>,
    statement: &Statement,
) -> Result<i64, postgres::Error> {
    let Statement { sql, values } = statement;
    let values: Vec<_> = values.iter().map(typed).collect();
    if sql.contains(" RETURNING ") {
        return transaction.query_typed_one(sql, &values)?.try_get(0);
    }
    let rows = transaction.execute_typed(sql, &values)?;
    Ok(i64::try_from(rows).unwrap_or(i64::MAX))
}

fn typed(value: &Value) -> (&(dyn ToSql + Sync), Type) {
    match value {
        Value::Integer(value) => (value, Type::INT8),
        Value::Text(value) => (value, Type::TEXT),
        Value::MaybeText(value) => (value, Type::TEXT),
        Value::Bytes(value) => (value, Type::BYTEA),
        Value::MaybeBytes(value) => (value, Type::BYTEA),
    }
}

fn row(row: &postgres::Row) -> Result<Row, postgres::Error> {
    let cell = |(index, column): (usize, &postgres::Column)| {
        let cell = match *column.type_() {
            Type::INT8 => row.try_get::<_, Option<i64>>(index)?.map(Cell::Integer),
            Type::TEXT => row.try_get::<_, Option<String>>(index)?.map(Cell::Text),
            // No table has another; whoever reads it would find bytes where it wants none.
            _ => row.try_get::<_, Option<Vec<u8>>>(index)?.map(Cell::Bytes),
        };
        Ok((column.name().to_owned(), cell.unwrap_or(Cell::Null)))
    };
    Ok(Row(row.columns().iter().enumerate().map(cell).collect::<Result<_, postgres::Error>>()?))
}

/// Whether a commit may have been done all the same: the connection was lost, or its server's process was ended.
fn leaves_doubt(error: &postgres::Error) -> bool {
    error.code().is_none_or(|code| code.code().starts_with("57"))
}

fn narrow(process: i64) -> i32 {
    i32::try_from(process).unwrap_or(-1)
}

/// The server's certificate must be signed by an authority that this machine trusts.
fn tls() -> ClientConfig {
    let mut roots = RootCertStore::empty();
    // What cannot be read is not trusted; a connection that needs it says so.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has what the default versions need")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Whether nothing of it leaves this machine.
fn is_local(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => matches!(name.as_str(), "localhost" | "127.0.0.1" | "::1"),
    }
}

/// What people call the database: where it is and what it is called, but no user nor password.
fn place(config: &Config) -> String {
    let hosts =
        config.get_hosts().iter().zip(config.get_ports().iter().chain(std::iter::repeat(&5432)));
    let hosts = hosts.map(|(host, port)| match host {
        Host::Unix(path) => path.display().to_string(),
        Host::Tcp(name) => format!("{name}:{port}"),
    });
    let hosts: Vec<String> = hosts.collect();
    let name = config.get_dbname().or_else(|| config.get_user()).unwrap_or_default();
    let schema = config.get_options().map(|options| format!(" ({options})")).unwrap_or_default();
    format!("postgres://{}/{name}{schema}", hosts.join(","))
}

/// All that an error says: the client's message alone does not tell why.
fn said(error: &postgres::Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        cause = error.source();
    }
    said
}

impl std::fmt::Debug for Session {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Session").field("place", &self.place).finish_non_exhaustive()
    }
}
