//! The CLIP tokenizer: a prompt to the 77 ids that a text encoder reads.
//!
//! Byte-level BPE on the `tokenizers` crate, put together as transformers'
//! `convert_slow_tokenizer.CLIPConverter` does: ids are those of `CLIPTokenizerFast`. (The slow
//! `CLIPTokenizer` without ftfy differs: it puts spaces around Chinese characters.)

use std::collections::BTreeMap;
use std::fmt;
use std::str::from_utf8;

use serde_json::{Map, Value};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// Ids a text encoder reads at once, the marks at both ends included.
pub const CONTEXT: usize = 77;

/// The vocabulary of CLIP: 49152 tokens, less 256 bytes and two marks; later lines are not used.
const MERGES_MAX: usize = 48_894;

/// Contractions, words, single digits, and runs of anything else but space.
const WORD: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";

/// Why a tokenizer could not be made of its files.
///
/// Files are named without their folder: SDXL has two, and the caller knows which.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is missing, empty or not what it should be.
    #[error("{file}: {cause}")]
    Corrupt {
        /// The file's name.
        file: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// A setting that would change ids in a way not implemented.
    #[error("{file}: `{key}` is {value}; supported: {supported}")]
    Unsupported {
        /// The file's name.
        file: &'static str,
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// The values that work.
        supported: String,
    },
}

/// What a prompt becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// [`CONTEXT`] ids: the start mark, tokens, the end mark, padding.
    pub ids: Vec<u32>,
    /// The words that did not fit, for a warning that the user sees.
    pub truncated: Option<String>,
}

/// One tokenizer folder of a checkpoint.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: Tokenizer,
    bos: u32,
    eos: u32,
    pad: u32,
}

impl ClipTokenizer {
    /// From the contents of `vocab.json`, `merges.txt`, `tokenizer_config.json` and
    /// `special_tokens_map.json`. Of the last two, the last one's tokens count.
    ///
    /// # Errors
    /// Names the file that is missing (empty) or corrupt, or the setting that is not supported.
    pub fn from_parts(
        vocab: &[u8],
        merges: &[u8],
        tokenizer_config: &[u8],
        special_tokens_map: &[u8],
    ) -> Result<Self, TokenizerError> {
        let config = Settings::new("tokenizer_config.json", tokenizer_config)?;
        let map = Settings::new("special_tokens_map.json", special_tokens_map)?;
        config.refuse_other("model_max_length", &["77"])?;
        config.refuse_other("tokenizer_class", &["\"CLIPTokenizer\"", "\"CLIPTokenizerFast\""])?;
        map.refuse_other("additional_special_tokens", &["[]"])?;

        let special = |key, default: &str| -> Result<AddedToken, TokenizerError> {
            let token = map.token(key)?.map_or_else(|| config.token(key), |token| Ok(Some(token)));
            Ok(token?.unwrap_or_else(|| bare_token(key, default)))
        };
        let [bos, eos] = [special("bos_token", BOS)?, special("eos_token", EOS)?];
        let [unk, pad] = [special("unk_token", EOS)?, special("pad_token", EOS)?];
        let mut tokenizer = pipeline(bpe(vocab, merges, &unk.content)?);
        let id = |token: &AddedToken| {
            let cause = || format!("the special token {:?} is not in it", token.content);
            tokenizer.token_to_id(&token.content).ok_or_else(|| corrupt("vocab.json", cause()))
        };
        let [bos_id, eos_id, _, pad_id] = [id(&bos)?, id(&eos)?, id(&unk)?, id(&pad)?];
        // Of two with the same text the first counts, as in transformers.
        let mut added = config.added_tokens(&tokenizer)?;
        for token in [unk, bos, eos, pad] {
            if !added.iter().any(|known| known.content == token.content) {
                added.push(token);
            }
        }
        tokenizer
            .add_special_tokens(added)
            .map_err(|error| corrupt("special_tokens_map.json", error))?;
        Ok(Self { tokenizer, bos: bos_id, eos: eos_id, pad: pad_id })
    }

    /// The ids of `prompt`. Anything typed has ids: what the vocabulary lacks becomes its bytes.
    pub fn encode(&self, prompt: &str) -> Encoded {
        let encoding = self.tokenizer.encode_fast(prompt, false);
        let encoding = encoding.expect("no pattern backtracks, and the unknown token has an id");
        let tokens = encoding.get_ids();
        let (kept, cut) = tokens.split_at(tokens.len().min(CONTEXT - 2));
        let mut ids = [&[self.bos], kept, &[self.eos]].concat();
        ids.resize(CONTEXT, self.pad);
        Encoded { ids, truncated: (!cut.is_empty()).then(|| self.decode(cut)) }
    }

    fn decode(&self, ids: &[u32]) -> String {
        let text =
            self.tokenizer.decode(ids, false).expect("byte-level decoding is lossy, not failing");
        text.replace("</w>", " ").trim().to_owned()
    }
}

