//! Attention against plain loops, and against itself in parts.

use proptest::prelude::*;

use super::reference::{self, assert_close, assert_same, values, with_threads};
use super::{Arithmetic, Heads, Isa, Keys, Stored, attention};
use half::{bf16, f16};

/// Queries, and keys and values interleaved in one tensor.
struct Inputs {
    q: Vec<f32>,
    kv: Vec<f32>,
    keys: usize,
    inner: usize,
}

impl Inputs {
    /// Scores grow with `spread`, and with them the differences between the weights.
    fn new(seed: u64, h: &Heads, keys: usize, spread: f32) -> Self {
        let inner = h.heads * h.head_dim;
        let mut q = values(seed, h.batch * h.queries * inner);
        q.iter_mut().for_each(|x| *x *= spread);
        Self { q, kv: values(seed ^ 1, h.batch * keys * 2 * inner), keys, inner }
    }

    fn reference(&self, h: &Heads) -> Vec<f64> {
        reference::attention(&self.q, (&self.kv, self.keys), h)
    }

    fn attend(&self, isa: Isa, q: &[f32], h: &Heads) -> Vec<f32> {
        self.attend_to(isa, q, &[self.part(Stored::F32(&self.kv), self.keys)], h)
    }

    fn attend_to(&self, isa: Isa, q: &[f32], parts: &[Keys<'_>], h: &Heads) -> Vec<f32> {
        let mut out = vec![f32::NAN; q.len()];
        attention(isa, &mut out, q, parts, h);
        out
    }

    fn part<'a>(&self, kv: Stored<'a>, rows: usize) -> Keys<'a> {
        Keys { keys: kv, values: kv.from(self.inner), rows, row_stride: 2 * self.inner }
    }

    /// The keys and values of some tokens of every sequence.
    fn some(&self, tokens: std::ops::Range<usize>) -> Vec<f32> {
        let sequences = self.kv.chunks_exact(self.keys * 2 * self.inner);
        let part = tokens.start * 2 * self.inner..tokens.end * 2 * self.inner;
        sequences.flat_map(|sequence| &sequence[part.clone()]).copied().collect()
    }
}

fn head_dims() -> impl Strategy<Value = usize> {
    prop_oneof![4..100_usize, Just(40), Just(64), Just(80), Just(160), Just(512)]
}

