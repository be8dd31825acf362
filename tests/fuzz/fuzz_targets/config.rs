#![no_main]

fuzz::fuzz!(config, 8 << 20);
