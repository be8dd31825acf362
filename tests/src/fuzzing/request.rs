//! What callers of the HTTP interface ask for.

use super::sample;
use coordinator::api::asked::{Interface, asked};
use coordinator::planner::{GUIDANCE_MAX, STEPS_MAX, settle};
use protocol::FaultKind;
use protocol::plan::SIDE_MAX;

/// What a refusal may say beyond the words that it quotes, each of which may be written as an escape: the names of all fields.
const REFUSAL_BYTES: usize = 4096;
const ESCAPE_BYTES: usize = 10;

/// A body in the words of each interface: what it asks for is refused in few words, or a model renders it or says which
/// field it does not.
pub fn request(data: &[u8]) {
    let card = sample::card();
    for interface in Interface::ALL {
        let request = match asked(interface, data) {
            Ok((request, _)) => request,
            Err(refusal) => {
                let most = REFUSAL_BYTES + ESCAPE_BYTES * data.len();
                assert!(refusal.len() <= most, "{} bytes of a refusal", refusal.len());
                continue;
            }
        };
        match settle(&request, &card, 1) {
            Ok(spec) => {
                let unit = card.vae_factor * card.row_unit;
                let fits =
                    |side: u32| (unit..=SIDE_MAX).contains(&side) && side.is_multiple_of(unit);
                assert!(fits(spec.width) && fits(spec.height), "{spec:?}");
                assert!((1..=STEPS_MAX).contains(&spec.steps), "{spec:?}");
                assert!((0.0..=GUIDANCE_MAX).contains(&spec.guidance), "{spec:?}");
                assert!(spec.loras.iter().all(|lora| lora.scale.is_finite()), "{spec:?}");
            }
            Err(fault) => {
                assert_eq!(fault.kind, FaultKind::InvalidRequest, "{fault}");
                assert!(fault.field.is_some(), "{fault} names no field");
            }
        }
    }
}