fn key_counts() -> impl Strategy<Value = usize> {
    prop_oneof![1..200_usize, Just(77), 330..350_usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn attention_is_a_weighted_mean(
        (batch, heads, head_dim) in (1..3_usize, 1..4_usize, head_dims()),
        (queries, keys) in (1..50_usize, key_counts()),
        spread in prop_oneof![Just(1.0_f32), Just(60.0)],
        seed in any::<u64>(),
    ) {
        let h = Heads { batch, heads, head_dim, queries, causal: false, arithmetic: Arithmetic::F32 };
        let inputs = Inputs::new(seed, &h, keys, spread);
        let want = inputs.reference(&h);
        // A score adds head_dim products in f32, scaled by its root; softmax passes its error on.
        let roundings = f64::from(u32::try_from(head_dim).unwrap()).sqrt() * f64::from(spread);
        let tolerance = 2e-6 + f64::from(f32::EPSILON) * roundings;
        for isa in Isa::available() {
            assert_close(&inputs.attend(isa, &inputs.q, &h), &want, tolerance, &isa.to_string());
        }
    }

    /// In bfloat16, of which a query, a key, a weight and a value lose up to one part in 256 each.
    #[test]
    fn attention_of_bfloat16_is_near_a_weighted_mean(
        (batch, heads, head_dim) in (1..3_usize, 1..4_usize, head_dims()),
        (queries, keys) in (1..50_usize, key_counts()),
        causal in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let queries = if causal { keys } else { queries };
        let arithmetic = Arithmetic::Bf16;
        let h = Heads { batch, heads, head_dim, queries, causal, arithmetic };
        let inputs = Inputs::new(seed, &h, keys, 1.0);
        let want = inputs.reference(&h);
        for isa in Isa::available().into_iter().filter(|isa| isa.has_bf16()) {
            let got = inputs.attend(isa, &inputs.q, &h);
            assert_close(&got, &want, 0.02, &isa.to_string());
            // Were nothing rounded, this would test nothing.
            let off = got.iter().zip(&want).any(|(got, want)| (f64::from(*got) - want).abs() > 1e-7);
            prop_assert!(keys == 1 || off);
        }
    }

    #[test]
    fn a_causal_query_sees_what_came_before(
        (batch, heads, head_dim) in (1..3_usize, 1..4_usize, 4..80_usize),
        tokens in prop_oneof![1..100_usize, Just(77), 170..180_usize],
        seed in any::<u64>(),
    ) {
        let h = Heads { batch, heads, head_dim, queries: tokens, causal: true, arithmetic: Arithmetic::F32 };
        let inputs = Inputs::new(seed, &h, tokens, 1.0);
        let want = inputs.reference(&h);
        for isa in Isa::available() {
            assert_close(&inputs.attend(isa, &inputs.q, &h), &want, 2e-6, &isa.to_string());
        }
    }

    #[test]
    fn a_query_does_not_depend_on_the_others(
        (heads, head_dim) in (1..4_usize, head_dims()),
        (queries, keys) in (2..400_usize, key_counts()),
        (a, b) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        threads in 1..5_usize,
        seed in any::<u64>(),
    ) {
        let h = Heads { batch: 1, heads, head_dim, queries, causal: false, arithmetic: Arithmetic::F32 };
        let inputs = Inputs::new(seed, &h, keys, 4.0);
        let (a, b) = (a.index(queries), b.index(queries));
        let part = a.min(b) * inputs.inner..(a.max(b) + 1) * inputs.inner;
        let few = Heads { queries: part.len() / inputs.inner, ..h };
        for isa in Isa::available() {
            let whole = with_threads(threads, || inputs.attend(isa, &inputs.q, &h));
            let few = inputs.attend(isa, &inputs.q[part.clone()], &few);
            assert_same(&whole[part.clone()], &few, &isa.to_string());
        }
    }

    /// Tokens that lie in several places, in several types, are attended to as if they lay in one.
    #[test]
    fn parts_are_attended_to_where_they_lie(
        (batch, heads, head_dim) in (1..3_usize, 1..4_usize, head_dims()),
        (queries, keys) in (1..20_usize, 3..400_usize),
        (a, b) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        seed in any::<u64>(),
    ) {
        let h = Heads { batch, heads, head_dim, queries, causal: false, arithmetic: Arithmetic::F32 };
        let mut inputs = Inputs::new(seed, &h, keys, 2.0);
        // Values that all three types hold.
        inputs.kv.iter_mut().for_each(|value| *value = (*value * 64.0).round() / 64.0);
        let (a, b) = (a.index(keys + 1), b.index(keys + 1));
        let ends = [0, a.min(b), a.max(b), keys];
        let [first, second, third] = [0, 1, 2].map(|i| inputs.some(ends[i]..ends[i + 1]));
        let second: Vec<f16> = second.iter().map(|value| f16::from_f32(*value)).collect();
        let third: Vec<bf16> = third.iter().map(|value| bf16::from_f32(*value)).collect();
        let stored = [Stored::F32(&first), Stored::F16(&second), Stored::Bf16(&third)];
        let parts: Vec<_> = (0..3).map(|i| inputs.part(stored[i], ends[i + 1] - ends[i])).collect();
        for isa in Isa::available() {
            let whole = inputs.attend(isa, &inputs.q, &h);
            let parts = inputs.attend_to(isa, &inputs.q, &parts, &h);
            assert_same(&whole, &parts, &isa.to_string());
        }
    }
}
