#![no_main]

fuzz::fuzz!(scheduler, 64 << 20);
