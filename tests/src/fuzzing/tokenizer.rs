//! A tokenizer's files.

use std::collections::{BTreeMap, BTreeSet};
use worker::model::tokenizer::{CONTEXT, ClipTokenizer};

/// What stands between the files of one input: no text file holds it.
pub(super) const BETWEEN: u8 = 0;

/// What people type, and what they do not.
const PROMPTS: &[&str] = &[
    "",
    "a red Apple's 12  leaves, don't!",
    "<|startoftext|> <|ENDOFTEXT|>!",
    "\u{65e5}\u{672c} \u{1f34e}\u{200d}\u{301} \u{fdfa}\n\t\u{85}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa aaaa",
];

/// `vocab.json`, `merges.txt`, `tokenizer_config.json`, `special_tokens_map.json` and a prompt, with a
/// zero byte between them: whatever is typed becomes as many ids as the encoder reads, all of the
/// vocabulary.
pub fn tokenizer(data: &[u8]) {
    let mut parts = data.split(|byte| *byte == BETWEEN);
    let mut part = || parts.next().unwrap_or(b"{}");
    let [vocab, merges, config, map, prompt] = std::array::from_fn(|_| part());
    let Ok(tokenizer) = ClipTokenizer::from_parts(vocab, merges, config, map) else { return };
    let vocab: BTreeMap<String, u32> = serde_json::from_slice(vocab).expect("it was read");
    let known: BTreeSet<u32> = vocab.into_values().collect();
    let prompt = String::from_utf8_lossy(prompt);
    for prompt in PROMPTS.iter().copied().chain([&*prompt]) {
        let encoded = tokenizer.encode(prompt);
        assert_eq!(encoded.ids.len(), CONTEXT, "{prompt:?}");
        let strange = encoded.ids.iter().find(|id| !known.contains(id));
        assert_eq!(strange, None, "an id of no token, for {prompt:?}");
    }
}
