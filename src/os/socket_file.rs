//! The file of a Unix socket: make, set permissions and group, take over, remove.
//!
//! Another local user may have write access to the directory. Every step therefore works in the
//! directory that was opened first, and permissions are changed through a descriptor of the file itself
//! (`O_PATH`, `O_NOFOLLOW`): a symbolic link at the path, or in place of the directory, redirects none of them.
//! May not enter: what a socket carries.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, listen, socket};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{Gid, Group, UnlinkatFlags, fchownat, geteuid, unlinkat};

/// Connections that may wait to be accepted; beyond, a Unix client gets EAGAIN at once and
/// nginx answers 502. Chosen: `somaxconn`'s default, the most the kernel grants.
const BACKLOG: i32 = 4096;

/// The identity of a socket file that webws made, so that webws removes no other file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// The kind of file at a socket's path.
#[derive(Debug, PartialEq, Eq)]
enum Occupant {
    Nothing,
    DeadSocket,
    LiveSocket,
    OtherSocket,
    OtherFile,
}

/// Binds a Unix socket at `path` with permissions `mode` and, if given, the group of that
/// name. Replaces the socket file of a dead process.
///
/// # Errors
/// With a sentence that names the obstacle: a live process, another kind of file,
/// a missing directory, an unknown group, missing rights.
pub(crate) fn bind_unix(path: &Path, mode: u32, group: Option<&str>) -> io::Result<(OwnedFd, FileId)> {
    let (listener, id) = bind_kind(SockType::Stream, path, mode, group)?;
    listen(&listener, Backlog::new(BACKLOG)?)?;
    Ok((listener, id))
}

/// As [`bind_unix`], a socket for datagrams. A stranger can send one before the permissions are set; the receiver
/// checks the sender of each.
///
/// # Errors
/// As [`bind_unix`].
pub(crate) fn bind_datagram(path: &Path, mode: u32, group: Option<&str>) -> io::Result<(OwnedFd, FileId)> {
    bind_kind(SockType::Datagram, path, mode, group)
}

fn bind_kind(kind: SockType, path: &Path, mode: u32, group: Option<&str>) -> io::Result<(OwnedFd, FileId)> {
    let group = group.map(find_group).transpose()?;
    let place = Place::open(path)?;
    match place.occupant(kind, path)? {
        Occupant::Nothing => {}
        Occupant::DeadSocket => place.remove()?,
        Occupant::LiveSocket => return Err(refusal("another process listens on it: stop that one first")),
        Occupant::OtherSocket => return Err(refusal("the file is a socket of another kind: remove or rename it")),
        Occupant::OtherFile => return Err(refusal("the file is not a socket: remove or rename it")),
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, kind, flags, None)?;
    if kind == SockType::Datagram {
        // Before the first datagram can come: one that came earlier would have no sender.
        super::handoff::prepare(socket.as_fd())?;
    }
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let file = place.file()?.filter(SocketFile::is_new).ok_or_else(|| {
        refusal("another user replaced the socket's file: choose a directory that only trusted users can write to")
    })?;
    // No client can connect before listen(2), so wrong permissions have no effect.
    if let Err(error) = file.grant(mode, group) {
        remove_own(path, file.id());
        return Err(error);
    }
    Ok((socket, file.id()))
}

/// Connects to the stream socket at `path`. Does not block: the kernel accepts or refuses at once.
/// The stream is non-blocking.
///
/// # Errors
/// `ConnectionRefused` when no process listens, `WouldBlock` when the backlog is full, `NotFound` when there
/// is no such file.
pub(crate) fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    connect_kind(SockType::Stream, path).map(UnixStream::from)
}

