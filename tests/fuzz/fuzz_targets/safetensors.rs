#![no_main]

fuzz::fuzz!(safetensors, 8 << 20);
