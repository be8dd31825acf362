//! A request for images, as `OpenAI` has it, and what it is in our words.

use super::super::error::Refusal;
use super::super::image::Format;
use super::super::limits::IMAGES_MAX;
use super::super::schema;
use protocol::job::{Field, JobRequest, Scheduler};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most partial images of a stream, as `OpenAI` has it.
const PARTIAL_IMAGES_MAX: u8 = 3;

/// How images are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ResponseFormat {
    /// As an address.
    Url,
    /// As a file in base64.
    B64Json,
}

/// Values of options that change nothing here, and are known to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Quality {
    /// As the server renders.
    Auto,
    /// The same.
    Standard,
}

/// Whether an image may be seen through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Background {
    /// It may not.
    Auto,
    /// The same.
    Opaque,
}

/// How strictly prompts are looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Moderation {
    /// Not at all: this server looks through none.
    Auto,
    /// The same.
    Low,
}

/// A request for images. What is left out, or null, takes the model's default; a value that this server cannot do
/// is refused, not ignored.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ImagesRequest)]
pub(crate) struct ImagesBody {
    /// What the images show.
    #[schema(max_length = 10_000)]
    prompt: String,
    /// The model that workers hold, by name.
    #[serde(default)]
    model: Option<String>,
    /// How many images.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 10)]
    n: Option<u32>,
    /// `WIDTHxHEIGHT` in pixels, or `auto` for the model's own.
    #[serde(default)]
    #[schema(pattern = "^(auto|[1-9][0-9]{0,3}x[1-9][0-9]{0,3})$")]
    size: Option<String>,
    /// How images are told of; both ways, if none is named.
    #[serde(default)]
    #[schema(inline, nullable = true)]
    response_format: Option<ResponseFormat>,
    /// What images are encoded as.
    #[serde(default)]
    #[schema(inline, nullable = true)]
    output_format: Option<Format>,
    /// Whether the answer is a stream of events.
    #[serde(default)]
    stream: Option<bool>,
    /// How many partial images a stream shows.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 3)]
    partial_images: Option<u8>,
    /// Whoever it is for: read, and not used.
    #[serde(default)]
    #[expect(dead_code, reason = "clients send it, and nothing here depends on it")]
    #[serde(skip_serializing)]
    user: Option<String>,
    #[serde(default, skip_serializing)]
    #[expect(dead_code, reason = "its type says what it may be")]
    #[schema(inline, nullable = true)]
    quality: Option<Quality>,
    #[serde(default, skip_serializing)]
    #[expect(dead_code, reason = "its type says what it may be")]
    #[schema(inline, nullable = true)]
    background: Option<Background>,
    #[serde(default, skip_serializing)]
    #[expect(dead_code, reason = "its type says what it may be")]
    #[schema(inline, nullable = true)]
    moderation: Option<Moderation>,
    /// What they should not show.
    #[serde(default)]
    #[schema(max_length = 10_000)]
    negative_prompt: Option<String>,
    /// Sampler steps.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    num_inference_steps: Option<u32>,
    /// Classifier-free guidance scale; 1 or less turns guidance off.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 100)]
    guidance_scale: Option<f32>,
    /// The seed of torch's CPU generator, of the first image.
    #[serde(default)]
    seed: Option<u64>,
    /// The sampler.
    #[serde(default)]
    #[schema(schema_with = schema::optional_scheduler)]
    scheduler: Option<Scheduler>,
}

impl ImagesBody {
    /// The job of one image.
    pub(crate) fn request(&self) -> Result<JobRequest, Refusal> {
        let size = self.size.as_deref().filter(|size| *size != "auto");
        let sides = size.map(sides).transpose()?;
        Ok(JobRequest {
            negative: self.negative_prompt.clone(),
            width: sides.map(|(width, _)| width),
            height: sides.map(|(_, height)| height),
            steps: self.num_inference_steps,
            guidance: self.guidance_scale,
            seed: self.seed,
            scheduler: self.scheduler,
            model: self.model.clone(),
            ..JobRequest::new(self.prompt.clone())
        })
    }

