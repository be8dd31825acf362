#![no_main]

fuzz::fuzz!(tokenizer, 64 << 20);
