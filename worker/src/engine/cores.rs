//! Which cores this worker computes on: its own, as far as the machine has enough.
//!
//! A worker claims each core by a lock on a file that is named after it, which the system lets go of
//! however the worker ends; and its compute threads are pinned to those cores. Where claims cannot be
//! seen, in a container whose cores are not set apart, nothing is pinned.

use std::fs::{DirBuilder, File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::thread::CpuSet;

/// What the system calls the namespace of processes of the machine itself.
const MACHINE_NAMESPACE: &str = "pid:[4026531836]";

/// The compute threads of a worker, and where they run.
#[derive(Debug)]
pub struct Cores {
    threads: NonZeroUsize,
    placement: Placement,
    /// Locked as long as they are open.
    _claims: Vec<File>,
}

/// Where compute threads run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Each on a core that no other worker of this machine has.
    Pinned(Vec<usize>),
    /// Wherever the system puts them, and why.
    Anywhere(String),
}

/// Why no threads were chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoresError {
    /// Other workers have them all.
    #[error(
        "all {0} cores that this worker may use are taken by other workers: give those fewer with \
         --threads, or give --threads N here to share cores with them"
    )]
    Taken(usize),
}

impl Cores {
    /// Claims cores for so many threads; None: for as many as this machine has cores that no other
    /// worker has.
    ///
    /// # Errors
    /// If none is left, and no number of threads was asked for.
    pub fn claim(threads: Option<NonZeroUsize>) -> Result<Self, CoresError> {
        let parallel = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let anywhere = |why: String| {
            let threads = threads.unwrap_or(parallel);
            Self { threads, placement: Placement::Anywhere(why), _claims: Vec::new() }
        };
        let allowed = match allowed_cores() {
            Ok(allowed) => allowed,
            Err(error) => {
                return Ok(anywhere(format!("the system does not tell its cores: {error}")));
            }
        };
        if allowed.len() == online_cores() && is_container() {
            let why = "in a container other workers' cores cannot be seen; set some apart for each \
                       (with Docker: --cpuset-cpus)";
            return Ok(anywhere(why.to_owned()));
        }
        let folder = std::env::temp_dir()
            .join(format!("tessera-cores-{}", rustix::process::getuid().as_raw()));
        Self::claim_in(&folder, &one_of_each(&allowed, siblings), threads, parallel)
    }

    /// Claims some of `cores` by files in `folder`.
    fn claim_in(
        folder: &Path,
        cores: &[usize],
        threads: Option<NonZeroUsize>,
        parallel: NonZeroUsize,
    ) -> Result<Self, CoresError> {
        let wanted = threads.unwrap_or(parallel).get();
        let mut claims = Vec::new();
        for core in cores {
            if claims.len() == wanted {
                break;
            }
            match lock(folder, *core) {
                Ok(Some(file)) => claims.push((*core, file)),
                Ok(None) => {}
                Err(error) => {
                    let why = format!("cores cannot be claimed in {}: {error}", folder.display());
                    let threads = threads.unwrap_or(parallel);
                    let placement = Placement::Anywhere(why);
                    return Ok(Self { threads, placement, _claims: Vec::new() });
                }
            }
        }
        let (own, files): (Vec<usize>, Vec<File>) = claims.into_iter().unzip();
        match (threads, NonZeroUsize::new(own.len())) {
            (Some(threads), _) if own.len() < threads.get() => {
                let why = format!(
                    "{} of this machine's {} cores are free of other workers, fewer than --threads \
                     {threads} asks for: cores are shared",
                    own.len(),
                    cores.len()
                );
                Ok(Self { threads, placement: Placement::Anywhere(why), _claims: Vec::new() })
            }
            (_, Some(threads)) => {
                Ok(Self { threads, placement: Placement::Pinned(own), _claims: files })
            }
            (_, None) => Err(CoresError::Taken(cores.len())),
        }
    }

    /// How many threads.
    #[must_use]
    pub fn threads(&self) -> NonZeroUsize {
        self.threads
    }

    /// Where they run.
    #[must_use]
    pub fn placement(&self) -> &Placement {
        &self.placement
    }
}

