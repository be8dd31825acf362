//! A request in the web UI's words, and what it is in ours.

mod given;

use super::super::error::Refusal;
use super::super::given::{InitBody, LoraBody};
use protocol::job::{Field, JobRequest, Scheduler};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The samplers by the web UI's names; and which sampler each is with the schedule that it has by itself.
pub(super) const SAMPLERS: &[(&str, Scheduler)] = &[
    ("Euler a", Scheduler::EulerA),
    ("Euler", Scheduler::Euler),
    ("DPM++ 2M", Scheduler::Dpmpp2mKarras),
    ("DPM++ 2M Karras", Scheduler::Dpmpp2mKarras),
    ("DDIM", Scheduler::Ddim),
    ("UniPC", Scheduler::Unipc),
    ("Heun", Scheduler::Heun),
    ("LCM", Scheduler::Lcm),
    ("PLMS", Scheduler::Pndm),
];

/// The schedules by the web UI's names.
pub(super) const SCHEDULES: &[&str] = &["Automatic", "Uniform", "Karras"];

/// Options that change nothing in an image that is made in one go and not written by the server.
const WITHOUT_EFFECT: &[&str] = &[
    "comments",
    "denoising_strength",
    "do_not_save_grid",
    "do_not_save_samples",
    "firstphase_height",
    "firstphase_width",
    "force_task_id",
    "hr_cfg",
    "hr_checkpoint_name",
    "hr_negative_prompt",
    "hr_prompt",
    "hr_resize_x",
    "hr_resize_y",
    "hr_sampler_name",
    "hr_scale",
    "hr_scheduler",
    "hr_second_pass_steps",
    "hr_upscaler",
    "override_settings_restore_afterwards",
    "subseed",
];

/// Further values that change nothing, beside null, false, 0 and what is empty.
const NEUTRAL: &[(&str, f64)] = &[
    ("eta", 1.0),
    ("initial_noise_multiplier", 1.0),
    ("refiner_switch_at", 1.0),
    ("s_noise", 1.0),
    ("s_min_uncond", 0.0),
    ("seed_resize_from_h", -1.0),
    ("seed_resize_from_w", -1.0),
];

/// From what an image is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// From its prompt.
    Text,
    /// From a picture as well.
    Picture,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Words {
    /// Without what it is to be given.
    pub(crate) request: JobRequest,
    pub(crate) loras: Vec<LoraBody>,
    pub(crate) init: Option<InitBody>,
    /// How many images.
    pub(super) images: u32,
    /// Whether the answer has their files.
    pub(super) sends: bool,
    /// The sampler's name there.
    pub(super) sampler: String,
}

impl Words {
    /// Reads a request; what it asks for that there is not is refused by name.
    pub(crate) fn read(mut said: Map<String, Value>, from: From) -> Result<Self, Refusal> {
        let prompt: String = take(&mut said, "prompt")?.unwrap_or_default();
        let (prompt, loras) = given::loras(&prompt)?;
        let init = match from {
            From::Text => None,
            From::Picture => Some(given::init(&mut said)?),
        };
        let older: Option<String> = take(&mut said, "sampler_index")?;
        let sampler = take(&mut said, "sampler_name")?.or(older);
        let schedule: Option<String> = take(&mut said, "scheduler")?;
        let scheduler = scheduler(sampler.as_deref(), schedule.as_deref())?;
        let seed = take(&mut said, "seed")?.filter(|seed: &i64| *seed != -1);
        let seed = seed.map(|seed| {
            let wrong = || {
                Refusal::invalid(format!("seed {seed} is neither -1 nor a number from 0"))
                    .about("seed")
            };
            u64::try_from(seed).map_err(|_| wrong())
        });
        let request = JobRequest {
            negative: take(&mut said, "negative_prompt")?,
            width: take(&mut said, "width")?,
            height: take(&mut said, "height")?,
            steps: take(&mut said, "steps")?,
            guidance: take(&mut said, "cfg_scale")?,
            seed: seed.transpose()?,
            model: model(&mut said)?,
            scheduler,
            ..JobRequest::new(prompt)
        };
        let each = take(&mut said, "batch_size")?.unwrap_or(1_u32);
        let times = take(&mut said, "n_iter")?.unwrap_or(1_u32);
        let sends = take(&mut said, "send_images")?.unwrap_or(true);
        if from == From::Picture {
            said.retain(|name, _| !given::WITHOUT_EFFECT.contains(&name.as_str()));
        }
        said.iter().try_for_each(check_rest)?;
        let sampler = sampler.unwrap_or_else(|| "Automatic".to_owned());
        let images = each.saturating_mul(times);
        Ok(Self { request, loras, init, images, sends, sampler })
    }
}

