//! Which signals this process ignores, signal(7).

use nix::libc;

/// Ignores every signal whose default would end or stop the process and that others send without meaning that:
/// timers, terminals, power failure, real-time signals. SIGKILL and SIGSTOP cannot be ignored; SIGTSTP (Ctrl-Z) and
/// SIGXCPU (a limit somebody set) mean it; those that the program handles are handled by the runtime.
///
/// A process that this one starts inherits it.
#[expect(unsafe_code, reason = "signal(2) may replace a handler that somebody relies on")]
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
