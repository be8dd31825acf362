//! The Gaussian noise that PyTorch's CPU generator gives.
//!
//! A seed is a promise: the same seed must give the same image here, in diffusers and in every
//! interface built on it. So the initial latent is `torch.randn` of a CPU generator, number for
//! number. Source: PyTorch's `aten/src/ATen/native/cpu/DistributionTemplates.h`,
//! `aten/src/ATen/core/{MT19937RNGEngine,TransformationHelper,DistributionsHelper}.h`.

#![expect(clippy::cast_possible_truncation, reason = "torch rounds to f32 and to 32 bits here")]

use std::f64::consts::PI;

/// `torch.Generator("cpu").manual_seed(seed)`, drawn from by `torch.randn(..., dtype=torch.float32)`.
#[derive(Debug, Clone)]
pub struct TorchGenerator {
    engine: Mt19937,
    /// The second value of the last pair that the scalar path made.
    spare: Option<f64>,
}

/// Torch fills long tensors this many values at a time, half of them cosines, half of them sines.
const CHUNK: usize = 16;

impl TorchGenerator {
    /// A generator at the start of `seed`'s sequence. As in torch, only the low 32 bits count.
    pub fn new(seed: u64) -> Self {
        Self { engine: Mt19937::new(seed), spare: None }
    }

    /// The next `n` standard normal values: what one `torch.randn` call of `n` elements gives.
    ///
    /// Two calls are not one longer call: how torch pairs its uniforms depends on `n`.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < CHUNK { (0..n).map(|_| self.normal() as f32).collect() } else { self.fill(n) }
    }

    fn fill(&mut self, n: usize) -> Vec<f32> {
        let mut values: Vec<f32> = (0..n).map(|_| self.uniform_f32()).collect();
        values.chunks_exact_mut(CHUNK).for_each(box_muller);
        if !n.is_multiple_of(CHUNK) {
            // Torch draws the last sixteen anew rather than transform a partial chunk.
            let tail = &mut values[n - CHUNK..];
            tail.fill_with(|| self.uniform_f32());
            box_muller(tail);
        }
        values
    }

    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let theta = 2.0 * PI * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * theta.sin());
        radius * theta.cos()
    }

    /// 24 bits, because that is what an f32 holds.
    fn uniform_f32(&mut self) -> f32 {
        (self.engine.next() & 0x00ff_ffff) as f32 / (1u32 << 24) as f32
    }

    /// 53 bits of two draws, the first one high.
    fn uniform_f64(&mut self) -> f64 {
        let high = u64::from(self.engine.next());
        let low = u64::from(self.engine.next());
        let bits = (high << 32 | low) & ((1 << 53) - 1);
        bits as f64 / (1u64 << 53) as f64
    }
}

/// Sixteen uniforms to sixteen normals, in place: value `j` pairs with value `j + 8`.
fn box_muller(chunk: &mut [f32]) {
    let (first, second) = chunk.split_at_mut(CHUNK / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let (sin, cos) = (2.0 * std::f32::consts::PI * *b).sin_cos();
        (*a, *b) = (radius * cos, radius * sin);
    }
}

const STATE: usize = 624;
const SHIFT: usize = 397;

/// The Mersenne twister, 32 bits a draw (Matsumoto and Nishimura, 1998).
#[derive(Debug, Clone)]
struct Mt19937 {
    state: [u32; STATE],
    next: usize,
}

impl Mt19937 {
    fn new(seed: u64) -> Self {
        let mut state = [0; STATE];
        state[0] = (seed & 0xffff_ffff) as u32;
        for i in 1..STATE {
            let previous: u32 = state[i - 1];
            state[i] =
                (previous ^ previous >> 30).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, next: STATE }
    }

    fn next(&mut self) -> u32 {
        if self.next == STATE {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= y << 7 & 0x9d2c_5680;
        y ^= y << 15 & 0xefc6_0000;
        y ^ y >> 18
    }

    fn twist(&mut self) {
        for i in 0..STATE {
            let (this, next) = (self.state[i], self.state[(i + 1) % STATE]);
            let y = this & 0x8000_0000 | next & 0x7fff_ffff;
            let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % STATE] ^ y >> 1 ^ odd;
        }
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::Value;

    use super::TorchGenerator;

    fn assert_close(ours: &[f32], torch: &[f32]) {
        assert_eq!(ours.len(), torch.len());
        for (ours, torch) in ours.iter().zip(torch) {
            assert!((ours - torch).abs() <= 1e-6 * torch.abs().max(1.0), "{ours} is not {torch}");
        }
    }

    /// Calls of every path after one another, from `torch.Generator().manual_seed(7)`.
    #[test]
    fn short_and_odd_lengths_are_torchs() {
        let mut generator = TorchGenerator::new(7);
        let scalar = generator.randn(3);
        assert_close(&scalar, &[-0.146_795_1, 0.786_141_3, 0.946_821_6]);
        assert_close(&generator.randn(2), &[-1.114_344, 1.690_790_2]);
        let tail = generator.randn(20);
        assert_close(&tail[..4], &[0.609_473_47, -0.581_133_8, 0.049_043_87, -0.320_476_92]);
        assert_close(&tail[16..], &[-0.261_586_73, -0.250_132_62, 0.501_121_46, 0.260_036_2]);
        // The second half of the fifth pair, kept across the draw of twenty.
        assert_close(&generator.randn(1), &[-0.894_827_9]);
        assert_close(&generator.randn(16)[..2], &[-0.178_192_62, -0.259_498_86]);
    }

    #[test]
    fn seeds_count_by_their_low_32_bits_as_in_torch() {
        let mut generator = TorchGenerator::new((5 << 32) + 11);
        assert_close(&generator.randn(1000)[997..], &[0.519_568_9, 0.539_112_45, -0.828_356_3]);
        assert_close(&generator.randn(17)[..3], &[1.354_283_5, -1.025_421_3, 1.498_388_3]);
    }

    #[test]
    fn golden_noise_follows_from_its_seed() {
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/golden");
        for list in ["single.json", "emoji.json"] {
            let text = std::fs::read(format!("{golden}/{list}")).unwrap();
            let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
            for case in cases {
                let name = case["name"].as_str().unwrap();
                let path = format!("{golden}/single/{name}.safetensors");
                let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
                let noise: Vec<f32> = tensors["noise"].flatten_all().unwrap().to_vec1().unwrap();
                let mut generator = TorchGenerator::new(case["seed"].as_u64().unwrap());
                assert_close(&generator.randn(noise.len()), &noise);
            }
        }
    }
}
