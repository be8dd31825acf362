//! What a job brings beside its prompt: LoRA files, and a picture to begin with.

use super::latent::{Latent, band_of};
use crate::model::checkpoint::Checkpoint;
use crate::model::files::Blob;
use crate::model::lora::Source;
use crate::model::picture::Picture;
use crate::model::tensor::{Memory, Tensor};
use crate::model::{Error, Result};
use protocol::job::{FileDigest, Init, JobSpec, Parallelism};
use protocol::plan::{Band, Geometry};
use protocol::{Fault, FaultKind};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;
use std::sync::Arc;

/// Files that a worker holds, by what is in them.
pub type Files = BTreeMap<FileDigest, Arc<File>>;

/// The largest and the smallest logarithm of a variance, fixed in diffusers.
const LOG_VARIANCE: [f32; 2] = [-30.0, 20.0];

/// The model that `spec` is rendered with: `checkpoint`, or that with changes.
pub(super) fn adapted<'a>(
    checkpoint: &'a Checkpoint,
    spec: &JobSpec,
    files: &Files,
) -> Result<Cow<'a, Checkpoint>> {
    if spec.loras.is_empty() {
        return Ok(Cow::Borrowed(checkpoint));
    }
    if spec.parallelism == Parallelism::Tensor {
        let cause = "--parallelism tensor, a baseline, takes no LoRA: leave one of them out";
        return Err(Error::Refused(cause.to_owned()));
    }
    let source = |lora: &protocol::job::Lora| {
        let blob = Blob::of(open(files, lora.file, &lora.name)?).map_err(|error| {
            Fault::new(FaultKind::Storage, format!("{} cannot be read: {error}", lora.name))
        })?;
        Ok(Source { name: lora.name.clone(), scale: lora.scale, blob })
    };
    let sources = spec.loras.iter().map(source).collect::<Result<_>>()?;
    checkpoint.with_loras(sources).map(Cow::Owned)
}

fn open(files: &Files, file: FileDigest, name: &str) -> Result<File> {
    let missing = || {
        let cause = format!("{name} ({file}), which the job is rendered with, is not here");
        Fault::new(FaultKind::Storage, cause)
    };
    let found = files.get(&file).ok_or_else(missing)?;
    found.try_clone().map_err(|error| {
        Fault::new(FaultKind::Storage, format!("{name} cannot be read: {error}")).into()
    })
}

/// What latents of the picture are drawn from: rows of `band` of their means and logarithms of variances.
pub(super) struct Encoded {
    mean: Latent,
    log_variance: Latent,
    scale: f64,
    shift: f64,
}

impl Encoded {
    /// The whole picture, encoded.
    pub(super) fn of(
        checkpoint: &Checkpoint,
        (init, files): (&Init, &Files),
        (geometry, band): (Geometry, Band),
        memory: &Memory,
    ) -> Result<Self> {
        let none =
            || Error::Refused("this model's VAE has no encoder: it takes no picture".to_owned());
        let encoder = checkpoint.encoder().ok_or_else(none)?;
        let file = open(files, init.file, "the picture to begin with")?;
        let blob = Blob::of(file).map_err(|error| unreadable(&error))?;
        let bytes = blob.head(usize::try_from(blob.len()).unwrap_or(usize::MAX));
        let bytes = bytes.map_err(|error| unreadable(&error))?;
        let sides = [geometry.columns, geometry.rows]
            .map(|side| usize::try_from(side * geometry.vae_factor).unwrap_or(usize::MAX));
        let picture = Picture::read(Cursor::new(bytes))?.resized(sides[0], sides[1]);
        let picture = Tensor::new(memory, &picture.values(), [1, sides[1], sides[0], 3])?;
        let moments = encoder.encode(&picture)?;
        drop(picture);
        let moments = band_of(&moments, band)?;
        let channels = moments.dim(3)? / 2;
        let config = checkpoint.vae().config();
        Ok(Self {
            mean: moments.narrow(3, 0, channels)?,
            log_variance: moments.narrow(3, channels, channels)?,
            scale: config.scaling_factor,
            shift: config.shift_factor,
        })
    }

    /// The latent that `noise` draws.
    pub(super) fn drawn(&self, noise: &Latent) -> Result<Latent> {
        let [least, most] = LOG_VARIANCE;
        let deviation = (self.log_variance.clamp(least, most)? * 0.5)?.exp()?;
        let drawn = (&self.mean + (deviation * noise)?)?;
        Ok(((drawn - self.shift)? * self.scale)?)
    }
}

fn unreadable(error: &std::io::Error) -> Fault {
    Fault::new(FaultKind::Storage, format!("the picture to begin with cannot be read: {error}"))
}