/// What a field of ours is called there.
pub(super) fn word(field: Field) -> &'static str {
    match field {
        Field::Negative => "negative_prompt",
        Field::Guidance => "cfg_scale",
        Field::Model => "override_settings",
        Field::Loras => "prompt",
        Field::Init => "init_images",
        Field::Strength => "denoising_strength",
        ours => ours.path(),
    }
}

/// The value of a field; null is none.
fn take<T: DeserializeOwned>(
    said: &mut Map<String, Value>,
    name: &str,
) -> Result<Option<T>, Refusal> {
    let Some(value) = said.remove(name).filter(|value| !value.is_null()) else { return Ok(None) };
    let wrong = |error| Refusal::invalid(format!("{name}: {error}")).about(name);
    serde_json::from_value(value).map(Some).map_err(wrong)
}

/// The sampler that a name and a schedule mean; none named means the model's own.
fn scheduler(sampler: Option<&str>, schedule: Option<&str>) -> Result<Option<Scheduler>, Refusal> {
    let Some(name) = sampler.filter(|name| !name.is_empty()) else { return Ok(None) };
    let known = SAMPLERS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let Some((_, alone)) = known else {
        let all: Vec<&str> = SAMPLERS.iter().map(|(known, _)| *known).collect();
        let message = format!("unknown sampler `{name}`; there are: {}", all.join(", "));
        return Err(Refusal::invalid(message).about("sampler_name"));
    };
    let schedule = schedule.filter(|schedule| !schedule.is_empty()).unwrap_or("automatic");
    let karras = *alone == Scheduler::Dpmpp2mKarras;
    match schedule.to_lowercase().as_str() {
        "automatic" => Ok(Some(*alone)),
        "karras" if karras => Ok(Some(*alone)),
        "uniform" if karras => Ok(Some(Scheduler::Dpmpp2m)),
        "uniform" => Ok(Some(*alone)),
        _ => {
            let message =
                format!("the sampler `{name}` has no schedule `{schedule}` here: leave it out");
            Err(Refusal::invalid(message).about("scheduler"))
        }
    }
}

/// The model that a request wants for itself.
fn model(said: &mut Map<String, Value>) -> Result<Option<String>, Refusal> {
    let Some(mut settings) = take::<Map<String, Value>>(said, "override_settings")? else {
        return Ok(None);
    };
    let model: Option<String> = take(&mut settings, "sd_model_checkpoint")?;
    match settings.keys().next() {
        None => Ok(model.map(|title| model_of(&title).to_owned())),
        Some(name) => {
            let message = format!("override_settings: the setting `{name}` is not known here");
            Err(Refusal::invalid(message).about("override_settings"))
        }
    }
}

/// The model's name in a title, which has its hash behind it.
pub(super) fn model_of(title: &str) -> &str {
    title.split_once(" [").map_or(title, |(name, _)| name)
}

