#![no_main]

fuzz::fuzz!(plan, 32 << 20);
