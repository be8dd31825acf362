//! What is asked for, as JSON: in a request's body, and in what is told of a job.

use super::given::{InitBody, LoraBody};
use super::schema;
use protocol::job::{
    Bands, CfgSplit, Decode, Dtype, GnVariance, JobRequest, Mode, Parallelism, Priority, Scheduler,
    Warmup, Wire,
};
use protocol::message::JobRecord;
use protocol::plan::Fabric;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::marker::PhantomData;
use utoipa::ToSchema;

/// Below this a floating point number tells each whole number from its neighbours.
const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;

/// What an image is to be. What is left out, or null, takes the model's default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Request)]
pub(crate) struct RequestBody {
    /// What the image shows.
    #[schema(max_length = 10_000)]
    pub(crate) prompt: String,
    /// What it should not show.
    #[serde(default)]
    #[schema(max_length = 10_000)]
    pub(crate) negative: Option<String>,
    /// Width in pixels.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 8192)]
    pub(crate) width: Option<u32>,
    /// Height in pixels.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 8192)]
    pub(crate) height: Option<u32>,
    /// Sampler steps.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 1000)]
    pub(crate) steps: Option<u32>,
    /// Classifier-free guidance scale; 1 or less turns guidance off.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 100)]
    pub(crate) guidance: Option<f32>,
    /// The seed of torch's CPU generator. Drawn, if none is given.
    #[serde(default, deserialize_with = "whole")]
    #[schema(schema_with = schema::optional_seed)]
    pub(crate) seed: Option<u64>,
    /// The sampler.
    #[serde(default)]
    #[schema(schema_with = schema::optional_scheduler)]
    pub(crate) scheduler: Option<Scheduler>,
    /// The first K+1 model calls are synchronous; `auto`: calls are, as long as what is exchanged changes much.
    #[serde(default, deserialize_with = "warmup")]
    #[schema(schema_with = schema::optional_warmup)]
    pub(crate) warmup: Option<Warmup>,
    /// How workers share a model call.
    #[serde(default)]
    #[schema(schema_with = schema::optional_parallelism)]
    pub(crate) parallelism: Option<Parallelism>,
    /// How workers exchange activations after the warm-up.
    #[serde(default)]
    #[schema(schema_with = schema::optional_mode)]
    pub(crate) mode: Option<Mode>,
    /// The variance of group norms.
    #[serde(default)]
    #[schema(schema_with = schema::optional_gn_variance)]
    pub(crate) gn_variance: Option<GnVariance>,
    /// The type in which keys and values cross between workers.
    #[serde(default)]
    #[schema(schema_with = schema::optional_wire)]
    pub(crate) wire: Option<Wire>,
    /// The type that workers must hold their weights in.
    #[serde(default)]
    #[schema(schema_with = schema::optional_dtype)]
    pub(crate) dtype: Option<Dtype>,
    /// The model that workers must hold, by name.
    #[serde(default)]
    pub(crate) model: Option<String>,
    /// Whether different workers compute guidance's two predictions.
    #[serde(default)]
    #[schema(schema_with = schema::optional_cfg_split)]
    pub(crate) cfg_split: Option<CfgSplit>,
    /// How tall workers' bands are.
    #[serde(default)]
    #[schema(schema_with = schema::optional_bands)]
    pub(crate) bands: Option<Bands>,
    /// How the latent becomes pixels.
    #[serde(default)]
    #[schema(schema_with = schema::optional_decode)]
    pub(crate) decode: Option<Decode>,
    /// The fabrics that workers may exchange over; none named means all.
    #[serde(default)]
    #[schema(schema_with = schema::fabrics)]
    pub(crate) fabrics: Option<Vec<Fabric>>,
    /// How many workers render it.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 65535)]
    pub(crate) workers: Option<u16>,
    /// If a worker is lost, wait for another in its place, so that the image is bit for bit that of an undisturbed run.
    #[serde(default)]
    pub(crate) deterministic: Option<bool>,
    /// Move bands within the image once a worker is found to be slower than its band is tall.
    #[serde(default)]
    pub(crate) rebalance: Option<bool>,
    /// Whether it is rendered before others that wait.
    #[serde(default)]
    #[schema(schema_with = schema::optional_priority)]
    pub(crate) priority: Option<Priority>,
    /// Tell where each worker's time goes, in events `profiled`.
    #[serde(default)]
    pub(crate) profile: Option<bool>,
    /// LoRA files whose changes of the model's weights add up.
    #[serde(default)]
    #[schema(max_items = 16)]
    pub(crate) loras: Option<Vec<LoraBody>>,
    /// A picture to begin with. Its size is the image's, if no other is asked for.
    #[serde(default)]
    pub(crate) init: Option<InitBody>,
}

