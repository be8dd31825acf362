#![no_main]

fuzz::fuzz!(request, 8 << 20);
