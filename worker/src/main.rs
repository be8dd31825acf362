//! The `worker` binary.

use std::process::ExitCode;

/// Activations are large and short-lived: this allocator gives them back to the system sooner, and
/// reuses them faster, than the system's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    worker::cli::run()
}
