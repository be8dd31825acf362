//! What a finished job leaves on disk. A file appears whole or not at all.

mod latents;
mod png;
mod preview;

pub use latents::Latents;
pub use png::{Parameters, encode_png, write_png};
pub use preview::{ENLARGED_MAX, PreviewError, preview, preview_png};

use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why a file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {cause}", path.display())]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub cause: String,
}

impl WriteError {
    fn new(path: &Path, cause: &dyn std::fmt::Display) -> Self {
        Self { path: path.to_owned(), cause: cause.to_string() }
    }
}

/// Checks that `path` can be written, before any time is spent on what goes there.
///
/// # Errors
/// If its folder is not there or not writable, or `path` is a folder.
pub fn check_writable(path: &Path) -> Result<(), WriteError> {
    if path.is_dir() {
        return Err(WriteError::new(path, &"it is a folder"));
    }
    temporary(path).map(drop)
}

/// Writes a file by way of a temporary one beside it, renamed once it is whole.
///
/// # Errors
/// If any of it cannot be written; then nothing is left behind, and what was at `path` stays.
pub fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), WriteError> {
    let mut file = temporary(path)?;
    let mut buffered = BufWriter::new(file.as_file_mut());
    let written = write(&mut buffered).and_then(|()| buffered.flush());
    drop(buffered);
    written.and_then(|()| file.as_file().sync_all()).map_err(|e| WriteError::new(path, &e))?;
    file.persist(path).map(drop).map_err(|error| WriteError::new(path, &error.error))
}

fn temporary(path: &Path) -> Result<tempfile::NamedTempFile, WriteError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    // As any new file: the user's umask decides, not the temporary file's usual privacy.
    let permissions = std::fs::Permissions::from_mode(0o666);
    tempfile::Builder::new()
        .prefix(".tessera-")
        .permissions(permissions)
        .tempfile_in(folder)
        .map_err(|error| WriteError::new(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.png");
        write_whole(&path, |out| out.write_all(b"old")).unwrap();
        let full = write_whole(&path, |out| {
            out.write_all(b"new")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(full.unwrap_err().to_string().contains("image.png"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_is_not_there_is_named_before_anything_is_done() {
        let error = check_writable(Path::new("/nowhere/at/all.png")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all.png"), "{error}");
    }
}
