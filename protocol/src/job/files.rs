//! Files that a job is rendered with, beside the model: LoRA weights and a picture to begin with. They are known by
//! what is in them, so that each crosses a wire once.

use crate::identity::hex_bytes;
use serde::{Deserialize, Serialize};

/// The longest file that a job may name: the largest LoRA files of SDXL have 1.8 GiB.
pub const FILE_BYTES_MAX: u64 = 2 << 30;
/// The longest picture, as PNG: one of the largest side admitted, of noise, has 192 MiB; photographs of that side have
/// a third.
pub const PICTURE_BYTES_MAX: u64 = 64 << 20;
/// The longest that all files of a job may be together: what any worker has room for.
pub const JOB_FILES_BYTES_MAX: u64 = 4 << 30;
/// How many LoRA files a job may name.
pub const LORAS_MAX: usize = 16;
/// The largest magnitude of a LoRA's scale: far beyond what any gives an image for.
pub const LORA_SCALE_MAX: f32 = 100.0;
/// The longest name of a LoRA file, in bytes.
pub const LORA_NAME_BYTES_MAX: usize = 255;

/// How much of a file goes in one message: at 1 Mbit/s it takes half a second, less than a lease, and nobody who waits
/// for another message waits longer.
pub const CHUNK_BYTES: usize = 64 << 10;

hex_bytes! {
    /// Which file: blake3 of its bytes.
    pub FileDigest(32)
}

impl FileDigest {
    /// Of a file of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

/// Low-rank changes of the model's weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// The safetensors file that they are in.
    pub file: FileDigest,
    /// What people call it: the file's name.
    pub name: String,
    /// What they are multiplied by, beside what the file says.
    pub scale: f32,
}

/// The picture that is asked for to begin with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InitWish {
    /// A PNG file of 8 bits a channel, RGB.
    pub file: FileDigest,
    /// Its width in pixels: the image's, if that is not asked for.
    pub width: u32,
    /// Its height in pixels.
    pub height: u32,
    /// How much of it is changed, up to 1. None: the model family's default.
    pub strength: Option<f32>,
}

/// The picture to begin with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Init {
    /// A PNG file of 8 bits a channel, RGB. It is resized to the image.
    pub file: FileDigest,
    /// How much of it is changed, up to 1: the part of the steps that are taken.
    pub strength: f32,
}

impl Init {
    /// How many of `steps` are left out, as diffusers counts them.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts saturate")]
    pub fn skipped_steps(&self, steps: u32) -> u32 {
        // In f64, from the shortest decimal that is this f32: what a person wrote.
        let strength: f64 = self.strength.to_string().parse().unwrap_or(0.0);
        let taken = (f64::from(steps) * strength) as u32;
        steps - taken.min(steps)
    }
}
