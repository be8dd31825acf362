//! What a request over HTTP may be as large as, each number with its reason.

use super::error::Refusal;
use super::keys::Key;
use crate::planner::{GUIDANCE_MAX, STEPS_DEFAULT, STEPS_MAX, check_given};
use protocol::job::{Field, JobRequest};
use protocol::plan::SIDE_MAX;
use std::time::Duration;

/// The longest body of a request without an image: a prompt and its options are a few KiB.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// The longest body of a request that has a picture in it: one of 2048 x 2048 pixels of noise has 12 MiB as PNG and 16 in base64.
pub const PICTURE_BODY_BYTES_MAX: usize = 24 << 20;
/// The largest picture in pixels, twice [`PIXELS_MAX`]: while it is read its pixels are in memory, twice for a moment, and more than
/// are rendered are of no use.
pub const PICTURE_PIXELS_MAX: u64 = 2 * PIXELS_MAX;
/// How long nothing may come of a file: what is to be of it is kept free on the disk meanwhile.
pub const UPLOAD_PATIENCE: Duration = Duration::from_secs(30);
/// How much of a file that comes is in memory before it is written.
pub const PART_BYTES: usize = 1 << 20;
/// The longest prompt, and the longest negative one, in characters: text encoders read 77 tokens, so this is far
/// more than has any effect, and what is kept of a job stays small.
pub const PROMPT_LETTERS_MAX: usize = 10_000;
/// The largest image in pixels, 4096 x 4096: its RGB bytes are in memory twice while it is encoded for an answer.
pub const PIXELS_MAX: u64 = 1 << 24;
/// The most images of one request to an interface that takes a number: as `OpenAI` has it.
pub const IMAGES_MAX: u32 = 10;
/// The most connections at once: a page holds a few, a follower of events one.
pub const CONNECTIONS_MAX: usize = 2048;
/// The most followers of events at once: each has the last latents of its job in memory while it reads them.
/// Below [`CONNECTIONS_MAX`], so that followers leave connections for everything else.
pub const FOLLOWERS_MAX: usize = 1024;
/// The most jobs in one answer: each says its whole request.
pub const JOBS_MAX: u16 = 200;
/// The longest `Idempotency-Key`, as those who use them have it: a UUID has 36 characters.
pub const IDEMPOTENCY_KEY_MAX: usize = 255;

/// Checks what is asked for against this server's limits and those of the caller's key. `native` is the model's own size, for
/// sides that are not named; None while no worker says what that is.
pub(crate) fn check(
    request: &JobRequest,
    key: Option<&Key>,
    native: Option<(u32, u32)>,
) -> Result<(), Refusal> {
    let texts =
        [(Field::Prompt, Some(&request.prompt)), (Field::Negative, request.negative.as_ref())];
    for (field, text) in texts {
        let letters = text.map_or(0, |text| text.chars().count());
        if letters > PROMPT_LETTERS_MAX {
            let what = field.path();
            let cause =
                format!("{what} has {letters} characters; the most are {PROMPT_LETTERS_MAX}");
            return Err(Refusal::beyond(field, cause));
        }
    }
    check_ranges(request)?;
    check_given(request)?;
    check_steps(request, key)?;
    check_pixels(request, key, native)
}

/// Checks what no model renders, so that it is refused at once, whether or not a worker is there to say what its model does.
fn check_ranges(request: &JobRequest) -> Result<(), Refusal> {
    let ranges = [
        (Field::Width, request.width, SIDE_MAX),
        (Field::Height, request.height, SIDE_MAX),
        (Field::Steps, request.steps, STEPS_MAX),
        (Field::Workers, request.workers.map(u32::from), u32::from(u16::MAX)),
    ];
    for (field, value, most) in ranges {
        if let Some(value) = value.filter(|value| !(1..=most).contains(value)) {
            let cause = format!("{} {value} is not one of 1 to {most}", field.path());
            return Err(Refusal::beyond(field, cause));
        }
    }
    if let Some(guidance) = request.guidance.filter(|scale| !(0.0..=GUIDANCE_MAX).contains(scale)) {
        let cause = format!("guidance {guidance} is not one of 0 to {GUIDANCE_MAX}");
        return Err(Refusal::beyond(Field::Guidance, cause));
    }
    Ok(())
}

