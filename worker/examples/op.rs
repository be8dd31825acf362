//! Runs one operation at a time, as standard input asks, and answers with the processor time it
//! took in milliseconds: for timing kernels by turns with another program's, in one noisy hour.
//!
//! ```text
//! conv 320 128            3x3, channels to as many, a square image; conv2 and conv4: by Winograd's
//!                         F(2x2) and F(4x4)
//! linear 4096 640 5120    rows, depth, outputs; linear-bf16 and linear-int8: in those numbers
//! attention 4096 10 64    tokens, heads, head dimension; attention-bf16: in those numbers
//! norm 320 128            group norm and SiLU, a square image
//! unet FOLDER auto 64     one call for one image, a square latent, weights held as `auto`
//! vae FOLDER auto 64      a decode of a square latent
//! ```

use std::collections::HashMap;
use std::io::{BufRead, Write, stdin, stdout};

use anyhow::{Context, bail};
use rustix::time::{ClockId, clock_gettime};
use worker::kernels::{
    Arithmetic, Band, Conv, Epilogue, Heads, Isa, Keys, Method, Packed, Stored, attention, conv2d,
    group_moments, group_norm, linear,
};
use worker::model::checkpoint::Checkpoint;
use worker::model::exchange::Dense;
use worker::model::files::ModelFiles;
use worker::model::tensor::{Memory, Tensor};

/// Activations are allocated as the worker allocates them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    // On a thread of the pool, as a worker computes: one outside would be woken by it each time.
    rayon::scope(|_| serve())
}

fn serve() -> anyhow::Result<()> {
    let mut operations = HashMap::new();
    for line in stdin().lock().lines() {
        let line = line?;
        if !operations.contains_key(&line) {
            operations.insert(line.clone(), operation(&line)?);
        }
        let run = operations.get_mut(&line).expect("inserted if it was not there");
        let start = processor_seconds();
        run();
        writeln!(stdout(), "{:.4}", (processor_seconds() - start) * 1e3)?;
    }
    Ok(())
}

/// Prepares an operation, so that only its run is timed.
fn operation(line: &str) -> anyhow::Result<Box<dyn FnMut()>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    if let [kind @ ("unet" | "vae"), folder, dtype, side] = words[..] {
        return whole(kind, folder, dtype, side.parse()?);
    }
    let (kind, sizes) = words.split_first().context("an empty line is no operation")?;
    let sizes: Vec<usize> = sizes.iter().map(|word| word.parse()).collect::<Result<_, _>>()?;
    let isa = Isa::best();
    Ok(match (*kind, &sizes[..]) {
        (kind @ ("conv" | "conv2" | "conv2-bf16" | "conv4"), &[channels, side]) => {
            let weight = values(channels * channels * 9);
            let conv = Conv::pack(Stored::F32(&weight), [channels, channels, 3, 3], 1);
            let conv = conv.by(match kind {
                "conv2" | "conv2-bf16" => Method::Winograd2,
                "conv4" => Method::Winograd4,
                _ => Method::Direct,
            });
            let bf16 = kind == "conv2-bf16";
            let conv = conv.in_numbers(if bf16 { Arithmetic::Bf16 } else { Arithmetic::F32 });
            let (x, mut out) = (values(side * side * channels), vec![0.0; side * side * channels]);
            Box::new(move || {
                let (above, below) = (&[][..], &[][..]);
                let (rows, width, first_row) = (side, side, 0);
                let band =
                    Band { batch: 1, rows, width, first_row, channels, body: &x, above, below };
                conv2d(isa, &mut out, &band, &conv, &Epilogue::default());
            })
        }
        (kind @ ("linear" | "linear-bf16" | "linear-int8"), &[rows, depth, outputs]) => {
            let arithmetic = products(isa, kind)?;
            let weight =
                Packed::pack(Stored::F32(&values(outputs * depth)), outputs, depth, arithmetic);
            let (x, mut out) = (values(rows * depth), vec![0.0; rows * outputs]);
            Box::new(move || linear(isa, &mut out, &x, &weight, &Epilogue::default()))
        }
        (kind @ ("attention" | "attention-bf16"), &[tokens, heads, head_dim]) => {
            let arithmetic = products(isa, kind)?;
            let inner = heads * head_dim;
            let [q, k, v] = [0; 3].map(|_| values(tokens * inner));
            let mut out = vec![0.0; tokens * inner];
            let heads =
                Heads { batch: 1, heads, head_dim, queries: tokens, causal: false, arithmetic };
            Box::new(move || {
                let [keys, values] = [&k, &v].map(|values| Stored::F32(values));
                let parts = [Keys { keys, values, rows: tokens, row_stride: inner }];
                attention(isa, &mut out, &q, &parts, &heads);
            })
        }
        ("norm", &[channels, side]) => {
            let (x, mut out) = (values(side * side * channels), vec![0.0; side * side * channels]);
            let (scale, shift) = (vec![1.0; channels], vec![0.0; channels]);
            Box::new(move || {
                std::hint::black_box(group_moments(isa, &x, 1, 32, channels));
                group_norm(isa, &mut out, &x, 1, &scale, &shift, true);
            })
        }
        _ => bail!("{line:?} is no operation"),
    })
}

/// The numbers that an operation called `kind` multiplies.
fn products(isa: Isa, kind: &str) -> anyhow::Result<Arithmetic> {
    match kind.rsplit_once('-') {
        Some((_, "bf16")) if isa.has_bf16() => Ok(Arithmetic::Bf16),
        Some((_, "bf16")) => {
            bail!("{isa} has no products of bfloat16: leave them out with --only")
        }
        Some((_, "int8")) => Ok(Arithmetic::Int8),
        _ => Ok(Arithmetic::F32),
    }
}

/// A whole call of the UNet, or of the decoder, of a checkpoint.
fn whole(kind: &str, folder: &str, dtype: &str, side: usize) -> anyhow::Result<Box<dyn FnMut()>> {
    let files = ModelFiles::Folder(folder.into());
    let checkpoint = Checkpoint::load(&files, dtype.parse().map_err(anyhow::Error::msg)?)?;
    let pixels = u32::try_from(8 * side)?;
    let memory = Memory::default();
    let latent = Tensor::new(&memory, &values(side * side * 4), [1, side, side, 4])?;
    if kind == "vae" {
        return Ok(Box::new(move || {
            checkpoint.vae().decode(&latent, &mut Dense).expect("an image");
        }));
    }
    let text = [checkpoint.embed("a lighthouse at dusk", &memory)?];
    let conditioning = checkpoint.condition(checkpoint.unet(), &text, pixels, pixels)?;
    Ok(Box::new(move || {
        let call = checkpoint.unet().forward(&latent, 500.0, &conditioning, &mut Dense);
        call.expect("a prediction");
    }))
}

/// Values from -1 to 1.
#[expect(clippy::cast_precision_loss, reason = "24 bits")]
fn values(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// What this process has used of processors.
#[expect(clippy::cast_precision_loss, reason = "seconds, and nanoseconds of one")]
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
