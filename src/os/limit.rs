//! The user of this process, its limit on descriptors, the part of the limit that connections may use, and the memory
//! that the process may use; geteuid(2), getrlimit(2), cgroups(7). May not enter: the numbers of links and sessions, which
//! callers pass.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::SysconfVar;

/// Descriptors for look-ups, the password's file, the log, a hand-over. Chosen: far more than ever seen at once.
pub(crate) const MAKING_LINKS: usize = 32;

/// How many descriptors this process may have open.
pub(crate) fn descriptors() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).ok().and_then(|(soft, _)| usize::try_from(soft).ok()).unwrap_or(1024)
}

/// Maximum of descriptors for connections, whether sessions or not yet. The rest is for links to the broker and for
/// making them.
pub(crate) fn for_connections(links: usize) -> usize {
    let all = descriptors();
    // Twice, for attempts at several addresses. At most a quarter, so that connections always have the most.
    all.saturating_sub((MAKING_LINKS + 2 * links).min(all / 4)).max(1)
}

/// Whether that many of the descriptors that `limit` allows are free. The kernel gives the lowest free descriptor
/// (open(2)), so a short-lived duplicate of `any` shows it.
pub(crate) fn has_room(any: BorrowedFd<'_>, limit: usize) -> bool {
    rustix::io::fcntl_dupfd_cloexec(any, 0).is_ok_and(|free| is_below(&free, limit))
}

/// Whether a descriptor that the kernel has just given is one of the first `limit`.
pub(crate) fn is_below(descriptor: &impl AsRawFd, limit: usize) -> bool {
    usize::try_from(descriptor.as_raw_fd()).is_ok_and(|number| number < limit)
}

/// Whether no descriptor is free, in this process or in the system.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The error of a process that may open no further descriptor.
pub(crate) fn out_of_descriptors() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}

/// The user that this process runs as.
pub(crate) fn own_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// How much memory this process may use: what the machine has, or what a cgroup above the process allows. `None` where
/// the kernel says neither.
pub(crate) fn memory() -> Option<usize> {
    let size_of = |name| nix::unistd::sysconf(name).ok().flatten().and_then(|value| usize::try_from(value).ok());
    let machine = || size_of(SysconfVar::_PHYS_PAGES)?.checked_mul(size_of(SysconfVar::PAGE_SIZE)?);
    machine().into_iter().chain(cgroup_limits()).min()
}

/// `memory.max` of this process' cgroup and of those above.
fn cgroup_limits() -> Vec<usize> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let limit = |group: &Path| {
        let limit = fs::read_to_string(Path::new("/sys/fs/cgroup").join(group).join("memory.max")).ok()?;
        limit.trim().parse().ok()
    };
    Path::new(own).ancestors().filter_map(limit).collect()
}

/// Raises the soft descriptor limit to the hard one, as nginx's `worker_rlimit_nofile` does. Raises both to `wanted`
/// if that is more and this process may.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn raise_descriptors(wanted: usize) -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = wanted.try_into().unwrap_or(hard);
    if hard < wanted && setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).is_ok() {
        return Ok(());
    }
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    if hard < wanted { Err(nix::errno::Errno::EPERM.into()) } else { Ok(()) }
}