impl RequestBody {
    /// Its priority.
    pub(crate) fn priority(&self) -> Priority {
        self.priority.unwrap_or(Priority::Normal)
    }

    /// Takes out what it is to be given.
    pub(crate) fn take_given(&mut self) -> (Vec<LoraBody>, Option<InitBody>) {
        (self.loras.take().unwrap_or_default(), self.init.take())
    }
}

impl From<RequestBody> for JobRequest {
    /// Without what it is to be given, which has to be looked for.
    fn from(body: RequestBody) -> Self {
        let RequestBody { prompt, negative, width, height, steps, guidance, seed, .. } = body;
        let unasked = Self::new(prompt);
        Self {
            negative,
            width,
            height,
            steps,
            guidance,
            seed,
            scheduler: body.scheduler,
            warmup: body.warmup.unwrap_or(unasked.warmup),
            parallelism: body.parallelism.unwrap_or(unasked.parallelism),
            mode: body.mode,
            gn_variance: body.gn_variance.unwrap_or(unasked.gn_variance),
            wire: body.wire,
            dtype: body.dtype,
            model: body.model,
            cfg_split: body.cfg_split.unwrap_or(unasked.cfg_split),
            bands: body.bands.unwrap_or(unasked.bands),
            decode: body.decode.unwrap_or(unasked.decode),
            fabrics: body.fabrics.unwrap_or_default(),
            workers: body.workers,
            deterministic: body.deterministic.unwrap_or(unasked.deterministic),
            rebalance: body.rebalance.unwrap_or(unasked.rebalance),
            profile: body.profile.unwrap_or(unasked.profile),
            ..unasked
        }
    }
}

impl From<&JobRecord> for RequestBody {
    /// What was asked for, with the seed that was drawn: sent again, it asks for the same image.
    fn from(record: &JobRecord) -> Self {
        let asked = &record.request;
        Self {
            prompt: asked.prompt.clone(),
            negative: asked.negative.clone(),
            width: asked.width,
            height: asked.height,
            steps: asked.steps,
            guidance: asked.guidance,
            seed: Some(record.seed),
            scheduler: asked.scheduler,
            warmup: Some(asked.warmup),
            parallelism: Some(asked.parallelism),
            mode: asked.mode,
            gn_variance: Some(asked.gn_variance),
            wire: asked.wire,
            dtype: asked.dtype,
            model: asked.model.clone(),
            cfg_split: Some(asked.cfg_split),
            bands: Some(asked.bands),
            decode: Some(asked.decode),
            fabrics: Some(asked.fabrics.clone()),
            workers: asked.workers,
            deterministic: Some(asked.deterministic),
            rebalance: Some(asked.rebalance),
            priority: Some(record.priority),
            profile: Some(asked.profile),
            loras: Some(asked.loras.iter().map(LoraBody::from).collect()),
            init: asked.init.as_ref().map(InitBody::from),
        }
    }
}

/// Reads a whole number, however it is written: 244.0 is one, and some clients know no others.
fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    struct Whole<T>(PhantomData<T>);

    impl<T: TryFrom<u64>> Visitor<'_> for Whole<T> {
        type Value = Option<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let most = u64::MAX >> (64 - 8 * size_of::<T>());
            write!(f, "a whole number from 0 to {most}")
        }

        fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
            let wrong = |_| E::invalid_value(Unexpected::Unsigned(value), &self);
            T::try_from(value).map(Some).map_err(wrong)
        }

        fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
            Err(E::invalid_value(Unexpected::Signed(value), &self))
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<Self::Value, E> {
            let wrong = || E::invalid_value(Unexpected::Float(value), &self);
            let value = as_whole(value).ok_or_else(wrong)?;
            self.visit_u64(value)
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }

    deserializer.deserialize_any(Whole(PhantomData))
}

/// The whole number that this is.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 2^53")]
fn as_whole(value: f64) -> Option<u64> {
    let whole = (0.0..WHOLE_MAX).contains(&value) && value.fract().abs() < f64::EPSILON;
    whole.then_some(value as u64)
}

