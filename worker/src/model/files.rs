//! The files of a checkpoint: a folder in the diffusers layout, or the built-in one.

use super::{Error, Result};
use memmap2::{Mmap, MmapOptions};
use std::borrow::Cow;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The name of the built-in model.
pub const BUILTIN: &str = "emoji-xl";

macro_rules! builtin {
    ($($path:literal),+ $(,)?) => {
        &[$((
            $path,
            include_bytes!(concat!(
                env!("CARGO_MANIFEST_DIR"), "/../deploy/models/emoji-xl/", $path
            )),
        )),+]
    };
}

/// emoji-xl, inside the binary: a first picture needs no download and no path.
const EMOJI_XL: &[(&str, &[u8])] = builtin![
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/special_tokens_map.json",
    "tokenizer_2/tokenizer_config.json",
    "tokenizer_2/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
];

/// Where a checkpoint's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelFiles {
    /// In a folder, in the diffusers layout.
    Folder(PathBuf),
    /// In this binary.
    Builtin,
}

impl ModelFiles {
    /// What people call the checkpoint: the folder's name.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Builtin => BUILTIN.to_owned(),
            Self::Folder(folder) => {
                let full = folder.canonicalize().unwrap_or_else(|_| folder.clone());
                full.file_name().map_or_else(
                    || full.display().to_string(),
                    |name| name.to_string_lossy().into_owned(),
                )
            }
        }
    }

    /// The file's name in errors.
    #[must_use]
    pub fn describe(&self, path: &str) -> String {
        match self {
            Self::Builtin => format!("{BUILTIN} (built in)/{path}"),
            Self::Folder(folder) => folder.join(path).display().to_string(),
        }
    }

    /// The bytes of a small file, or None if it is not there.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn find(&self, path: &str) -> Result<Option<Cow<'static, [u8]>>> {
        match self {
            Self::Builtin => Ok(builtin(path).map(Cow::Borrowed)),
            Self::Folder(folder) => match std::fs::read(folder.join(path)) {
                Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(self.unreadable(path, &error)),
            },
        }
    }

    /// The bytes of a small file.
    ///
    /// # Errors
    /// If it is not there or cannot be read.
    pub fn read(&self, path: &str) -> Result<Cow<'static, [u8]>> {
        self.find(path)?.ok_or_else(|| {
            Error::Checkpoint(format!(
                "{} is missing: a checkpoint is a folder in the diffusers layout",
                self.describe(path)
            ))
        })
    }

    /// Opens a large file, or None if it is not there.
    ///
    /// # Errors
    /// If it is there and cannot be opened.
    pub fn open(&self, path: &str) -> Result<Option<Blob>> {
        match self {
            Self::Builtin => Ok(builtin(path).map(Blob::Builtin)),
            Self::Folder(folder) => match open_with_len(&folder.join(path)) {
                Ok((file, len)) => Ok(Some(Blob::File { file, len })),
                Err(error) if is_absent(&error) => Ok(None),
                Err(error) => Err(self.unreadable(path, &error)),
            },
        }
    }

    fn unreadable(&self, path: &str, error: &std::io::Error) -> Error {
        Error::Checkpoint(format!("{} cannot be read: {error}", self.describe(path)))
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn open_with_len(path: &Path) -> std::io::Result<(File, u64)> {
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    Ok((file, len))
}

fn builtin(path: &str) -> Option<&'static [u8]> {
    EMOJI_XL.iter().find(|(known, _)| *known == path).map(|(_, bytes)| *bytes)
}

/// A large file of which ranges are looked at.
#[derive(Debug)]
pub enum Blob {
    /// On disk.
    File {
        /// The open file.
        file: File,
        /// Its length in bytes when it was opened.
        len: u64,
    },
    /// In this binary.
    Builtin(&'static [u8]),
}

/// Bytes of a [`Blob`], mapped while they are looked at.
#[derive(Debug)]
pub enum Range {
    /// Mapped from disk.
    Mapped(Mmap),
    /// In this binary.
    Builtin(&'static [u8]),
}

impl std::ops::Deref for Range {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Builtin(bytes) => bytes,
        }
    }
}

impl Blob {
    /// An open file.
    ///
    /// # Errors
    /// If its length cannot be had.
    pub fn of(file: File) -> std::io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self::File { file, len })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Builtin(bytes) => bytes.len() as u64,
        }
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads its first `len` bytes.
    ///
    /// # Errors
    /// If it is shorter, or cannot be read.
    pub fn head(&self, len: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        match self {
            Self::File { file, .. } => {
                file.read_exact_at(&mut bytes, 0)?;
            }
            Self::Builtin(all) => {
                let head = all.get(..len).ok_or(ErrorKind::UnexpectedEof)?;
                bytes.copy_from_slice(head);
            }
        }
        Ok(bytes)
    }

    /// Maps `len` bytes from `start`. Each tensor is mapped on its own and unmapped once packed,
    /// so that loading never holds a second copy of the weights.
    ///
    /// # Errors
    /// If the range is not inside the file, or cannot be mapped.
    pub fn map(&self, start: u64, len: usize) -> std::io::Result<Range> {
        let end = start.checked_add(len as u64).ok_or(ErrorKind::UnexpectedEof)?;
        if end > self.len() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        match self {
            Self::File { .. } if len == 0 => Ok(Range::Builtin(&[])),
            Self::File { file, .. } => map_file(file, start, len).map(Range::Mapped),
            Self::Builtin(all) => {
                let start = usize::try_from(start).map_err(|_| ErrorKind::UnexpectedEof)?;
                Ok(Range::Builtin(&all[start..start + len]))
            }
        }
    }
}

#[expect(unsafe_code, reason = "memory-mapping a file that another process may truncate")]
fn map_file(file: &File, start: u64, len: usize) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and lives while one tensor is packed. A checkpoint that someone
    // truncates at that very moment ends this process by SIGBUS, and one that someone rewrites
    // gives wrong weights; neither lets a value of the wrong type come to be, because the bytes
    // are only ever read as plain numbers.
    unsafe { MmapOptions::new().offset(start).len(len).map(file) }
}
