//! Becoming a member of a cluster: a token for a certificate.

use super::connection::{ConnectError, Connection, call};
use super::stream::{FrameReader, FrameWriter, StreamError};
use crate::codec::Limits;
use crate::handshake::{hello, read_enrolled};
use crate::identity::{Credentials, IdentityError, Request, Role, Token};
use crate::message::{self, Enrolment};
use crate::tls::enrolment_config;
use crate::{Fault, Version};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long the coordinator may take, from the call to the certificate: it makes one at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a process has not become a member.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnrolError {
    /// Nobody answers there, or it is not the token's cluster.
    #[error("cannot enrol at {address}: {cause}")]
    Absent {
        /// Where the coordinator was looked for.
        address: String,
        /// What was wrong.
        cause: String,
        /// Whether it may be there later.
        may_pass: bool,
    },
    /// The coordinator does not take the token.
    #[error("the coordinator at {address} does not take the token: {fault}")]
    Refused {
        /// Where it is.
        address: String,
        /// Why.
        fault: Fault,
    },
    /// No key could be made, or the answer is not for it.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Makes a key, and has the coordinator at `address` (`HOST:PORT`) issue a certificate for it. The
/// coordinator is known by the authority that the token names.
///
/// # Errors
/// If the coordinator is not there, is another cluster's, or does not take the token.
pub async fn enrol(address: &str, token: &Token, name: &str) -> Result<Credentials, EnrolError> {
    let request = Request::new()?;
    let absent = |cause: String, may_pass| {
        let address = address.to_owned();
        EnrolError::Absent { address, cause, may_pass }
    };
    let enrolment = Enrolment {
        token: token.clone(),
        name: name.to_owned(),
        request: request.text().to_owned(),
    };
    let asked = timeout(PATIENCE, async {
        let stream = TcpStream::connect(address).await?;
        let connection = call(stream, enrolment_config(token.authority), Role::Coordinator).await?;
        Ok::<_, ConnectError>(ask(connection, enrolment).await)
    });
    let answer = match asked.await {
        Err(_) => return Err(absent(format!("no answer within {} s", PATIENCE.as_secs()), true)),
        Ok(Err(ConnectError::Refused(cause))) => return Err(absent(cause, false)),
        Ok(Err(error)) => return Err(absent(error.to_string(), true)),
        Ok(Ok(answer)) => answer.map_err(|error| absent(error.to_string(), true))?,
    };
    let answer = answer.ok_or_else(|| absent("it closed the connection".to_owned(), true))?;
    let certificates = read_enrolled(&answer)
        .map_err(|fault| EnrolError::Refused { address: address.to_owned(), fault })?;
    Ok(request.answered(&certificates)?)
}

async fn ask(
    connection: Connection,
    enrolment: Enrolment,
) -> Result<Option<bytes::Bytes>, StreamError> {
    let mut reader = FrameReader::new(connection.reading, Limits::GREETING);
    let mut writer = FrameWriter::new(connection.writing, Limits::GREETING);
    // Which both ends have known since tokens are there, whatever their releases are.
    let version = Version::OLDEST;
    writer.set_version(version);
    writer.send(&hello(version, message::Role::Enrol(Box::new(enrolment))), &[]).await?;
    Ok(reader.next_frame().await?.map(|frame| frame.body))
}