fn check_steps(request: &JobRequest, key: Option<&Key>) -> Result<(), Refusal> {
    let most = key.and_then(|key| key.steps).unwrap_or(STEPS_MAX).min(STEPS_MAX);
    let steps = request.steps.unwrap_or(STEPS_DEFAULT);
    if steps <= most {
        return Ok(());
    }
    let cause =
        format!("{steps} steps are more than the {most} that {}", whose(key, most < STEPS_MAX));
    Err(Refusal::beyond(Field::Steps, cause))
}

fn check_pixels(
    request: &JobRequest,
    key: Option<&Key>,
    native: Option<(u32, u32)>,
) -> Result<(), Refusal> {
    let most = key.and_then(|key| key.pixels).unwrap_or(PIXELS_MAX).min(PIXELS_MAX);
    let picture = request.init.as_ref().map(|init| (init.width, init.height));
    let (width, height) = picture.or(native).unwrap_or_default();
    let width = u64::from(request.width.unwrap_or(width));
    let height = u64::from(request.height.unwrap_or(height));
    if width * height <= most {
        return Ok(());
    }
    let whose = whose(key, most < PIXELS_MAX);
    let cause = format!(
        "{width}x{height} are {} pixels, more than the {most} that {whose}",
        width * height
    );
    Err(Refusal::beyond(Field::Width, cause))
}

fn whose(key: Option<&Key>, by_key: bool) -> String {
    let name = key.filter(|_| by_key).map(|key| &key.name);
    name.map_or_else(|| "this server allows".to_owned(), |name| format!("the key `{name}` allows"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::job::{FileDigest, InitWish};

    fn refused(request: JobRequest, key: Option<&Key>) -> Option<(Option<String>, String)> {
        let refused = check(&request, key, Some((512, 512))).err();
        refused.map(|refusal| (refusal.param.clone(), refusal.to_string()))
    }

    fn begun(width: u32, height: u32, strength: Option<f32>) -> Option<InitWish> {
        Some(InitWish { file: FileDigest([7; 32]), width, height, strength })
    }

    #[test]
    fn each_limit_names_its_field_and_both_numbers() {
        let asked = || JobRequest::new("a cat");
        assert_eq!(refused(asked(), None), None);
        let long = "\u{e9}".repeat(PROMPT_LETTERS_MAX + 1);
        let (param, cause) = refused(JobRequest::new(long.clone()), None).unwrap();
        assert_eq!(param.as_deref(), Some("prompt"));
        assert!(cause.contains("10001") && cause.contains("10000"), "{cause}");
        let (param, _) = refused(JobRequest { negative: Some(long), ..asked() }, None).unwrap();
        assert_eq!(param.as_deref(), Some("negative"));
        let large = JobRequest { width: Some(8192), height: Some(8192), ..asked() };
        let (_, cause) = refused(large, None).unwrap();
        assert!(cause.contains("8192x8192") && cause.contains("16777216"), "{cause}");
        for (wrong, param) in [
            (JobRequest { steps: Some(u32::MAX), ..asked() }, "steps"),
            (JobRequest { steps: Some(0), ..asked() }, "steps"),
            (JobRequest { width: Some(0), ..asked() }, "width"),
            (JobRequest { height: Some(8193), width: Some(1), ..asked() }, "height"),
            (JobRequest { guidance: Some(f32::INFINITY), ..asked() }, "guidance"),
            (JobRequest { guidance: Some(-0.5), ..asked() }, "guidance"),
            (JobRequest { workers: Some(0), ..asked() }, "workers"),
            (JobRequest { init: begun(8000, 8000, None), ..asked() }, "width"),
            (JobRequest { init: begun(64, 64, Some(1.5)), ..asked() }, "init.strength"),
        ] {
            assert_eq!(refused(wrong, None).unwrap().0.as_deref(), Some(param));
        }
    }

    #[test]
    fn a_keys_limits_hold_for_defaults_too() {
        let mut key = Key::named("alice");
        (key.pixels, key.steps) = (Some(256 * 256), Some(10));
        let (_, cause) = refused(JobRequest::new("a cat"), Some(&key)).unwrap();
        assert!(cause.contains("30 steps") && cause.contains("`alice`"), "{cause}");
        let few = JobRequest { steps: Some(10), ..JobRequest::new("a cat") };
        let (_, cause) = refused(few.clone(), Some(&key)).unwrap();
        assert!(cause.contains("512x512") && cause.contains("65536"), "{cause}");
        let small = JobRequest { width: Some(256), height: Some(256), ..few };
        assert_eq!(refused(small, Some(&key)), None);
    }
}