/// The steps around the merges.
fn pipeline(bpe: BPE) -> Tokenizer {
    let space = Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ");
    let space = space.expect("the pattern is a constant");
    let word = SplitPattern::Regex(WORD.to_owned());
    let word = Split::new(word, SplitDelimiterBehavior::Removed, true);
    let word = word.expect("the pattern is a constant");
    let bytes = ByteLevel::new(false, true, true);
    let normal = Normalizers::new(vec![NFC.into(), space.into(), Lowercase.into()]);
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer
        .with_normalizer(Some(normal))
        .expect("there are no added tokens to normalise yet")
        .with_pre_tokenizer(Some(PreTokenizers::new(vec![word.into(), bytes.into()])))
        .with_decoder(Some(bytes));
    tokenizer
}

fn bpe(vocab: &[u8], merges: &[u8], unk: &str) -> Result<BPE, TokenizerError> {
    let (vocab_file, merges_file) = ("vocab.json", "merges.txt");
    let vocab: BTreeMap<String, u32> =
        serde_json::from_slice(vocab).map_err(|error| corrupt(vocab_file, error))?;
    let vocab: Vocab = vocab.into_iter().collect();
    let text = from_utf8(merges).map_err(|error| corrupt(merges_file, error))?;
    // The first line is the version.
    let lines = text.trim().split('\n').enumerate().skip(1).take(MERGES_MAX);
    let pair = |(line, merge): (usize, &str)| {
        let mut parts = merge.split_whitespace();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(left), Some(right), None) => Ok((left.to_owned(), right.to_owned())),
            _ => Err(corrupt(merges_file, format!("line {} is not two tokens", line + 1))),
        }
    };
    let merges: Vec<(String, String)> = lines.map(pair).collect::<Result<_, _>>()?;
    if merges.is_empty() {
        return Err(corrupt(merges_file, "no merges"));
    }
    let builder = BPE::builder().vocab_and_merges(vocab, merges).unk_token(unk.to_owned());
    let built = builder.end_of_word_suffix("</w>".to_owned()).build();
    built.map_err(|error| corrupt(merges_file, format!("{error} of vocab.json")))
}

/// A file of settings: a JSON object.
struct Settings {
    file: &'static str,
    map: Map<String, Value>,
}

impl Settings {
    fn new(file: &'static str, json: &[u8]) -> Result<Self, TokenizerError> {
        let map = serde_json::from_slice(json).map_err(|error| corrupt(file, error))?;
        Ok(Self { file, map })
    }

    fn unsupported(&self, key: &str, value: &Value, supported: &str) -> TokenizerError {
        let (key, supported) = (key.to_owned(), supported.to_owned());
        TokenizerError::Unsupported { file: self.file, key, value: value.to_string(), supported }
    }

    fn refuse_other(&self, key: &str, supported: &[&str]) -> Result<(), TokenizerError> {
        match self.map.get(key) {
            Some(value) if !supported.contains(&value.to_string().as_str()) => {
                Err(self.unsupported(key, value, &supported.join(", ")))
            }
            _ => Ok(()),
        }
    }

    fn token(&self, key: &str) -> Result<Option<AddedToken>, TokenizerError> {
        let value = self.map.get(key).filter(|value| !value.is_null());
        value.map(|value| self.added_token(key, value)).transpose()
    }

    /// A token, given as text or as an object with its text in `content`.
    fn added_token(&self, key: &str, value: &Value) -> Result<AddedToken, TokenizerError> {
        let set = |flag: &str| value.get(flag).and_then(Value::as_bool).unwrap_or(false);
        let content = value.get("content").and_then(Value::as_str);
        let (Some(text), bare) = (value.as_str().or(content), content.is_none()) else {
            return Err(self.unsupported(key, value, "a token"));
        };
        if bare {
            return Ok(bare_token(key, text));
        }
        Ok(AddedToken::from(text, true)
            .lstrip(set("lstrip"))
            .rstrip(set("rstrip"))
            .single_word(set("single_word"))
            .normalized(set("normalized")))
    }

    /// The tokens of `added_tokens_decoder`, each in the vocabulary at the id it has there.
    fn added_tokens(&self, vocab: &Tokenizer) -> Result<Vec<AddedToken>, TokenizerError> {
        let key = "added_tokens_decoder";
        let Some(Value::Object(added)) = self.map.get(key) else { return Ok(Vec::new()) };
        let token = |(id, value): (&String, &Value)| {
            let token = self.added_token(key, value)?;
            match vocab.token_to_id(&token.content) {
                Some(known) if known.to_string() == *id => Ok(token),
                _ => Err(self.unsupported(key, value, "tokens of vocab.json with their ids")),
            }
        };
        added.iter().map(token).collect()
    }
}

/// A token given as text alone: the marks are found in capitals too, padding only as it is.
fn bare_token(key: &str, text: &str) -> AddedToken {
    AddedToken::from(text, true).normalized(key != "pad_token")
}

fn corrupt(file: &'static str, cause: impl fmt::Display) -> TokenizerError {
    TokenizerError::Corrupt { file, cause: cause.to_string() }
}

#[cfg(test)]
mod tests;
