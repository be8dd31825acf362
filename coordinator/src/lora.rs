//! LoRA files, as far as they can be judged without the model: what is in them the workers see, who have it.

use safetensors::tensor::Metadata;
use std::io::{self, Read};

/// The longest header that a safetensors file may have, as the format has it.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// The bytes that say how long the header is.
const LENGTH_BYTES: u64 = 8;

/// Why a file is no LoRA file.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// It begins as no safetensors file does.
    #[error("it is no safetensors file: pickled .pt and .ckpt files are not read, convert them")]
    Kind,
    /// Its header is damaged.
    #[error("its safetensors header is damaged: {0}")]
    Header(#[from] serde_json::Error),
    /// It is cut off, or more was written behind it.
    #[error("it is damaged: it has {has} bytes, and its safetensors header tells of {told}")]
    Length {
        /// How many it has.
        has: u64,
        /// How many it is to have.
        told: u64,
    },
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
}

/// Checks that a file of so many bytes is safetensors, and whole.
///
/// # Errors
/// If it is not.
pub fn check(mut file: impl Read, has: u64) -> Result<(), LoraError> {
    let mut length = [0; 8];
    if has < LENGTH_BYTES {
        return Err(LoraError::Kind);
    }
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length == 0 || length > HEADER_BYTES_MAX.min(has - LENGTH_BYTES) {
        return Err(LoraError::Kind);
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    if header.first() != Some(&b'{') {
        return Err(LoraError::Kind);
    }
    let header: Metadata = serde_json::from_slice(&header)?;
    let told = LENGTH_BYTES + length + header.data_len() as u64;
    if told == has { Ok(()) } else { Err(LoraError::Length { has, told }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    fn judged(bytes: &[u8]) -> Result<(), LoraError> {
        check(bytes, bytes.len() as u64)
    }

    #[test]
    fn a_whole_file_is_one_and_no_other() {
        let view = TensorView::new(Dtype::F32, vec![2], &[0; 8]).unwrap();
        let whole = safetensors::serialize([("a.lora_A.weight", view)], None).unwrap();
        judged(&whole).unwrap();
        let cut = judged(&whole[..whole.len() - 1]).unwrap_err();
        assert!(matches!(cut, LoraError::Length { has, told } if has + 1 == told), "{cut}");
        let mut damaged = whole.clone();
        damaged[9] = b'}';
        assert!(matches!(judged(&damaged), Err(LoraError::Header(_))));
        for other in [&b"PK\x03\x04 a pickle of torch"[..], b"", b"{}", &whole[1..], &whole[..9]] {
            assert!(matches!(judged(other), Err(LoraError::Kind)), "{other:?}");
        }
    }
}
