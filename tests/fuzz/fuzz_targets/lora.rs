#![no_main]

fuzz::fuzz!(lora, 64 << 20);
