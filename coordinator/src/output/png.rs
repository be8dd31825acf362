//! PNG files that carry what they were made with.

use super::{WriteError, write_whole};
use png::{BitDepth, ColorType, Encoder};
use protocol::job::{JobSpec, Lora, Scheduler};
use protocol::message::BandView;
use protocol::plan::Branch;
use serde::Serialize;
use std::io::{self, Write};
use std::path::Path;

/// What an image was made with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Parameters {
    /// Every value of the job.
    #[serde(flatten)]
    pub spec: JobSpec,
    /// The model's name.
    pub model: String,
    /// How many workers rendered it.
    pub workers: usize,
    /// What each worker computed of guidance's two predictions, and the image rows of its band, from
    /// the top. No names: the same job gives the same bytes.
    pub bands: Vec<(Branch, u32)>,
    /// Hex blake3 of the final latent, little-endian f32 [channels, rows, columns]: two images of one
    /// hash were computed alike to the last bit.
    pub latent: String,
    /// The release that rendered it.
    pub release: String,
}

impl Parameters {
    /// Of an image that is rendered so, whose latent is not known yet.
    #[must_use]
    pub fn new(spec: JobSpec, model: String, bands: &[BandView]) -> Self {
        let (latent, release) = (String::new(), protocol::RELEASE.to_owned());
        let mut parameters = Self { spec, model, workers: 0, bands: Vec::new(), latent, release };
        parameters.share(bands);
        parameters
    }

    /// From now on the work is shared so: the bands that an image tells of are those of its end.
    pub fn share(&mut self, bands: &[BandView]) {
        self.workers = bands.len();
        self.bands = bands.iter().map(|band| (band.branch, band.rows)).collect();
    }

    /// The text that AUTOMATIC1111's web UI writes under `parameters` and galleries read.
    #[must_use]
    pub fn automatic(&self) -> String {
        let spec = &self.spec;
        let mut text = spec.prompt.clone();
        if let Some(negative) = &spec.negative {
            text += &format!("\nNegative prompt: {negative}");
        }
        text + &format!(
            "\nSteps: {}, Sampler: {}, CFG scale: {}, Seed: {}, Size: {}x{}, Model: {}, \
             Workers: {}, Mode: {}, Warmup: {}{}, Version: tessera {}",
            spec.steps,
            sampler(spec.scheduler),
            spec.guidance,
            spec.seed,
            spec.width,
            spec.height,
            self.model,
            self.workers,
            spec.way(),
            spec.warmup,
            given(spec),
            self.release
        )
    }
}

/// The picture that it began with and the LoRA files, as galleries know them.
fn given(spec: &JobSpec) -> String {
    let mut text = String::new();
    if let Some(init) = &spec.init {
        text += &format!(", Denoising strength: {}, Init image hash: {}", init.strength, init.file);
    }
    if !spec.loras.is_empty() {
        let named = |lora: &Lora| {
            // What separates parameters is in no name.
            let name = lora.name.replace(['"', ',', ':', '\n'], "_");
            format!("{name} ({}): {}", lora.scale, lora.file)
        };
        let named: Vec<String> = spec.loras.iter().map(named).collect();
        text += &format!(", Lora hashes: \"{}\"", named.join(", "));
    }
    text
}

/// The sampler's name in galleries.
fn sampler(scheduler: Scheduler) -> &'static str {
    match scheduler {
        Scheduler::Ddim => "DDIM",
        Scheduler::Euler => "Euler",
        Scheduler::EulerA => "Euler a",
        Scheduler::Dpmpp2m => "DPM++ 2M",
        Scheduler::Dpmpp2mKarras => "DPM++ 2M Karras",
        Scheduler::Unipc => "UniPC",
        Scheduler::Heun => "Heun",
        Scheduler::Lcm => "LCM",
        Scheduler::Pndm => "PLMS",
    }
}

/// Writes RGB bytes [height, width, 3] to `path`, with `parameters` in text chunks: `parameters`
/// for galleries, `tessera` as JSON.
///
/// # Errors
/// If the file cannot be written; then nothing is left behind.
pub fn write_png(path: &Path, pixels: &[u8], parameters: &Parameters) -> Result<(), WriteError> {
    write_whole(path, |out| encode_png(out, pixels, parameters))
}

/// The same, to wherever it is wanted.
///
/// # Errors
/// If it cannot be written there, or the pixels are not those of an image of that size.
pub fn encode_png(out: &mut dyn Write, pixels: &[u8], parameters: &Parameters) -> io::Result<()> {
    encode(out, pixels, parameters).map_err(io::Error::other)
}

fn encode(
    out: &mut dyn Write,
    pixels: &[u8],
    parameters: &Parameters,
) -> Result<(), png::EncodingError> {
    let mut encoder = Encoder::new(out, parameters.spec.width, parameters.spec.height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    let text = parameters.automatic();
    // The older chunk holds Latin-1 only, and is what the most readers know.
    if text.chars().all(|letter| u32::from(letter) < 256) {
        encoder.add_text_chunk("parameters".to_owned(), text)?;
    } else {
        encoder.add_itxt_chunk("parameters".to_owned(), text)?;
    }
    let json = serde_json::to_string(parameters).map_err(io::Error::other)?;
    encoder.add_itxt_chunk("tessera".to_owned(), json)?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::tests::plan;

    fn parameters(prompt: &str) -> Parameters {
        let spec = JobSpec {
            prompt: prompt.to_owned(),
            negative: Some("blurry".to_owned()),
            width: 2,
            height: 1,
            ..plan(1).spec
        };
        let model = "tiny".to_owned();
        Parameters {
            spec,
            model,
            workers: 2,
            bands: vec![(Branch::Whole, 64), (Branch::Whole, 64)],
            latent: "ab".repeat(32),
            release: "9".to_owned(),
        }
    }

    fn written(parameters: &Parameters) -> png::Info<'static> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.png");
        write_png(&path, &[1, 2, 3, 4, 5, 6], parameters).unwrap();
        let file = io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = [0; 6];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, [1, 2, 3, 4, 5, 6]);
        reader.finish().unwrap();
        reader.info().clone()
    }

    #[test]
    fn galleries_find_the_parameters() {
        let info = written(&parameters("caf\u{e9}"));
        let chunk = &info.uncompressed_latin1_text[0];
        assert_eq!(chunk.keyword, "parameters");
        assert_eq!(
            chunk.text,
            "caf\u{e9}\nNegative prompt: blurry\nSteps: 30, Sampler: Euler, CFG scale: 5, Seed: 1, \
             Size: 2x1, Model: tiny, Workers: 2, Mode: corrected, Warmup: 4, Version: tessera 9"
        );
        let json = info.utf8_text[0].get_text().unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["seed"], &json["scheduler"]), (&1.into(), &"euler".into()));
        assert_eq!(json["warmup"], 4);
    }

    #[test]
    fn a_prompt_beyond_latin_1_is_kept() {
        let info = written(&parameters("\u{6771}\u{4eac} \u{2615}"));
        let chunk = info.utf8_text.iter().find(|chunk| chunk.keyword == "parameters").unwrap();
        assert!(chunk.get_text().unwrap().starts_with("\u{6771}\u{4eac} \u{2615}\n"));
    }
}
