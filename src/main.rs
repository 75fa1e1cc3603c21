//! The `webws` binary: its allocator. `cli` has the rest: arguments, settings, log output, exit codes. May not enter:
//! logic.

mod cli;

use std::process::ExitCode;

/// Measured on 9,000 sessions that each had sent 64 kB: 0.9 kB resident per session, 8.3 kB with
/// glibc, whose heap does not shrink below what lives longest.
#[global_allocator]
static ALLOCATOR: webws::Metered<tikv_jemallocator::Jemalloc> = webws::Metered::new(tikv_jemallocator::Jemalloc);

/// Unused memory goes back within a second, not ten, and without waiting for the next allocation.
#[expect(unsafe_code, reason = "jemalloc finds its options by this symbol's name; it is a C string as it wants")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static ALLOCATOR_OPTIONS: &[u8; 60] = b"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    cli::run()
}
