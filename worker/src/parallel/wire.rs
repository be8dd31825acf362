//! The type in which values cross. Arithmetic is f32 at either end.

use bytemuck::{Pod, cast_slice};
use bytes::{Bytes, BytesMut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use protocol::job::Wire;
use protocol::{Fault, FaultKind, Site};

/// Values rounded at a time.
const CHUNK: usize = 1024;

/// `values` as they cross, in the memory of `old` if nobody reads that any more.
///
/// # Errors
/// If one is larger than the type holds: infinities would spread over the whole image.
pub(super) fn encode(wire: Wire, site: Site, values: &[f32], old: Bytes) -> Result<Bytes, Fault> {
    let mut out = old.try_into_mut().unwrap_or_default();
    out.clear();
    out.reserve(values.len() * wire.bytes());
    match wire {
        Wire::F32 => out.extend_from_slice(cast_slice(values)),
        Wire::Bf16 => round::<bf16>(values, &mut out),
        Wire::F16 => {
            if let Some(value) = values.iter().find(|value| f16::from_f32(**value).is_infinite()) {
                let cause = format!(
                    "the value {value} at {site} is too large for --wire f16 (at most {}): use bf16 or f32",
                    f16::MAX
                );
                return Err(Fault::new(FaultKind::Compute, cause));
            }
            round::<f16>(values, &mut out);
        }
    }
    Ok(out.freeze())
}

/// Checks values that a device rounded: f16 has no room for all.
pub(super) fn check(wire: Wire, site: Site, bytes: &[u8]) -> Result<(), Fault> {
    let (halves, _) = bytes.as_chunks::<2>();
    let infinite = |half: &[u8; 2]| f16::from_le_bytes(*half).is_infinite();
    if wire == Wire::F16 && halves.iter().any(infinite) {
        let cause = format!(
            "a value at {site} is too large for --wire f16 (at most {}): use bf16 or f32",
            f16::MAX
        );
        return Err(Fault::new(FaultKind::Compute, cause));
    }
    Ok(())
}

fn round<T: Pod>(values: &[f32], out: &mut BytesMut)
where
    [T]: HalfFloatSliceExt,
{
    let mut rounded = [T::zeroed(); CHUNK];
    for values in values.chunks(CHUNK) {
        let rounded = &mut rounded[..values.len()];
        rounded.convert_from_f32_slice(values);
        out.extend_from_slice(cast_slice(rounded));
    }
}

/// Copies values that crossed as f32; those that were rounded are read where they landed.
pub(super) fn copy(bytes: &[u8], out: &mut [f32]) {
    bytemuck::cast_slice_mut(out).copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Stored;
    use crate::model::exchange::Rows;

    #[test]
    fn values_cross_rounded_to_the_types_precision() {
        let values: Vec<f32> = (-40..40).map(|step| 1.1_f32.powi(step)).collect();
        for (wire, precision) in [(Wire::F32, 0.0), (Wire::F16, 5e-4), (Wire::Bf16, 4e-3)] {
            let bytes = encode(wire, Site(3), &values, Bytes::new()).unwrap();
            assert_eq!(bytes.len(), values.len() * wire.bytes());
            let rows = Rows::landed(values.len(), wire, bytes);
            let back: Vec<f32> = match rows.values() {
                Stored::F32(values) => values.to_vec(),
                Stored::F16(values) => values.to_f32_vec(),
                Stored::Bf16(values) => values.to_f32_vec(),
            };
            assert_eq!(back.len(), values.len());
            for (got, want) in back.iter().zip(&values) {
                assert!((got / want - 1.0).abs() <= precision, "{wire}: {got} of {want}");
            }
        }
    }

    #[test]
    fn memory_that_nobody_reads_is_used_again() {
        let first = encode(Wire::Bf16, Site(0), &[1.0; 3000], Bytes::new()).unwrap();
        let (place, held) = (first.as_ptr(), first.clone());
        let second = encode(Wire::Bf16, Site(0), &[2.0; 3000], first).unwrap();
        assert_ne!(second.as_ptr(), place);
        drop(second);
        let third = encode(Wire::Bf16, Site(0), &[3.0; 3000], held).unwrap();
        assert_eq!((third.as_ptr(), third.len()), (place, 6000));
    }

    #[test]
    fn what_f16_cannot_hold_is_named() {
        let fault = encode(Wire::F16, Site(3), &[1.0, 7e4], Bytes::new()).unwrap_err();
        assert!(fault.cause.contains("70000 at site 3"), "{fault}");
        assert!(encode(Wire::Bf16, Site(3), &[7e4], Bytes::new()).is_ok());
    }
}
