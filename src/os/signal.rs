//! The signals that this process ignores, signal(7). May not enter: signals with a meaning (`signals.rs`).

use nix::libc;

/// Ignores every signal whose default action ends or stops the process although the sender does not intend that:
/// timers, terminals, power failure, real-time signals. No process can ignore SIGKILL and SIGSTOP. The senders of
/// SIGTSTP (Ctrl-Z) and SIGXCPU (a CPU limit) intend the default action. The runtime handles the program's signals.
///
/// Processes that this one starts inherit the ignored signals.
#[expect(unsafe_code, reason = "signal(2) may replace a handler that other code relies on")]
pub(crate) fn ignore_bystanders() {
    let named = [
        libc::SIGPIPE,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
        libc::SIGTTIN,
        libc::SIGTTOU,
        libc::SIGXFSZ,
    ];
    // glibc keeps those before SIGRTMIN() to itself.
    for number in named.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        // SAFETY: SIG_IGN runs no code, and nothing in this process handles or waits for these signals.
        unsafe { libc::signal(number, libc::SIG_IGN) };
    }
}
