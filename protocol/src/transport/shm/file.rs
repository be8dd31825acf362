//! Files in memory: made, found, and judged.

use crate::plan::SharedMemory;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::rand::GetRandomFlags;
use std::fmt::Write;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Where Linux keeps files that are memory and have names.
pub(super) const FOLDER: &str = "/dev/shm";

/// What the names of regions start with: whoever finds one knows whose it was.
pub(super) const NAME_PREFIX: &str = "tessera-";

/// Bytes of randomness in a name: as many as nobody guesses.
const NAME_RANDOM_BYTES: usize = 16;

/// What the kernel calls tmpfs. On any other file system a region would be a file on a disk.
const TMPFS_MAGIC: u32 = 0x0102_1994;

/// Why memory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum ShmError {
    /// There is no such folder.
    #[error("there is no {}: mount a tmpfs there, or leave shm out of --fabric", .0.display())]
    Missing(PathBuf),
    /// The folder is on a disk.
    #[error("{} is no tmpfs: mount one there, or leave shm out of --fabric", .0.display())]
    NoTmpfs(PathBuf),
    /// The region does not fit.
    #[error(
        "a link needs {needed} bytes in {}, which has {free} of {size} free: enlarge it (docker: \
         --shm-size), or leave shm out of --fabric",
        .folder.display()
    )]
    Full {
        /// Where.
        folder: PathBuf,
        /// Bytes that the region takes.
        needed: usize,
        /// Bytes that are free.
        free: u64,
        /// Bytes that there are in all.
        size: u64,
    },
    /// The peer's region is not there.
    #[error(
        "the peer's {name} is not in {}: the two do not see the same one; leave shm out of \
         --fabric",
        .folder.display()
    )]
    Absent {
        /// Where it was looked for.
        folder: PathBuf,
        /// Its name.
        name: String,
    },
    /// The peer's region is another user's.
    #[error(
        "{name} belongs to another user: run both workers as one, or leave shm out of --fabric"
    )]
    Foreign {
        /// Its name.
        name: String,
    },
    /// The peer's region is not what was agreed on.
    #[error("the peer's region {what}")]
    Unlike {
        /// In what it differs.
        what: String,
    },
    /// The system refused.
    #[error("cannot {act} {}: {cause}", .path.display())]
    System {
        /// What was tried.
        act: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
}

/// Which memory this process can share.
///
/// # Errors
/// If there is no tmpfs at `/dev/shm`, or the system does not tell.
pub fn memory() -> Result<SharedMemory, ShmError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let boot = fs::read_to_string(path).map_err(|cause| ShmError::System {
        act: "read",
        path: path.to_owned(),
        cause,
    })?;
    let (folder, stat) = open_folder(Path::new(FOLDER))?;
    drop(folder);
    let user = rustix::process::geteuid().as_raw();
    Ok(SharedMemory { boot: boot.trim().to_owned(), device: stat.st_dev, user })
}

/// A file that this process made; dropping it takes its name away, not its memory.
#[derive(Debug)]
pub(super) struct OwnFile {
    pub(super) name: String,
    pub(super) file: OwnedFd,
    path: PathBuf,
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::unlink(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a region's name stays");
        }
    }
}

/// Makes a file of `bytes` bytes, whose memory is set aside: none of it can be missing later.
pub(super) fn create(folder: &Path, bytes: usize) -> Result<OwnFile, ShmError> {
    let (directory, _) = open_folder(folder)?;
    let failed = |act, cause: Errno| system(act, folder, cause);
    let mut random = [0; NAME_RANDOM_BYTES];
    rustix::rand::getrandom(&mut random[..], GetRandomFlags::empty())
        .map_err(|cause| failed("draw a name for a region in", cause))?;
    let mut name = NAME_PREFIX.to_owned();
    for byte in random {
        write!(name, "{byte:02x}").expect("strings take all that is written");
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, &name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|cause| failed("make a region in", cause))?;
    let own = OwnFile { path: folder.join(&name), name, file };
    let length = u64::try_from(bytes).unwrap_or(u64::MAX);
    rustix::io::retry_on_intr(|| {
        rustix::fs::fallocate(&own.file, FallocateFlags::empty(), 0, length)
    })
    .map_err(|cause| match (cause, rustix::fs::fstatvfs(&directory)) {
        (Errno::NOSPC | Errno::FBIG, Ok(stat)) => ShmError::Full {
            folder: folder.to_owned(),
            needed: bytes,
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
            size: stat.f_blocks.saturating_mul(stat.f_frsize),
        },
        _ => failed("set memory aside in", cause),
    })?;
    Ok(own)
}

