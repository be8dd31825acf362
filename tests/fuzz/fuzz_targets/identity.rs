#![no_main]

fuzz::fuzz!(identity, 8 << 20);