/// Reads a warm-up as people write it: a number, or a text of one, or `auto`.
fn warmup<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Warmup>, D::Error> {
    struct Text;

    impl<'de> Visitor<'de> for Text {
        type Value = Option<Warmup>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number of calls or \"auto\"")
        }

        fn visit_u64<E: Error>(self, calls: u64) -> Result<Self::Value, E> {
            let wrong = |_| E::invalid_value(Unexpected::Unsigned(calls), &self);
            u32::try_from(calls).map(|calls| Some(Warmup::Calls(calls))).map_err(wrong)
        }

        fn visit_f64<E: Error>(self, calls: f64) -> Result<Self::Value, E> {
            let wrong = || E::invalid_value(Unexpected::Float(calls), &self);
            let calls = as_whole(calls).ok_or_else(wrong)?;
            self.visit_u64(calls)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            text.parse().map(Some).map_err(E::custom)
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }
    }

    deserializer.deserialize_any(Text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<RequestBody, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_is_what_nobody_asked_for() {
        let body = read(r#"{"prompt": "a cat", "width": null}"#).unwrap();
        assert_eq!(body.priority(), Priority::Normal);
        assert_eq!(JobRequest::from(body), JobRequest::new("a cat"));
    }

    #[test]
    fn every_field_is_heard() {
        let json = r#"{"prompt": "a", "negative": "b", "width": 64, "height": 128, "steps": 3, "guidance": 2.5,
            "seed": 18446744073709551615, "scheduler": "ddim", "warmup": "auto", "parallelism": "tensor",
            "mode": "stale", "gn_variance": "reference", "wire": "bf16", "dtype": "f16", "model": "tiny",
            "cfg_split": "on", "bands": "even", "decode": "tiled", "fabrics": ["tcp", "shm"], "workers": 2,
            "deterministic": true, "rebalance": true, "priority": "high", "profile": true,
            "loras": [{"file": "LORA", "scale": -0.5, "name": "ink"}], "init": {"file": "INIT", "strength": 0.5}}"#;
        let json = json.replace("LORA", &"ab".repeat(32)).replace("INIT", &"cd".repeat(32));
        let mut body = read(&json).unwrap();
        assert_eq!(body.priority(), Priority::High);
        let asked: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_value(&body).unwrap(), asked);
        let (loras, init) = body.take_given();
        assert_eq!((loras.len(), init.and_then(|init| init.strength)), (1, Some(0.5)));
        let request = JobRequest::from(body);
        assert_eq!((request.seed, request.warmup), (Some(u64::MAX), Warmup::Auto));
        assert_eq!(request.fabrics, [Fabric::Tcp, Fabric::Shm]);
        assert!(request.deterministic && request.rebalance && request.profile);
    }

    #[test]
    fn a_warm_up_is_a_number_or_a_word() {
        for (json, warmup) in [
            ("3", Warmup::Calls(3)),
            ("3.0", Warmup::Calls(3)),
            ("\"3\"", Warmup::Calls(3)),
            ("\"auto\"", Warmup::Auto),
        ] {
            let body = read(&format!(r#"{{"prompt": "", "warmup": {json}}}"#)).unwrap();
            assert_eq!(body.warmup, Some(warmup));
        }
        for wrong in ["-1", "4294967296", "\"soon\"", "1.5", "[]"] {
            assert!(read(&format!(r#"{{"prompt": "", "warmup": {wrong}}}"#)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_whole_number_may_be_written_as_one_with_a_point() {
        let body = read(r#"{"prompt": "", "width": 64.0, "seed": 18446744073709551615}"#).unwrap();
        assert_eq!((body.width, body.seed), (Some(64), Some(u64::MAX)));
        for wrong in ["64.5", "-1", "-1.0", "4294967296", "4294967296.0", "1e300", "\"64\"", "true"]
        {
            let error = read(&format!(r#"{{"prompt": "", "width": {wrong}}}"#)).unwrap_err();
            assert!(error.contains("a whole number from 0 to 4294967295"), "{error}");
        }
    }

    #[test]
    fn an_unknown_key_or_name_is_named() {
        let error = read(r#"{"prompt": "", "promt": ""}"#).unwrap_err();
        assert!(error.contains("`promt`"), "{error}");
        let error = read(r#"{"prompt": "", "scheduler": "fast"}"#).unwrap_err();
        assert!(error.contains("`fast`") && error.contains("`euler`"), "{error}");
    }
}
