#![no_main]

fuzz::fuzz!(handshake, 8 << 20);
