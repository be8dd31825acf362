//! How fast this worker is, so that the planner can give it as many rows as it is worth.

use crate::model::Result;
use crate::model::checkpoint::Checkpoint;
use crate::model::exchange::Dense;
use crate::model::tensor::{Memory, Tensor};
use std::time::{Duration, Instant};

/// Calls measured at most; the fastest counts, for whatever disturbs a call makes it slower.
const CALLS_MAX: usize = 5;
/// No call is started after this long: a large model on a slow machine is measured by one call.
const PATIENCE: Duration = Duration::from_millis(500);

/// Latent pixels a second that the UNet predicts of a band of one row unit at the width the model
/// was trained at.
pub(super) fn speed(checkpoint: &Checkpoint, memory: &Memory) -> Result<u64> {
    let card = checkpoint.card();
    let (width, height) = card.native;
    let [rows, columns, channels] = [card.row_unit, width / card.vae_factor, card.latent_channels]
        .map(|value| usize::try_from(value).unwrap_or(usize::MAX));
    let conditioning =
        checkpoint.condition(checkpoint.unet(), &[checkpoint.embed("", memory)?], width, height)?;
    let values = vec![0.5; rows * columns * channels];
    let latent = Tensor::new(memory, &values, [1, rows, columns, channels])?;
    let started = Instant::now();
    let mut fastest = Duration::MAX;
    for _ in 0..CALLS_MAX {
        let call = Instant::now();
        checkpoint.unet().forward(&latent, 500.0, &conditioning, &mut Dense)?.to_host()?;
        fastest = fastest.min(call.elapsed());
        if started.elapsed() > PATIENCE {
            break;
        }
    }
    let micros = fastest.as_micros().max(1);
    let pixels = u128::try_from(rows * columns).unwrap_or(u128::MAX);
    Ok(u64::try_from(pixels * 1_000_000 / micros).unwrap_or(u64::MAX).max(1))
}
