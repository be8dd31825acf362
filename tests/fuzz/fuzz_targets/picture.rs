#![no_main]

fuzz::fuzz!(picture, 64 << 20);