impl Placement {
    /// Pins the calling thread, the compute thread `index`, to its core, if it has one.
    pub(super) fn pin(&self, index: usize) {
        let Self::Pinned(cores) = self else { return };
        let mut set = CpuSet::new();
        set.set(cores[index % cores.len()]);
        // The core was allowed a moment ago; where it is no more, the system's choice is right.
        rustix::thread::sched_setaffinity(None, &set).ok();
    }
}

impl std::fmt::Display for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pinned(cores) => {
                let names: Vec<String> = cores.iter().map(usize::to_string).collect();
                write!(f, "pinned to core {}", names.join(", "))
            }
            Self::Anywhere(why) => write!(f, "not pinned: {why}"),
        }
    }
}

/// The lock on a core; None where another worker has it.
fn lock(folder: &Path, core: usize) -> std::io::Result<Option<File>> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join(format!("core-{core}"));
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Ok(None),
        Err(std::fs::TryLockError::Error(error)) => Err(error),
    }
}

/// The cores this process may run on.
fn allowed_cores() -> std::io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// How many cores the machine has; 0 where the system does not tell.
fn online_cores() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    parse_list(&text).len()
}

fn is_container() -> bool {
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    namespace != Path::new(MACHINE_NAMESPACE)
}

/// The logical cores that are one with `core`.
fn siblings(core: usize) -> Vec<usize> {
    let topology = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    parse_list(&std::fs::read_to_string(PathBuf::from(topology)).unwrap_or_default())
}

/// One logical core of each: two of one core share its arithmetic units, which one keeps busy.
fn one_of_each(allowed: &[usize], siblings: impl Fn(usize) -> Vec<usize>) -> Vec<usize> {
    let is_first = |core: &usize| {
        let same = siblings(*core);
        same.iter().find(|sibling| allowed.contains(sibling)).is_none_or(|first| first == core)
    };
    allowed.iter().copied().filter(is_first).collect()
}

/// Numbers as the system lists them, such as `0-3,8`.
fn parse_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    text.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: usize) -> Option<NonZeroUsize> {
        NonZeroUsize::new(n)
    }

    fn claim(folder: &Path, threads: Option<NonZeroUsize>) -> Result<Cores, CoresError> {
        Cores::claim_in(folder, &[0, 1, 4], threads, number(3).unwrap())
    }

    #[test]
    fn workers_share_no_cores_until_one_ends() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim(folder.path(), number(2)).unwrap();
        assert_eq!(*first.placement(), Placement::Pinned(vec![0, 1]));
        let second = claim(folder.path(), None).unwrap();
        assert_eq!(*second.placement(), Placement::Pinned(vec![4]));
        assert_eq!(second.threads().get(), 1);
        assert_eq!(claim(folder.path(), None).unwrap_err(), CoresError::Taken(3));
        drop(first);
        let third = claim(folder.path(), None).unwrap();
        assert_eq!(*third.placement(), Placement::Pinned(vec![0, 1]));
    }

    #[test]
    fn more_threads_than_free_cores_run_anywhere_and_say_so() {
        let folder = tempfile::tempdir().unwrap();
        let first = claim(folder.path(), number(2)).unwrap();
        let second = claim(folder.path(), number(2)).unwrap();
        assert_eq!(second.threads().get(), 2);
        let said = second.placement().to_string();
        assert!(said.starts_with("not pinned: 1 of this machine's 3 cores are free"), "{said}");
        // It has claimed nothing meanwhile.
        drop(first);
        let third = claim(folder.path(), None).unwrap();
        assert_eq!(third.placement().to_string(), "pinned to core 0, 1, 4");
    }

    #[test]
    fn one_logical_core_of_each_is_used() {
        let pairs = |core: usize| vec![core % 4, core % 4 + 4];
        assert_eq!(one_of_each(&[0, 1, 2, 3, 4, 5, 6, 7], pairs), [0, 1, 2, 3]);
        assert_eq!(one_of_each(&[1, 5, 6], pairs), [1, 6]);
        assert_eq!(one_of_each(&[1, 5], |_| Vec::new()), [1, 5]);
    }

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(parse_list("0-2,8\n"), [0, 1, 2, 8]);
        assert_eq!(parse_list("3"), [3]);
        assert!(parse_list("").is_empty());
    }
}
