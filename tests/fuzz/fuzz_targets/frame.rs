#![no_main]

fuzz::fuzz!(frame, 1 << 20);
