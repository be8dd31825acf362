//! What the web UI's words give an image beside its prompt: LoRA files, named in the prompt, and a picture to begin with.

use super::super::super::error::Refusal;
use super::super::super::given::{InitBody, LoraBody};
use super::take;
use protocol::job::Field;
use serde_json::{Map, Value};

/// How a LoRA is named in a prompt.
const TAG: &str = "<lora:";
/// How much of a picture is changed if nobody says, as the web UI has it.
const STRENGTH: f32 = 0.75;

/// Options about the picture that change nothing without a mask, or for models that are not told of it a second time.
pub(super) const WITHOUT_EFFECT: &[&str] = &[
    "image_cfg_scale",
    "include_init_images",
    "inpaint_full_res",
    "inpaint_full_res_padding",
    "inpainting_fill",
    "inpainting_mask_invert",
    "mask_blur",
    "mask_blur_x",
    "mask_blur_y",
    "mask_round",
];

/// The picture to begin with.
pub(super) fn init(said: &mut Map<String, Value>) -> Result<InitBody, Refusal> {
    let pictures: Vec<String> = take(said, "init_images")?.unwrap_or_default();
    let strength = take(said, "denoising_strength")?.unwrap_or(STRENGTH);
    match <[String; 1]>::try_from(pictures) {
        Ok([data]) => Ok(InitBody { file: None, data: Some(data), strength: Some(strength) }),
        Err(pictures) => {
            let message =
                format!("init_images has {} pictures; an image begins with one", pictures.len());
            Err(Refusal::invalid(message).about("init_images"))
        }
    }
}

/// A prompt without the tags of LoRA files, and those files: `<lora:ID:SCALE>`.
pub(super) fn loras(prompt: &str) -> Result<(String, Vec<LoraBody>), Refusal> {
    let (mut text, mut loras) = (String::new(), Vec::new());
    let mut rest = prompt;
    while let Some((before, tag)) = rest.split_once(TAG) {
        let Some((tag, after)) = tag.split_once('>') else { break };
        loras.push(lora(tag)?);
        text += before;
        rest = after;
    }
    text += rest;
    Ok((text, loras))
}

fn lora(tag: &str) -> Result<LoraBody, Refusal> {
    let wrong = |cause: String| Refusal::invalid(cause).at(Field::Loras, "prompt");
    let (name, scale) = tag.split_once(':').unwrap_or((tag, "1"));
    let file = name.parse().map_err(|_| {
        wrong(format!(
            "`{TAG}{tag}>`: LoRA files are known by their ids, not by the name `{name}`: send the file with POST /v1/files, and \
             write {TAG}ID:SCALE>"
        ))
    })?;
    let scale = scale.trim().parse().map_err(|_| {
        wrong(format!("`{TAG}{tag}>`: the scale `{scale}` is no number: write {TAG}ID:SCALE>"))
    })?;
    Ok(LoraBody { file, scale, name: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_names_loras_by_their_ids() {
        let id = "ab".repeat(32);
        let (text, found) = loras(&format!("a cat <lora:{id}:0.8>, ink<lora:{id}>")).unwrap();
        assert_eq!(text, "a cat , ink");
        let scales: Vec<(String, f32)> =
            found.iter().map(|lora| (lora.file.to_string(), lora.scale)).collect();
        assert_eq!(scales, [(id.clone(), 0.8), (id.clone(), 1.0)]);
        assert_eq!(loras("a <lora: cat").unwrap(), ("a <lora: cat".to_owned(), Vec::new()));
        for (tag, word) in [("<lora:ink:1>", "`ink`"), (&*format!("<lora:{id}:1:2>"), "`1:2`")] {
            let refused = loras(tag).unwrap_err();
            assert!(refused.message.contains(word), "{refused}");
            assert_eq!(refused.param.as_deref(), Some("prompt"));
        }
    }
}
