//! The program inside every capsule: init of the machine when the kernel starts it, a plain server otherwise.

use std::process::ExitCode;

/// musl's own allocator takes one lock for all threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    wrenn_guest::main(std::env::args().skip(1))
}