fn connect_kind(kind: SockType, path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, kind, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

/// Sets permissions and, if given, the group of the socket file at `path`, if the file is still `id`.
///
/// # Errors
/// When `path` is another file, the group does not exist, or the process has no right.
pub(crate) fn grant(path: &Path, id: FileId, mode: u32, group: Option<&str>) -> io::Result<()> {
    let group = group.map(find_group).transpose()?;
    let file = Place::open(path)?.file()?.filter(|file| file.id() == id);
    file.ok_or_else(|| refusal("another file took its place"))?.grant(mode, group)
}

/// Removes the socket file at `path` if no process listens on it.
pub(crate) fn remove_dead(path: &Path) {
    let Ok(place) = Place::open(path) else { return };
    if matches!(place.occupant(SockType::Stream, path), Ok(Occupant::DeadSocket)) {
        // The file may be gone already.
        drop(place.remove());
    }
}

/// Removes the socket file at `path` if the file is still `id`.
pub(crate) fn remove_own(path: &Path, id: FileId) {
    let Ok(place) = Place::open(path) else { return };
    let is_ours = matches!(place.file(), Ok(Some(file)) if file.id() == id);
    if is_ours && let Err(error) = place.remove() {
        let path = path.display();
        tracing::debug!(%error, %path, "the socket file {path} cannot be removed: {error}");
    }
}

/// Whether the file at `path` is a socket.
pub(crate) fn is_socket(path: &Path) -> bool {
    Place::open(path).and_then(|place| place.file()).is_ok_and(|file| file.is_some())
}

/// The group of the file at `path`.
///
/// # Errors
/// When there is no file.
pub(crate) fn group(path: &Path) -> io::Result<u32> {
    use std::os::unix::fs::MetadataExt;
    Ok(std::fs::metadata(path)?.gid())
}

/// The number of the user called `name`, or with that number; `None` when there is no such user.
pub(crate) fn user(name: &str) -> Option<u32> {
    let known = || nix::unistd::User::from_name(name).ok().flatten();
    name.parse().ok().or_else(|| known().map(|user| user.uid.as_raw()))
}

/// Whether the system has a group called `name`.
pub(crate) fn has_group(name: &str) -> bool {
    find_group(name).is_ok()
}

fn find_group(name: &str) -> io::Result<Gid> {
    let group = Group::from_name(name)?;
    Ok(group.ok_or_else(|| refusal(&format!("there is no group '{name}' (socket_group)")))?.gid)
}

fn refusal(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AddrInUse, what.to_owned())
}

/// An open directory, which stays the same when its path changes, and a name in the directory.
#[derive(Debug)]
struct Place<'a> {
    directory: OwnedFd,
    name: &'a OsStr,
}

impl<'a> Place<'a> {
    fn open(path: &'a Path) -> io::Result<Self> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(AT_FDCWD, directory, flags, Mode::empty())?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        Ok(Self { directory, name })
    }

    /// The file of any kind at the name; a symbolic link is not followed.
    fn open_file(&self) -> io::Result<Option<SocketFile>> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.directory, self.name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
            Ok(descriptor) => Ok(Some(SocketFile { stat: fstat(&descriptor)?, descriptor })),
        }
    }

    /// The file at the name, if it is a socket.
    fn file(&self) -> io::Result<Option<SocketFile>> {
        Ok(self.open_file()?.filter(SocketFile::is_socket))
    }

    fn occupant(&self, kind: SockType, path: &Path) -> io::Result<Occupant> {
        match self.open_file()? {
            None => return Ok(Occupant::Nothing),
            Some(file) if !file.is_socket() => return Ok(Occupant::OtherFile),
            Some(_) => {}
        }
        match connect_kind(kind, path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Occupant::DeadSocket),
            // EAGAIN is a full backlog: a process listens.
            Ok(_) => Ok(Occupant::LiveSocket),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Occupant::LiveSocket),
            Err(error) if error.raw_os_error() == Some(Errno::EPROTOTYPE as i32) => Ok(Occupant::OtherSocket),
            Err(error) => Err(error),
        }
    }

    fn remove(&self) -> io::Result<()> {
        Ok(unlinkat(&self.directory, self.name, UnlinkatFlags::NoRemoveDir)?)
    }
}

/// One open file, which stays the same when its path changes.
#[derive(Debug)]
struct SocketFile {
    descriptor: OwnedFd,
    stat: FileStat,
}

