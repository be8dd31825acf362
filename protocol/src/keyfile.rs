//! Files that hold secrets: keys, and the credentials beside them.
//!
//! Their owner alone may read them, from the moment they are made; one that others can read is
//! refused, as its secret may be out.

use crate::identity::Credentials;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// What others than the owner may do, among the bits of a file's mode.
const OTHERS: u32 = 0o077;

/// The longest file that is read: keys and certificates are a few KiB, a cluster's records some hundred.
const BYTES_MAX: u64 = 16 << 20;

/// Makes the folder, and those above it, for the owner alone. One that is there stays as it is.
///
/// # Errors
/// If it cannot be made.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| named("cannot make the folder", folder, &error))
}

/// Writes `text` to `path`, whole or not at all, for the owner alone.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let process = std::process::id();
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{process}"));
    let unfinished = Path::new(&unfinished);
    let written = (|| {
        fs::remove_file(unfinished).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(unfinished)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(unfinished, path)
    })();
    written.map_err(|error| {
        fs::remove_file(unfinished).ok(); // it may never have been made
        named("cannot write", path, &error)
    })
}

/// What is in `path`, unless others can read it.
///
/// # Errors
/// If it cannot be read, or others can.
pub fn read(path: &Path) -> io::Result<String> {
    let about = fs::metadata(path).map_err(|error| named("cannot read", path, &error))?;
    let mode = about.permissions().mode() & 0o777;
    if mode & OTHERS != 0 {
        let cause = format!(
            "{} can be read by others (mode {mode:o}): make it yours alone with `chmod 600`, or if its \
             secret may be out, make new ones",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, cause));
    }
    if about.len() > BYTES_MAX {
        let cause =
            format!("{} has {} bytes: it is none of Tessera's", path.display(), about.len());
        return Err(io::Error::new(io::ErrorKind::InvalidData, cause));
    }
    fs::read_to_string(path).map_err(|error| named("cannot read", path, &error))
}

fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

/// Writes credentials to `NAME.key` and `NAME.pem` in `folder`, which must be there.
///
/// # Errors
/// If they cannot be written.
pub fn store(folder: &Path, name: &str, credentials: &Credentials) -> io::Result<()> {
    // The certificate last: credentials are there once it is.
    write(&folder.join(format!("{name}.key")), credentials.key())?;
    write(&folder.join(format!("{name}.pem")), credentials.certificates())
}

/// The credentials in `NAME.key` and `NAME.pem` of `folder`; None if there are none.
///
/// # Errors
/// If they cannot be read, others can read them, or they are damaged.
pub fn load(folder: &Path, name: &str) -> io::Result<Option<Credentials>> {
    let (key, certificates) =
        (folder.join(format!("{name}.key")), folder.join(format!("{name}.pem")));
    if !certificates.try_exists()? {
        return Ok(None);
    }
    let credentials = Credentials::from_pem(&read(&certificates)?, &read(&key)?);
    credentials.map(Some).map_err(|error| {
        let cause = format!("{} and {}: {error}", certificates.display(), key.display());
        io::Error::new(io::ErrorKind::InvalidData, cause)
    })
}
