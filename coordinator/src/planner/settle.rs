//! From a request to what is rendered: every default, and what cannot be.

use super::{given, invalid};
use protocol::Fault;
use protocol::job::{Dtype, Field, JobRequest, JobSpec, Mode, ModelCard, Wire};
use protocol::plan::SIDE_MAX;

/// Sampler steps when none are asked for: enough for every sampler we have.
pub const STEPS_DEFAULT: u32 = 30;
/// The most sampler steps: schedulers are trained on 1000 timesteps.
pub const STEPS_MAX: u32 = 1000;
/// With fewer steps than this one call changes so much of the image that values one call old cost more
/// than they save: section 8 of the algorithm, where ten steps want several of them synchronous.
pub const DISPLACED_STEPS_MIN: u32 = 10;
/// The longest prompt in bytes. Encoders read 77 tokens; what is longer than this is no prompt.
pub const PROMPT_BYTES_MAX: usize = 64 << 10;
/// The largest guidance scale: far beyond what any model gives an image for.
pub const GUIDANCE_MAX: f32 = 100.0;

/// Settles every value of `request` for the model of `card`; `seed` is used if it names none.
///
/// # Errors
/// `InvalidRequest` names the value that cannot be rendered, and what can.
pub fn settle(request: &JobRequest, card: &ModelCard, seed: u64) -> Result<JobSpec, Fault> {
    check_cluster(request, card)?;
    let texts = [
        ("prompt", Field::Prompt, Some(&request.prompt)),
        ("negative prompt", Field::Negative, request.negative.as_ref()),
    ];
    for (what, field, text) in texts {
        let bytes = text.map_or(0, String::len);
        if bytes > PROMPT_BYTES_MAX {
            let cause =
                format!("the {what} has {bytes} bytes; at most {PROMPT_BYTES_MAX} are read");
            return Err(invalid(cause).about(field));
        }
    }
    let steps = request.steps.unwrap_or(STEPS_DEFAULT);
    if !(1..=STEPS_MAX).contains(&steps) {
        let cause = format!("{steps} steps cannot be taken; take 1 to {STEPS_MAX}");
        return Err(invalid(cause).about(Field::Steps));
    }
    let guidance = request.guidance.unwrap_or(card.guidance);
    if !(0.0..=GUIDANCE_MAX).contains(&guidance) {
        let cause = format!("guidance {guidance} cannot be used; use 0 to {GUIDANCE_MAX}");
        return Err(invalid(cause).about(Field::Guidance));
    }
    let unit = card.vae_factor * card.row_unit;
    let init = given::init(request, card, steps)?;
    let taken = steps - init.as_ref().map_or(0, |init| init.skipped_steps(steps));
    let (width, height) = given::size(request, card);
    Ok(JobSpec {
        prompt: request.prompt.clone(),
        negative: request.negative.clone(),
        width: check_side(Field::Width, request.width.unwrap_or(width), unit)?,
        height: check_side(Field::Height, request.height.unwrap_or(height), unit)?,
        steps,
        guidance,
        seed: request.seed.unwrap_or(seed),
        scheduler: request.scheduler.unwrap_or(card.scheduler),
        warmup: request.warmup,
        parallelism: request.parallelism,
        mode: request.mode.unwrap_or_else(|| mode_for(taken)),
        gn_variance: request.gn_variance,
        // Workers on CPUs compute in f32, whatever they hold their weights in.
        wire: request.wire.unwrap_or(Wire::F32),
        decode: request.decode,
        probe: request.probe,
        profile: request.profile,
        loras: given::loras(request)?,
        init,
    })
}

/// The mode if none is asked for.
fn mode_for(steps: u32) -> Mode {
    if steps < DISPLACED_STEPS_MIN { Mode::FullSync } else { Mode::Corrected }
}

fn check_cluster(request: &JobRequest, card: &ModelCard) -> Result<(), Fault> {
    if let Some(model) = request.model.as_ref().filter(|model| **model != card.name) {
        let cause = format!("the workers hold the model `{}`, not `{model}`", card.name);
        return Err(invalid(cause).about(Field::Model));
    }
    match request.dtype {
        Some(dtype) if dtype != Dtype::Auto && dtype != card.dtype => {
            let cause = format!(
                "the workers hold their weights as {}, not {dtype}: start them with --dtype {dtype}",
                card.dtype
            );
            Err(invalid(cause).about(Field::Dtype))
        }
        _ => Ok(()),
    }
}

fn check_side(field: Field, side: u32, unit: u32) -> Result<u32, Fault> {
    let (what, wrong) = (field.path(), |cause| Err(invalid(cause).about(field)));
    let most = SIDE_MAX / unit * unit;
    if side > most {
        return wrong(format!("{what} {side} is too large; the largest is {most}"));
    }
    if side > 0 && side.is_multiple_of(unit) {
        return Ok(side);
    }
    let below = side / unit * unit;
    let above = below + unit;
    let nearest = match below {
        0 => format!("the smallest is {above}"),
        _ if above > most => format!("the nearest is {below}"),
        _ => format!("the nearest are {below} and {above}"),
    };
    wrong(format!("{what} {side} is not a multiple of {unit}; {nearest}"))
}
