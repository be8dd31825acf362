//! The options that give a job files: LoRA weights, and a picture to begin with.

use crate::client::GivenFile;
use crate::lora;
use crate::picture::Picture;
use anyhow::{Context, bail};
use protocol::job::{
    FILE_BYTES_MAX, InitWish, JobRequest, LORA_NAME_BYTES_MAX, Lora, PICTURE_BYTES_MAX,
};
use std::convert::Infallible;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct GivenArgs {
    /// A LoRA file, safetensors with the names of diffusers, PEFT or kohya, and what its changes are multiplied by
    /// [default: 1]. May be given several times: changes add up.
    #[arg(long, value_name = "FILE[:SCALE]")]
    lora: Vec<LoraArg>,
    /// A picture to begin with, PNG or JPEG, in place of noise alone: image to image. Its size is the image's, rounded down
    /// to whole latent pixels, unless --width and --height say otherwise.
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// How much of the picture is changed, up to 1: that part of the steps is taken [default: the model
    /// family's in diffusers, 0.3 of SDXL and 0.8 of others].
    #[arg(long, value_name = "PART", requires = "init", allow_negative_numbers = true)]
    strength: Option<f32>,
}

/// A file, and what is wanted of it.
#[derive(Clone, Debug, PartialEq)]
struct LoraArg {
    path: PathBuf,
    scale: f32,
}

impl FromStr for LoraArg {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        // A name may have a colon, too.
        let scaled =
            text.rsplit_once(':').and_then(|(path, scale)| Some((path, scale.parse().ok()?)));
        let (path, scale) = scaled.unwrap_or((text, 1.0));
        Ok(Self { path: path.into(), scale })
    }
}

/// What a job is given beside its prompt.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    loras: Vec<Lora>,
    init: Option<InitWish>,
    pub(super) files: Vec<GivenFile>,
}

impl GivenArgs {
    /// Reads what the files are, and refuses what cannot be used.
    pub(super) fn read(&self) -> anyhow::Result<Given> {
        let mut given = Given::default();
        for lora in &self.lora {
            let path = lora.path.display();
            let file = lora.open().with_context(|| format!("--lora {path}"))?;
            let name = lora.path.file_name().map(|name| name.to_string_lossy().into_owned());
            let mut name = name.unwrap_or_default();
            if name.len() > LORA_NAME_BYTES_MAX {
                name = file.digest().to_string();
            }
            given.loras.push(Lora { file: file.digest(), name, scale: lora.scale });
            given.files.push(file);
        }
        if let Some(path) = &self.init {
            let picture =
                read_picture(path).with_context(|| format!("--init {}", path.display()))?;
            let Picture { png, width, height } = picture;
            let file = GivenFile::of(png);
            let (digest, strength) = (file.digest(), self.strength);
            given.init = Some(InitWish { file: digest, width, height, strength });
            given.files.push(file);
        }
        Ok(given)
    }
}

impl Given {
    /// `request`, rendered with these files.
    pub(super) fn with(&self, request: JobRequest) -> JobRequest {
        JobRequest { loras: self.loras.clone(), init: self.init.clone(), ..request }
    }
}

impl LoraArg {
    fn open(&self) -> anyhow::Result<GivenFile> {
        check_safetensors(&self.path)?;
        Ok(GivenFile::open(&self.path)?)
    }
}

fn check_safetensors(path: &Path) -> anyhow::Result<()> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > FILE_BYTES_MAX {
        bail!("it has {length} bytes; at most {FILE_BYTES_MAX} are taken");
    }
    Ok(lora::check(file, length)?)
}

fn read_picture(path: &Path) -> anyhow::Result<Picture> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    if length > PICTURE_BYTES_MAX {
        bail!("it has {length} bytes; at most {PICTURE_BYTES_MAX} are taken");
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(Picture::read(&bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_follows_the_last_colon() {
        let of = |text: &str| {
            let Ok(LoraArg { path, scale }) = text.parse();
            (path.display().to_string(), scale)
        };
        assert_eq!(of("a.safetensors"), ("a.safetensors".to_owned(), 1.0));
        assert_eq!(of("a:b.safetensors:-0.5"), ("a:b.safetensors".to_owned(), -0.5));
        assert_eq!(of("a:b.safetensors"), ("a:b.safetensors".to_owned(), 1.0));
    }
}
