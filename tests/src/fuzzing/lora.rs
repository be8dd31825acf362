//! LoRA files.

use coordinator::lora::{self, LoraError};
use std::io::Write as _;
use worker::model::files::Blob;
use worker::model::lora::{Deltas, Part, Shape, Source};

/// Layers that files may change: where, which, and what they are.
const LAYERS: [(Part, &str, Shape); 4] = [
    (
        Part::UNet,
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        Shape { outputs: 6, inputs: 4, kernel: 1 },
    ),
    (Part::UNet, "down_blocks.1.resnets.0.conv1", Shape { outputs: 3, inputs: 2, kernel: 3 }),
    (
        Part::Text,
        "text_model.encoder.layers.0.self_attn.q_proj",
        Shape { outputs: 4, inputs: 4, kernel: 1 },
    ),
    (
        Part::Text2,
        "text_model.encoder.layers.0.self_attn.q_proj",
        Shape { outputs: 4, inputs: 4, kernel: 1 },
    ),
];
/// How many layers a block of the UNet has.
const LAYERS_PER_BLOCK: usize = 2;
const NAME: &str = "ink.safetensors";

/// Bytes as a LoRA file: the coordinator takes all that a worker reads, unless it goes on behind its tensors, and what a layer
/// takes is of its shape.
pub fn lora(data: &[u8]) {
    let checked = lora::check(data, data.len() as u64);
    let mut file = tempfile::tempfile().expect("there is room for a file");
    file.write_all(data).expect("there is room for a file");
    let blob = Blob::of(file).expect("its length can be had");
    let source = Source { name: NAME.to_owned(), scale: 0.5, blob };
    let mut deltas = match Deltas::read(vec![source], LAYERS_PER_BLOCK) {
        Ok(deltas) => deltas,
        Err(error) => {
            return assert!(error.to_string().contains(NAME), "no file is named: {error}");
        }
    };
    // Workers do not look at what was written behind the tensors.
    let taken = matches!(checked, Ok(()) | Err(LoraError::Length { .. }));
    assert!(taken, "a worker reads what the coordinator refuses: {checked:?}");
    for (part, path, shape) in LAYERS {
        deltas.enter(part);
        match deltas.take(path, shape) {
            Ok(taken) => {
                for delta in taken {
                    let down = delta.rank * shape.inputs * shape.kernel * shape.kernel;
                    assert_eq!(
                        (delta.down.len(), delta.up.len()),
                        (down, delta.rank * shape.outputs),
                        "{path}"
                    );
                }
            }
            Err(error) => assert!(error.to_string().contains(NAME), "no file is named: {error}"),
        }
    }
    if let Err(error) = deltas.finish() {
        assert!(error.to_string().contains(NAME), "no file is named: {error}");
    }
}
