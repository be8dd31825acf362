//! Norms and pointwise work against plain loops.

use proptest::prelude::*;

use super::reference::{activate, assert_close, assert_same, values, with_threads};
use super::{
    Activation, Isa, add, concat_channels, group_moments, group_norm, layer_norm, silu,
    upsample2x_nearest,
};

/// The mean and the sum of squared deviations.
fn moment(x: &[f64]) -> (f64, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    (mean, x.iter().map(|x| (x - mean) * (x - mean)).sum())
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn moments_are_those_of_each_group(
        (batch, pixels, groups, size) in (1..3_usize, 1..700_usize, 1..5_usize, 1..20_usize),
        offset in prop_oneof![Just(0.0_f32), Just(1e4)],
        seed in any::<u64>(),
    ) {
        let channels = groups * size;
        let mut x = values(seed, batch * pixels * channels);
        x.iter_mut().for_each(|x| *x += offset);
        for isa in Isa::available() {
            let got = group_moments(isa, &x, batch, groups, channels);
            let again = with_threads(3, || group_moments(isa, &x, batch, groups, channels));
            prop_assert_eq!(&got, &again);
            prop_assert_eq!(got.len(), batch * groups);
            for (i, got) in got.iter().enumerate() {
                let (image, group) = (i / groups, i % groups);
                let image = &x[image * pixels * channels..][..pixels * channels];
                let of_group = |pixel: &[f32]| wide(&pixel[group * size..][..size]);
                let (mean, m2) =
                    moment(&image.chunks_exact(channels).flat_map(of_group).collect::<Vec<_>>());
                assert_close(&[got.mean], &[mean], 1e-6, "mean");
                prop_assert!((f64::from(got.m2) - m2).abs() <= 1e-5 * m2 + 1e-9, "{got:?} {m2}");
            }
        }
    }

    #[test]
    fn group_norm_scales_and_shifts(
        (batch, pixels, channels) in (1..3_usize, 1..500_usize, 1..100_usize),
        with_silu in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let x = values(seed, batch * pixels * channels);
        let (scale, shift) = (values(seed ^ 1, batch * channels), values(seed ^ 2, batch * channels));
        let function = if with_silu { Activation::Silu } else { Activation::None };
        let want: Vec<f64> = (x.iter().enumerate())
            .map(|(i, x)| {
                let c = i / (pixels * channels) * channels + i % channels;
                activate(function, f64::from(*x) * f64::from(scale[c]) + f64::from(shift[c]))
            })
            .collect();
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; x.len()];
            with_threads(2, || group_norm(isa, &mut out, &x, batch, &scale, &shift, with_silu));
            assert_close(&out, &want, 1e-6, &isa.to_string());
        }
    }

    #[test]
    fn layer_norm_normalises_each_row(
        (rows, channels) in (1..200_usize, 2..200_usize),
        offset in prop_oneof![Just(0.0_f32), Just(10.0)],
        seed in any::<u64>(),
    ) {
        let mut x = values(seed, rows * channels);
        x.iter_mut().for_each(|x| *x += offset);
        let (gamma, beta) = (values(seed ^ 1, channels), values(seed ^ 2, channels));
        let mut want = Vec::new();
        for row in x.chunks_exact(channels) {
            let row = wide(row);
            let (mean, m2) = moment(&row);
            let scale = 1.0 / (m2 / channels as f64 + 1e-5).sqrt();
            want.extend((row.iter().enumerate()).map(|(c, x)| {
                (x - mean) * scale * f64::from(gamma[c]) + f64::from(beta[c])
            }));
        }
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; x.len()];
            with_threads(2, || layer_norm(isa, &mut out, &x, &gamma, &beta, 1e-5));
            // What the mean is off by in f32 weighs most where a row barely varies.
            let tolerance = f64::from((1.0 + offset) * f32::EPSILON) / 1e-5_f64.sqrt();
            assert_close(&out, &want, tolerance, &isa.to_string());
        }
    }

    #[test]
    fn silu_and_add_take_each_value(count in 0..200_000_usize, seed in any::<u64>()) {
        let a: Vec<f32> = values(seed, count).iter().map(|x| x * 30.0).collect();
        let b = values(seed ^ 1, count);
        let silus: Vec<f64> =
            a.iter().map(|x| activate(Activation::Silu, f64::from(*x))).collect();
        let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        for isa in Isa::available() {
            let mut out = vec![f32::NAN; count];
            with_threads(2, || silu(isa, &mut out, &a));
            assert_close(&out, &silus, 1e-6, &isa.to_string());
            add(isa, &mut out, &a, &b);
            assert_same(&out, &sums, &isa.to_string());
        }
    }

    #[test]
    fn concat_puts_channels_side_by_side(
        (pixels, ca, cb) in (1..3000_usize, 1..40_usize, 1..40_usize),
        seed in any::<u64>(),
    ) {
        let (a, b) = (values(seed, pixels * ca), values(seed ^ 1, pixels * cb));
        let mut out = vec![f32::NAN; pixels * (ca + cb)];
        with_threads(2, || concat_channels(&mut out, &a, ca, &b, cb));
        for (pixel, out) in out.chunks_exact(ca + cb).enumerate() {
            prop_assert_eq!(&out[..ca], &a[pixel * ca..][..ca]);
            prop_assert_eq!(&out[ca..], &b[pixel * cb..][..cb]);
        }
    }

    #[test]
    fn upsampling_doubles_each_pixel(
        (batch, rows, width, channels) in (1..3_usize, 1..20_usize, 1..20_usize, 1..100_usize),
        seed in any::<u64>(),
    ) {
        let x = values(seed, batch * rows * width * channels);
        let mut out = vec![f32::NAN; 4 * x.len()];
        with_threads(2, || upsample2x_nearest(&mut out, &x, batch, rows, width, channels));
        for (i, out) in out.chunks_exact(channels).enumerate() {
            // Two images of an even height lie as one twice as high.
            let (row, column) = (i / (2 * width) / 2, i % (2 * width) / 2);
            prop_assert_eq!(out, &x[(row * width + column) * channels..][..channels]);
        }
    }
}
