//! What a job brings beside its prompt: LoRA files, and a picture to begin with.

use super::invalid;
use protocol::Fault;
use protocol::job::{
    Field, Init, JobRequest, JobSpec, LORA_NAME_BYTES_MAX, LORA_SCALE_MAX, LORAS_MAX, Lora,
    ModelCard, Parallelism,
};

/// How much of a picture is changed if nobody says, as diffusers has it for each family.
const STRENGTH_SDXL: f32 = 0.3;
/// The same for other families.
const STRENGTH_SD: f32 = 0.8;

/// Checks what no model takes.
///
/// # Errors
/// `InvalidRequest` names the value that cannot be used, and what can.
pub fn check_given(request: &JobRequest) -> Result<(), Fault> {
    if let Some(strength) = request.init.as_ref().and_then(|init| init.strength) {
        check_strength(strength)?;
    }
    loras(request).map(drop)
}

fn check_strength(strength: f32) -> Result<(), Fault> {
    if strength > 0.0 && strength <= 1.0 {
        return Ok(());
    }
    let cause = format!("the strength {strength} cannot be used; use more than 0, up to 1");
    Err(invalid(cause).about(Field::Strength))
}

/// The LoRA files asked for, if they can be used.
pub(super) fn loras(request: &JobRequest) -> Result<Vec<Lora>, Fault> {
    let wrong = |cause: String| Err(invalid(cause).about(Field::Loras));
    let loras = &request.loras;
    if loras.len() > LORAS_MAX {
        let cause = format!("{} LoRA files; at most {LORAS_MAX} are added up", loras.len());
        return wrong(cause);
    }
    for lora in loras {
        if lora.name.len() > LORA_NAME_BYTES_MAX {
            let cause = format!(
                "the name of the LoRA file {} has {} bytes; at most {LORA_NAME_BYTES_MAX} are kept",
                lora.file,
                lora.name.len()
            );
            return wrong(cause);
        }
        if !(-LORA_SCALE_MAX..=LORA_SCALE_MAX).contains(&lora.scale) {
            return wrong(format!(
                "the scale {} of the LoRA {} cannot be used; use -{LORA_SCALE_MAX} to {LORA_SCALE_MAX}",
                lora.scale, lora.name
            ));
        }
    }
    if !loras.is_empty() && request.parallelism == Parallelism::Tensor {
        let cause = "--parallelism tensor, a baseline, takes no LoRA: leave one of them out";
        return Err(invalid(cause.to_owned()));
    }
    Ok(loras.clone())
}

/// The picture to begin with, if it can be used.
pub(super) fn init(
    request: &JobRequest,
    card: &ModelCard,
    steps: u32,
) -> Result<Option<Init>, Fault> {
    let Some(wish) = &request.init else { return Ok(None) };
    if card.encode_bytes == 0 {
        let cause = format!(
            "the model {} takes no picture to begin with: its VAE is stored without an encoder",
            card.name
        );
        return Err(invalid(cause).about(Field::Init));
    }
    let default = if card.family == "sdxl" { STRENGTH_SDXL } else { STRENGTH_SD };
    let strength = wish.strength.unwrap_or(default);
    check_strength(strength)?;
    let init = Init { file: wish.file, strength };
    if init.skipped_steps(steps) >= steps {
        let cause = format!(
            "of {steps} steps a strength of {strength} leaves none: take at least {} steps, or more strength",
            (1..=1_000_000).find(|more| init.skipped_steps(*more) < *more).unwrap_or(steps)
        );
        return Err(invalid(cause).about(Field::Strength));
    }
    Ok(Some(init))
}

/// What encoding the picture takes of each rank's memory.
pub(super) fn encode_bytes(spec: &JobSpec, card: &ModelCard) -> u64 {
    let pixels = u64::from(spec.width) * u64::from(spec.height);
    spec.init.as_ref().map_or(0, |_| pixels * u64::from(card.encode_bytes))
}

