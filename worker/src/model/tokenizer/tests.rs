use std::fs;

use candle_core::Device;
use serde::Deserialize;
use serde_json::Value;

use super::{CONTEXT, ClipTokenizer};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

fn parts(folder: &str) -> [Vec<u8>; 4] {
    ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
        .map(|file| fs::read(format!("{FIXTURES}/{folder}/{file}")).unwrap())
}

fn tokenizer(folder: &str) -> ClipTokenizer {
    let [vocab, merges, config, map] = parts(folder);
    ClipTokenizer::from_parts(&vocab, &merges, &config, &map).unwrap()
}

fn sdxl() -> (ClipTokenizer, ClipTokenizer) {
    let folder = "golden/models/tiny-sdxl";
    (tokenizer(&format!("{folder}/tokenizer")), tokenizer(&format!("{folder}/tokenizer_2")))
}

#[derive(Deserialize)]
struct Expected {
    prompt: String,
    ids: Vec<u32>,
    ids_2: Option<Vec<u32>>,
    truncated: Option<String>,
}

#[test]
fn awkward_prompts_are_transformers() {
    let rows = fs::read(format!("{FIXTURES}/tokenizer.json")).unwrap();
    let rows: Vec<Expected> = serde_json::from_slice(&rows).unwrap();
    assert!(rows.len() > 200);
    let (first, second) = sdxl();
    let padded = |ids: &[u32], pad| {
        let mut all = [&[49406], ids, &[49407]].concat();
        all.resize(CONTEXT, pad);
        all
    };
    for row in rows {
        let encoded = first.encode(&row.prompt);
        assert_eq!(encoded.ids, padded(&row.ids, 49407), "{:?}", row.prompt);
        assert_eq!(encoded.truncated, row.truncated, "{:?}", row.prompt);
        let ids_2 = row.ids_2.as_ref().unwrap_or(&row.ids);
        assert_eq!(second.encode(&row.prompt).ids, padded(ids_2, 0), "{:?}", row.prompt);
    }
}

#[test]
fn golden_ids_are_those_of_their_prompt() {
    let golden = format!("{FIXTURES}/golden");
    for list in ["single.json", "emoji.json"] {
        let cases = fs::read(format!("{golden}/{list}")).unwrap();
        let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
        for case in cases {
            let (name, model) = (case["name"].as_str().unwrap(), case["model"].as_str().unwrap());
            let folder = if model == "emoji-xl" { "../../deploy/models" } else { "golden/models" };
            let path = format!("{golden}/single/{name}.safetensors");
            let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
            for (key, sub) in [("token_ids", "tokenizer"), ("token_ids_2", "tokenizer_2")] {
                let Some(expected) = tensors.get(key) else { continue };
                let expected: Vec<i64> = expected.flatten_all().unwrap().to_vec1().unwrap();
                let tokenizer = tokenizer(&format!("{folder}/{model}/{sub}"));
                let ours = tokenizer.encode(case["prompt"].as_str().unwrap()).ids;
                let ours: Vec<i64> = ours.into_iter().map(i64::from).collect();
                assert_eq!(ours, expected, "{name} {key}");
            }
        }
    }
}

/// Older checkpoints have no `added_tokens_decoder`; ids are `CLIPTokenizerFast`'s.
#[test]
fn marks_and_padding_are_found_without_their_list() {
    let [vocab, merges, ..] = parts("golden/models/tiny-sdxl/tokenizer_2");
    let config = br#"{"bos_token": "<|startoftext|>", "model_max_length": 77}"#;
    for (map, expected) in [
        (r#"{"eos_token": "<|endoftext|>", "pad_token": "!"}"#, [343, 0, 49407, 0]),
        (
            r#"{"eos_token": {"content": "<|endoftext|>", "normalized": true}}"#,
            [343, 256, 49407, 256],
        ),
        ("{}", [343, 256, 49407, 256]),
    ] {
        let tokenizer = ClipTokenizer::from_parts(&vocab, &merges, config, map.as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("x!<|ENDOFTEXT|>!").ids[1..5], expected, "{map}");
    }
}

#[test]
fn every_character_has_ids() {
    let (first, second) = sdxl();
    for c in ('\0'..=char::MAX).step_by(61) {
        let prompt = format!("a{c}b {c}");
        assert_eq!(first.encode(&prompt).ids.len(), CONTEXT);
        assert_eq!(second.encode(&prompt).ids.len(), CONTEXT);
    }
}

/// The error for a folder in which `file`'s contents are `bytes`.
fn error(file: &str, bytes: &[u8]) -> String {
    let [mut vocab, mut merges, mut config, mut map] = parts("golden/models/tiny-sd15/tokenizer");
    let part = match file {
        "vocab.json" => &mut vocab,
        "merges.txt" => &mut merges,
        "tokenizer_config.json" => &mut config,
        _ => &mut map,
    };
    *part = bytes.to_vec();
    ClipTokenizer::from_parts(&vocab, &merges, &config, &map).unwrap_err().to_string()
}

#[test]
fn a_broken_file_is_named() {
    for file in ["vocab.json", "tokenizer_config.json", "special_tokens_map.json"] {
        for bytes in [b"".as_slice(), b"[1]", b"{\"a\": ", b"\xff"] {
            let error = error(file, bytes);
            assert!(error.starts_with(&format!("{file}: ")), "{error}");
        }
    }
    assert_eq!(error("merges.txt", b""), "merges.txt: no merges");
    assert_eq!(error("merges.txt", b"#v\na b\nc\n"), "merges.txt: line 3 is not two tokens");
    assert!(error("merges.txt", b"\xff").starts_with("merges.txt: invalid utf-8"));
    assert!(error("merges.txt", b"#v\na \xe6\x9d\xb1\n").starts_with("merges.txt: Token"));
    assert!(error("vocab.json", b"{\"a\": 1}").contains("vocab.json"));
}

#[test]
fn a_setting_that_would_change_ids_is_refused_by_name() {
    for (file, json, expected) in [
        (
            "tokenizer_config.json",
            r#"{"model_max_length": 248}"#,
            "`model_max_length` is 248; supported: 77",
        ),
        (
            "tokenizer_config.json",
            r#"{"tokenizer_class": "T5Tokenizer"}"#,
            "`tokenizer_class` is \"T5Tokenizer\"; supported: ",
        ),
        (
            "tokenizer_config.json",
            r#"{"added_tokens_decoder": {"49408": {"content": "<new>"}}}"#,
            "`added_tokens_decoder` is {\"content\":\"<new>\"}; supported: tokens of vocab.json",
        ),
        ("special_tokens_map.json", r#"{"pad_token": 3}"#, "`pad_token` is 3; supported: a token"),
        (
            "special_tokens_map.json",
            r#"{"additional_special_tokens": ["<a>"]}"#,
            "`additional_special_tokens` is [\"<a>\"]; supported: []",
        ),
    ] {
        let error = error(file, json.as_bytes());
        assert!(error.starts_with(&format!("{file}: {expected}")), "{error}");
    }
}