/// Opens the file that the peer made, if it is of this user, for nobody else, and `bytes` long.
pub(super) fn open(folder: &Path, name: &str, bytes: usize) -> Result<OwnedFd, ShmError> {
    let unlike = |what: String| Err(ShmError::Unlike { what });
    let random = name.strip_prefix(NAME_PREFIX).unwrap_or_default();
    let hex = |letter: u8| letter.is_ascii_digit() || (b'a'..=b'f').contains(&letter);
    if random.len() != 2 * NAME_RANDOM_BYTES || !random.bytes().all(hex) {
        return unlike(format!("is called {name:?}, which is no region's name"));
    }
    let (directory, _) = open_folder(folder)?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, name, flags, Mode::empty()).map_err(|cause| {
        let (folder, name) = (folder.to_owned(), name.to_owned());
        match cause {
            Errno::NOENT => ShmError::Absent { folder, name },
            Errno::ACCESS | Errno::PERM => ShmError::Foreign { name },
            _ => system("open a region in", &folder, cause),
        }
    })?;
    let stat = rustix::fs::fstat(&file).map_err(|cause| system("look at", folder, cause))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(ShmError::Foreign { name: name.to_owned() });
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return unlike("is no file".to_owned());
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    if mode != Mode::RUSR | Mode::WUSR {
        return unlike(format!("has mode {:o}, not 600", mode.as_raw_mode()));
    }
    if usize::try_from(stat.st_size) != Ok(bytes) {
        return unlike(format!("has {} bytes, not {bytes}", stat.st_size));
    }
    Ok(file)
}

fn open_folder(folder: &Path) -> Result<(OwnedFd, Stat), ShmError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(folder, flags, Mode::empty()).map_err(|cause| match cause {
        Errno::NOENT | Errno::NOTDIR => ShmError::Missing(folder.to_owned()),
        _ => system("open", folder, cause),
    })?;
    let failed = |cause| system("look at", folder, cause);
    let kind = rustix::fs::fstatfs(&opened).map_err(failed)?.f_type;
    if u32::try_from(kind) != Ok(TMPFS_MAGIC) {
        return Err(ShmError::NoTmpfs(folder.to_owned()));
    }
    let stat = rustix::fs::fstat(&opened).map_err(failed)?;
    Ok((opened, stat))
}

fn system(act: &'static str, path: &Path, cause: Errno) -> ShmError {
    ShmError::System { act, path: path.to_owned(), cause: cause.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn names() -> Vec<String> {
        let all = fs::read_dir(FOLDER).expect("a folder");
        all.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect()
    }

    #[test]
    fn what_is_missing_or_too_small_is_named() {
        let missing = create(Path::new("/nonexistent/shm"), 64).expect_err("missing");
        assert!(missing.to_string().starts_with("there is no /nonexistent/shm:"), "{missing}");
        let disk = create(Path::new("/proc"), 64).expect_err("no tmpfs");
        assert!(disk.to_string().starts_with("/proc is no tmpfs:"), "{disk}");
        let full = create(Path::new(FOLDER), 1 << 60).expect_err("an exbibyte");
        assert!(matches!(full, ShmError::Full { needed, .. } if needed == 1 << 60), "{full}");
    }

    #[test]
    fn a_name_goes_when_its_file_is_dropped() {
        let own = create(Path::new(FOLDER), 4096).expect("made");
        let (name, mode) = (own.name.clone(), Mode::RUSR | Mode::WUSR);
        let stat = rustix::fs::fstat(&own.file).expect("a file");
        assert_eq!(Mode::from_raw_mode(stat.st_mode), mode);
        assert!(names().contains(&name));
        drop(own);
        assert!(!names().contains(&name));
    }

    #[test]
    fn a_region_that_is_not_as_agreed_is_refused() {
        let folder = Path::new(FOLDER);
        let own = create(folder, 4096).expect("made");
        open(folder, &own.name, 4096).expect("as agreed");
        let refused = |name: &str, bytes, cause: &str| {
            let error = open(folder, name, bytes).expect_err(cause).to_string();
            assert!(error.contains(cause), "{error} does not say: {cause}");
        };
        refused(&own.name, 8192, "has 4096 bytes, not 8192");
        refused(&format!("{NAME_PREFIX}{}", "0".repeat(32)), 4096, "do not see the same one");
        refused("../etc/passwd", 4096, "no region's name");
        refused(&format!("{NAME_PREFIX}/../{}", "0".repeat(28)), 4096, "no region's name");
        let link = format!("{NAME_PREFIX}{}", "f".repeat(32));
        symlink(&own.path, folder.join(&link)).expect("linked");
        let followed = open(folder, &link, 4096);
        fs::remove_file(folder.join(&link)).expect("removed");
        assert!(followed.is_err(), "a link was followed");
        fs::set_permissions(&own.path, fs::Permissions::from_mode(0o666)).expect("set");
        refused(&own.name, 4096, "has mode 666, not 600");
    }

    #[test]
    fn a_process_shares_memory_with_itself() {
        let memory = memory().expect("a tmpfs");
        assert_eq!(memory, super::memory().expect("a tmpfs"));
        assert_eq!(memory.boot.len(), 36, "{memory:?}");
    }
}