    /// How many images.
    pub(crate) fn count(&self) -> Result<u32, Refusal> {
        let count = self.n.unwrap_or(1);
        if (1..=IMAGES_MAX).contains(&count) {
            return Ok(count);
        }
        Err(Refusal::limit("n", format!("n {count} is not one of 1 to {IMAGES_MAX}")))
    }

    /// Whether the answer is a stream.
    pub(crate) fn stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// How many partial images a stream of so many images shows.
    pub(crate) fn partial_images(&self, count: u32) -> Result<u8, Refusal> {
        if count > 1 {
            let message = format!("a stream is of one image, not {count}: leave n out");
            return Err(Refusal::invalid(message).about("n"));
        }
        let partial = self.partial_images.unwrap_or(0);
        if partial <= PARTIAL_IMAGES_MAX {
            return Ok(partial);
        }
        let message = format!("partial_images {partial} is not one of 0 to {PARTIAL_IMAGES_MAX}");
        Err(Refusal::limit("partial_images", message))
    }

    /// What images are encoded as.
    pub(super) fn output_format(&self) -> Format {
        self.output_format.unwrap_or(Format::Png)
    }

    /// How images are told of, if one way is named.
    pub(super) fn response_format(&self) -> Option<ResponseFormat> {
        self.response_format
    }
}

/// What a field of ours is called there.
pub(super) fn word(field: Field) -> &'static str {
    match field {
        Field::Negative => "negative_prompt",
        Field::Width | Field::Height => "size",
        Field::Steps => "num_inference_steps",
        Field::Guidance => "guidance_scale",
        ours => ours.path(),
    }
}

/// The sides that `WIDTHxHEIGHT` names.
fn sides(size: &str) -> Result<(u32, u32), Refusal> {
    let sides = size.split_once('x');
    let read = sides.and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    read.ok_or_else(|| {
        let message = format!("size `{size}` is neither WIDTHxHEIGHT in pixels nor auto");
        Refusal::invalid(message).about("size")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Result<ImagesBody, String> {
        serde_json::from_value(json).map_err(|error| error.to_string())
    }

    #[test]
    fn a_request_in_their_words_is_one_in_ours() {
        let body = read(serde_json::json!({
            "prompt": "a cat", "model": "tiny", "n": 2, "size": "256x128", "negative_prompt": "a dog", "seed": 7,
            "num_inference_steps": 3, "guidance_scale": 2.5, "user": "ann", "quality": "auto", "scheduler": "ddim",
        }))
        .unwrap();
        let asked = JobRequest {
            model: Some("tiny".to_owned()),
            width: Some(256),
            height: Some(128),
            negative: Some("a dog".to_owned()),
            seed: Some(7),
            steps: Some(3),
            guidance: Some(2.5),
            scheduler: Some(Scheduler::Ddim),
            ..JobRequest::new("a cat")
        };
        assert_eq!(body.request(), Ok(asked));
        assert_eq!((body.count(), body.output_format()), (Ok(2), Format::Png));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        for (field, value) in
            [("quality", "hd"), ("background", "transparent"), ("style", "vivid"), ("mask", "x")]
        {
            let error = read(serde_json::json!({"prompt": "", field: value})).unwrap_err();
            assert!(error.contains(value) || error.contains(field), "{error}");
        }
        for size in ["big", "1x", "-1x2", "1x2x3", ""] {
            let body = read(serde_json::json!({"prompt": "", "size": size})).unwrap();
            assert_eq!(body.request().unwrap_err().param.as_deref(), Some("size"), "{size}");
        }
        for n in [0, 11] {
            let body = read(serde_json::json!({"prompt": "", "n": n})).unwrap();
            assert_eq!(body.count().unwrap_err().param.as_deref(), Some("n"));
        }
        let body = read(serde_json::json!({"prompt": "", "partial_images": 4})).unwrap();
        assert_eq!(body.partial_images(1).unwrap_err().param.as_deref(), Some("partial_images"));
        assert_eq!(body.partial_images(2).unwrap_err().param.as_deref(), Some("n"));
    }
}
