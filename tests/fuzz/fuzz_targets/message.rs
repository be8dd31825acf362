#![no_main]

fuzz::fuzz!(message, 8 << 20);