impl SocketFile {
    fn is_socket(&self) -> bool {
        SFlag::from_bits_truncate(self.stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFSOCK
    }

    /// Whether this can be the file that this process has just made. Another user can only replace it with a socket
    /// of ours by a hard link.
    fn is_new(&self) -> bool {
        self.stat.st_uid == geteuid().as_raw() && self.stat.st_nlink == 1
    }

    fn id(&self) -> FileId {
        FileId { device: self.stat.st_dev, inode: self.stat.st_ino }
    }

    fn grant(&self, mode: u32, group: Option<Gid>) -> io::Result<()> {
        // chmod(2) takes no O_PATH descriptor, but its name in /proc, which leads to this very file.
        let name = format!("/proc/self/fd/{}", self.descriptor.as_raw_fd());
        std::fs::set_permissions(name, std::fs::Permissions::from_mode(mode))?;
        if let Some(group) = group {
            fchownat(self.descriptor.as_fd(), "", None, Some(group), AtFlags::AT_EMPTY_PATH)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_dead_sockets_file_is_taken_over_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (live, id) = bind_unix(&path, 0o600, None).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(bind_unix(&path, 0o600, None).unwrap_err().to_string().contains("another process"));
        drop(live);
        remove_own(&path, id);
        assert!(!path.exists());
        std::fs::write(&path, "x").unwrap();
        assert!(bind_unix(&path, 0o600, None).unwrap_err().to_string().contains("not a socket"));
        remove_own(&path, id);
        assert!(path.exists(), "a file that is not ours is not removed");
    }

    #[test]
    fn an_unknown_group_is_named_before_anything_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let error = bind_unix(&path, 0o600, Some("no-such-group")).unwrap_err();
        assert!(error.to_string().contains("no-such-group"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn permissions_and_removal_follow_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("s"), dir.path().join("victim"));
        let (_live, id) = bind_unix(&path, 0o600, None).unwrap();
        // Another user moves the socket away and puts a link to another file or socket at its path.
        std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        for is_socket in [false, true] {
            if is_socket {
                std::fs::remove_file(&victim).unwrap();
                drop(std::os::unix::net::UnixListener::bind(&victim).unwrap());
            } else {
                std::fs::write(&victim, "x").unwrap();
            }
            std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
            symlink(&victim, &path).unwrap();
            assert!(grant(&path, id, 0o666, None).is_err());
            assert!(bind_unix(&path, 0o666, None).is_err());
            remove_own(&path, id);
            remove_dead(&path);
            assert_eq!(mode(&victim), 0o600, "permissions went through the link");
            assert!(path.is_symlink(), "what is not ours was removed");
            std::fs::remove_file(&path).unwrap();
        }
        // A socket that another user had elsewhere, by a hard link.
        std::fs::hard_link(&victim, &path).unwrap();
        assert!(grant(&path, id, 0o666, None).is_err());
        let linked = Place::open(&path).unwrap().file().unwrap().unwrap();
        assert!(!linked.is_new(), "a file with two names is taken for a new one");
        assert_eq!(mode(&victim), 0o600);
    }

    #[test]
    fn a_directory_that_is_replaced_meanwhile_takes_nothing_along() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        std::fs::create_dir(&first).unwrap();
        std::fs::create_dir(&second).unwrap();
        let (in_first, in_second) = (first.join("s"), second.join("s"));
        drop(std::os::unix::net::UnixListener::bind(&in_first).unwrap());
        drop(std::os::unix::net::UnixListener::bind(&in_second).unwrap());
        let place = Place::open(&in_first).unwrap();
        std::fs::rename(&first, dir.path().join("away")).unwrap();
        symlink(&second, &first).unwrap();
        place.remove().unwrap();
        assert!(in_second.exists(), "the file in the other directory is gone");
        assert!(!dir.path().join("away/s").exists());
    }

    #[test]
    fn a_full_backlog_and_another_kind_of_socket_make_nobody_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        let waiting: Vec<_> = std::iter::from_fn(|| connect_unix(&path).ok()).take(10).collect();
        assert!(waiting.len() < 10, "the backlog has no end");
        assert_eq!(connect_unix(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(bind_unix(&path, 0o600, None).unwrap_err().to_string().contains("another process"));
        let datagrams = dir.path().join("d");
        let live = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
        assert!(bind_unix(&datagrams, 0o600, None).unwrap_err().to_string().contains("another kind"));
        assert!(bind_datagram(&path, 0o600, None).unwrap_err().to_string().contains("another kind"));
        assert!(bind_datagram(&datagrams, 0o600, None).unwrap_err().to_string().contains("another process"));
        drop(live);
        bind_datagram(&datagrams, 0o640, None).unwrap();
        assert_eq!(mode(&datagrams), 0o640);
    }
}