/// The size in pixels if none is asked for: the picture's, without the pixels that a latent has no room for, as
/// diffusers has it; or else the model's native one.
pub(super) fn size(request: &JobRequest, card: &ModelCard) -> (u32, u32) {
    let factor = card.vae_factor.max(1);
    let whole = |side: u32| side - side % factor;
    request.init.as_ref().map_or(card.native, |init| (whole(init.width), whole(init.height)))
}

#[cfg(test)]
mod tests {
    use super::super::settle;
    use super::super::tests::{card, request};
    use super::check_given;
    use protocol::job::{
        Field, FileDigest, Init, InitWish, JobRequest, JobSpec, Lora, Mode, Parallelism,
    };
    use protocol::{Fault, FaultKind};

    fn wish(strength: Option<f32>) -> Option<InitWish> {
        Some(InitWish { file: FileDigest([7; 32]), width: 515, height: 263, strength })
    }

    fn settled(request: JobRequest) -> Result<JobSpec, Fault> {
        settle(&request, &card(), 1)
    }

    fn refused(request: JobRequest) -> String {
        // Whether or not a model is known; but what depends on one is refused by it alone.
        let early = check_given(&request);
        let fault = settled(request).unwrap_err();
        assert!(early.is_ok() || early == Err(fault.clone()));
        assert_eq!(fault.kind, FaultKind::InvalidRequest);
        fault.cause
    }

    #[test]
    fn a_picture_gives_the_size_and_the_familys_strength() {
        let spec = settled(JobRequest { init: wish(None), steps: Some(10), ..request() }).unwrap();
        assert_eq!((spec.width, spec.height), (512, 256));
        assert_eq!((spec.init.as_ref().unwrap().strength, spec.skipped_steps()), (0.3, 7));
        assert_eq!(spec.mode, Mode::FullSync, "of the steps that are taken");
        let sized = JobRequest { width: Some(256), ..request() };
        let spec = settled(JobRequest { init: wish(Some(1.0)), ..sized }).unwrap();
        assert_eq!((spec.width, spec.height, spec.skipped_steps()), (256, 256, 0));
        let mut other = card();
        other.family = "sd".to_owned();
        let asked = JobRequest { init: wish(None), ..request() };
        let init = settle(&asked, &other, 1).unwrap().init;
        assert_eq!(init, Some(Init { file: FileDigest([7; 32]), strength: 0.8 }));
        other.encode_bytes = 0;
        assert!(settle(&asked, &other, 1).unwrap_err().cause.contains("encoder"));
    }

    #[test]
    fn a_strength_out_of_range_is_refused() {
        for strength in [0.0, -0.5, 1.01, f32::NAN] {
            let asked = JobRequest { init: wish(Some(strength)), ..request() };
            let early = check_given(&asked).unwrap_err();
            assert_eq!(early.field, Some(Field::Strength));
            let cause = refused(asked);
            assert!(cause.contains("strength"), "{cause}");
        }
        let asked = JobRequest { init: wish(Some(0.3)), steps: Some(3), ..request() };
        let cause = refused(asked);
        assert!(cause.contains("at least 4 steps"), "{cause}");
    }

    #[test]
    fn loras_that_cannot_be_used_are_refused() {
        let lora = |scale| Lora { file: FileDigest([7; 32]), name: "ink".to_owned(), scale };
        for scale in [f32::NAN, f32::INFINITY, 101.0] {
            let cause = refused(JobRequest { loras: vec![lora(scale)], ..request() });
            assert!(cause.contains("ink"), "{cause}");
        }
        let cause = refused(JobRequest { loras: vec![lora(1.0); 17], ..request() });
        assert!(cause.contains("17"), "{cause}");
        let parallelism = Parallelism::Tensor;
        let cause = refused(JobRequest { loras: vec![lora(1.0)], parallelism, ..request() });
        assert!(cause.contains("tensor"), "{cause}");
        let spec = settled(JobRequest { loras: vec![lora(-0.5)], ..request() }).unwrap();
        assert_eq!(spec.loras, [lora(-0.5)]);
    }
}
