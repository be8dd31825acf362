//! The type in which values cross. Arithmetic is f32 at either end.

use bytemuck::{NoUninit, cast_slice, pod_collect_to_vec};
use bytes::Bytes;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use protocol::job::Wire;
use protocol::{Fault, FaultKind, Site};

/// `values` as they cross.
///
/// # Errors
/// If one is larger than the type holds: infinities would spread over the whole image.
pub(super) fn encode(wire: Wire, site: Site, values: &[f32]) -> Result<Bytes, Fault> {
    match wire {
        Wire::F32 => Ok(Bytes::copy_from_slice(cast_slice(values))),
        Wire::Bf16 => {
            let mut out = vec![bf16::ZERO; values.len()];
            out.convert_from_f32_slice(values);
            Ok(Bytes::from_owner(Values(out)))
        }
        Wire::F16 => {
            let mut out = vec![f16::ZERO; values.len()];
            out.convert_from_f32_slice(values);
            if let Some(at) = out.iter().position(|value| value.is_infinite()) {
                let cause = format!(
                    "the value {} at {site} is too large for --wire f16 (at most {}): use bf16 or f32",
                    values[at],
                    f16::MAX
                );
                return Err(Fault::new(FaultKind::Compute, cause));
            }
            Ok(Bytes::from_owner(Values(out)))
        }
    }
}

/// Values that are sent from where they lie.
struct Values<T>(Vec<T>);

impl<T: NoUninit> AsRef<[u8]> for Values<T> {
    fn as_ref(&self) -> &[u8] {
        cast_slice(&self.0)
    }
}

/// Adds what `bytes` stand for to `out`.
pub(super) fn decode(wire: Wire, bytes: &[u8], out: &mut Vec<f32>) {
    let from = out.len();
    out.resize(from + bytes.len() / wire.bytes(), 0.0);
    let room = &mut out[from..];
    match wire {
        Wire::F32 => bytemuck::cast_slice_mut(room).copy_from_slice(bytes),
        Wire::F16 => pod_collect_to_vec::<u8, f16>(bytes).convert_to_f32_slice(room),
        Wire::Bf16 => pod_collect_to_vec::<u8, bf16>(bytes).convert_to_f32_slice(room),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_cross_rounded_to_the_types_precision() {
        let values: Vec<f32> = (-40..40).map(|step| 1.1_f32.powi(step)).collect();
        for (wire, precision) in [(Wire::F32, 0.0), (Wire::F16, 5e-4), (Wire::Bf16, 4e-3)] {
            let bytes = encode(wire, Site(3), &values).unwrap();
            assert_eq!(bytes.len(), values.len() * wire.bytes());
            let mut back = vec![7.0];
            decode(wire, &bytes, &mut back);
            for (got, want) in back[1..].iter().zip(&values) {
                assert!((got / want - 1.0).abs() <= precision, "{wire}: {got} of {want}");
            }
        }
    }

    #[test]
    fn what_f16_cannot_hold_is_named() {
        let fault = encode(Wire::F16, Site(3), &[1.0, 7e4]).unwrap_err();
        assert!(fault.cause.contains("70000 at site 3"), "{fault}");
        assert!(encode(Wire::Bf16, Site(3), &[7e4]).is_ok());
    }
}