/// Refuses what would change the image if it were there.
fn check_rest((name, value): (&String, &Value)) -> Result<(), Refusal> {
    let neutral = |number: f64| {
        NEUTRAL.iter().any(|(known, same)| known == name && number.to_bits() == same.to_bits())
    };
    let nothing = match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(number) => {
            number.as_f64().is_some_and(|value| value == 0.0 || neutral(value))
        }
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
    };
    if nothing || WITHOUT_EFFECT.contains(&name.as_str()) {
        return Ok(());
    }
    let message = format!("`{name}` cannot be done here: leave it out");
    Err(Refusal::invalid(message).about(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(said: Value) -> Result<Words, Refusal> {
        let Value::Object(said) = said else { panic!("{said}") };
        Words::read(said, From::Text)
    }

    fn read_picture(said: Value) -> Result<Words, Refusal> {
        let Value::Object(said) = said else { panic!("{said}") };
        Words::read(said, From::Picture)
    }

    #[test]
    fn a_request_in_their_words_is_one_in_ours() {
        // As the package `webuiapi` sends it.
        let said = r#"{
            "enable_hr": false, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0,
            "hr_resize_y": 0, "hr_checkpoint_name": null, "hr_sampler_name": null, "hr_scheduler": null, "hr_prompt": "",
            "hr_negative_prompt": "", "denoising_strength": 0.7, "firstphase_width": 0, "firstphase_height": 0,
            "prompt": "a cat", "styles": [], "seed": 7, "subseed": -1, "subseed_strength": 0.0, "seed_resize_from_h": 0,
            "seed_resize_from_w": 0, "batch_size": 2, "n_iter": 2, "steps": 3, "cfg_scale": 7.0, "width": 64, "height": 128,
            "restore_faces": false, "tiling": false, "do_not_save_samples": false, "do_not_save_grid": false,
            "negative_prompt": "a dog", "eta": 1.0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1,
            "override_settings": {"sd_model_checkpoint": "tiny [0123456789]"}, "override_settings_restore_afterwards": true,
            "sampler_name": "Euler a", "scheduler": "automatic", "sampler_index": "Euler a", "script_name": null,
            "script_args": [], "send_images": true, "save_images": false, "alwayson_scripts": {}
        }"#;
        let words = read(serde_json::from_str(said).unwrap()).unwrap();
        let request = JobRequest {
            negative: Some("a dog".to_owned()),
            width: Some(64),
            height: Some(128),
            steps: Some(3),
            guidance: Some(7.0),
            seed: Some(7),
            model: Some("tiny".to_owned()),
            scheduler: Some(Scheduler::EulerA),
            ..JobRequest::new("a cat")
        };
        let (images, sends, sampler) = (4, true, "Euler a".to_owned());
        let (loras, init) = (Vec::new(), None);
        assert_eq!(words, Words { request, loras, init, images, sends, sampler });
    }

    #[test]
    fn a_picture_is_begun_with_if_it_is_one_and_whole() {
        // What the package `webuiapi` sends beside what it says of text.
        let said = json!({
            "init_images": ["YWJj"], "resize_mode": 0, "denoising_strength": 0.5, "mask_blur": 4, "inpainting_fill": 0,
            "inpaint_full_res": true, "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0, "image_cfg_scale": 1.5,
            "initial_noise_multiplier": 1, "include_init_images": false, "width": 64,
        });
        let words = read_picture(said.clone()).unwrap();
        let init = InitBody { file: None, data: Some("YWJj".to_owned()), strength: Some(0.5) };
        assert_eq!((words.init, words.request.width), (Some(init), Some(64)));
        let bare = read_picture(json!({"init_images": ["YWJj"]})).unwrap();
        assert_eq!(bare.init.unwrap().strength, Some(0.75));
        for (name, value) in [
            ("mask", json!("YWJj")),
            ("resize_mode", json!(1)),
            ("init_images", json!(["YWJj", "YWJj"])),
            ("init_images", json!([])),
            ("init_images", json!("YWJj")),
            ("initial_noise_multiplier", json!(1.1)),
        ] {
            let mut said = said.clone();
            said[name] = value;
            let refused = read_picture(said).unwrap_err();
            assert_eq!(refused.param.as_deref(), Some(name), "{refused}");
        }
        let refused = read(json!({"init_images": ["YWJj"]})).unwrap_err();
        assert_eq!(refused.param.as_deref(), Some("init_images"));
    }

    #[test]
    fn what_changes_an_image_and_is_not_there_is_refused_by_name() {
        for (name, value) in [
            ("enable_hr", json!(true)),
            ("disable_extra_networks", json!(true)),
            ("prompt", json!("a cat <lora:ink:1>")),
            ("tiling", json!(true)),
            ("styles", json!(["vivid"])),
            ("eta", json!(0.5)),
            ("alwayson_scripts", json!({"ControlNet": {"args": []}})),
            ("subseed_strength", json!(0.2)),
            ("scheduler", json!("karras")),
            ("sampler_name", json!("Restart")),
            ("seed", json!(-2)),
            ("width", json!("wide")),
            ("override_settings", json!({"CLIP_stop_at_last_layers": 2})),
        ] {
            let refused = read(json!({"sampler_name": "Euler", name: value})).unwrap_err();
            assert_eq!(refused.param.as_deref(), Some(name), "{refused}");
        }
        assert_eq!(read(json!({"seed": -1})).unwrap().request, JobRequest::new(""));
    }

    #[test]
    fn a_schedule_belongs_to_a_sampler() {
        let named = |sampler, schedule| scheduler(Some(sampler), schedule).unwrap();
        assert_eq!(named("DPM++ 2M", None), Some(Scheduler::Dpmpp2mKarras));
        assert_eq!(named("DPM++ 2M", Some("Uniform")), Some(Scheduler::Dpmpp2m));
        assert_eq!(named("euler", Some("Automatic")), Some(Scheduler::Euler));
        assert_eq!(scheduler(None, Some("Karras")), Ok(None));
    }
}
