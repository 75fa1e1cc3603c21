//! The real nginx with the configuration that the project ships.
//!
//! The shipped files are used as they are but for paths.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::client::Target;
use super::{Process, START, free_port, holds_within, read_log};

/// What somebody's site has around the shipped includes; `{at}` is the directory of its files.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Site<'a> {
    /// Outside of `http{}`, such as `load_module`.
    pub(crate) main: &'a str,
    pub(crate) http: &'a str,
    pub(crate) server: &'a str,
    /// The workers' user and group, if the tests run as root; root where it is empty.
    pub(crate) user: &'a str,
}

#[derive(Debug)]
pub(crate) struct Nginx {
    process: Process,
    addr: SocketAddr,
    dir: TempDir,
}

impl Nginx {
    /// Starts one nginx worker in front of that Unix socket.
    pub(crate) async fn start(webws_socket: &Path) -> Nginx {
        Nginx::start_with_workers(webws_socket, 1).await
    }

    pub(crate) async fn start_with_workers(webws_socket: &Path, workers: usize) -> Nginx {
        let dir = tempfile::tempdir().unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        ship_includes(&dir, webws_socket);
        std::fs::write(dir.path().join("nginx.conf"), main_conf(&dir, addr, workers, Site::default())).unwrap();
        Nginx::run(dir, addr).await
    }

    /// Starts it on a site of somebody's, with `edit` applied to each shipped file before it is used.
    pub(crate) async fn start_in(site: Site<'_>, webws_socket: &Path, edit: impl Fn(&str, String) -> String) -> Nginx {
        let dir = tempfile::tempdir().unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        ship_includes(&dir, webws_socket);
        ship_canary(&dir);
        edit_shipped(&dir, &SHIPPED[1..], edit);
        std::fs::write(dir.path().join("nginx.conf"), main_conf(&dir, addr, 1, site)).unwrap();
        check(&dir);
        Nginx::run(dir, addr).await
    }

    /// Starts the complete nginx.conf that is shipped, with `edit` applied to a file before it is used.
    pub(crate) async fn start_complete(webws_socket: &Path, edit: impl Fn(&str, String) -> String) -> Nginx {
        let dir = tempfile::tempdir().unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        ship_complete(&dir, "nginx.conf", webws_socket, addr);
        edit_shipped(&dir, &SHIPPED, edit);
        let told = check(&dir);
        assert!(!told.contains("[warn]"), "nginx -t: {told}");
        Nginx::run(dir, addr).await
    }

    /// Starts it on a site of somebody's that hands its clients off to the sidecar with these two sockets, with `edit`
    /// applied to each shipped file before it is used.
    pub(crate) async fn start_straight(
        site: Site<'_>,
        (webws_socket, handoff): (&Path, &Path),
        edit: impl Fn(&str, String) -> String,
    ) -> Nginx {
        let dir = tempfile::tempdir().unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        ship_includes(&dir, webws_socket);
        ship_canary(&dir);
        ship_straight(&dir, handoff);
        edit_shipped(&dir, &["webws-http.conf", STRAIGHT, "webws-straight.lua", "webws-access.conf"], edit);
        let site = Site { main: &format!("{LUA}\n{}", site.main), ..site };
        let conf = main_conf(&dir, addr, 1, site).replace("webws-location.conf", STRAIGHT);
        std::fs::write(dir.path().join("nginx.conf"), conf).unwrap();
        check(&dir);
        Nginx::run(dir, addr).await
    }

    /// Starts the complete nginx-straight.conf that is shipped.
    pub(crate) async fn start_complete_straight(webws_socket: &Path, handoff: &Path) -> Nginx {
        let dir = tempfile::tempdir().unwrap();
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        ship_complete(&dir, "nginx-straight.conf", webws_socket, addr);
        ship_straight(&dir, handoff);
        std::fs::rename(dir.path().join("nginx-straight.conf"), dir.path().join("nginx.conf")).unwrap();
        let told = check(&dir);
        assert!(!told.contains("[warn]"), "nginx -t: {told}");
        Nginx::run(dir, addr).await
    }

    async fn run(dir: TempDir, addr: SocketAddr) -> Nginx {
        let mut command = command(&dir);
        command.stderr(std::fs::File::create(dir.path().join("stderr.log")).unwrap());
        // SIGTERM: the master takes its workers along, which SIGKILL would orphan.
        let process = Process::spawn(&mut command, Signal::SIGTERM, "apt-get install nginx");
        let mut nginx = Nginx { process, addr, dir };
        let mut exit = None;
        let ready = holds_within(START, || {
            exit = nginx.process.exit_status();
            let ended = exit.is_some();
            async move { ended || TcpStream::connect(addr).await.is_ok() }
        })
        .await;
        assert!(ready && exit.is_none(), "nginx did not start ({exit:?}):\n{}", nginx.error_log());
        nginx
    }

    /// Stops it, as a service manager does, and starts it again on the same files.
    pub(crate) async fn restart(self) -> Nginx {
        let Nginx { process, addr, dir } = self;
        drop(process);
        Nginx::run(dir, addr).await
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn target(&self) -> Target {
        Target::Tcp(self.addr)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The processes that the master has.
    pub(crate) fn workers(&self) -> Vec<Pid> {
        let pids = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.pid())).unwrap();
        pids.split_whitespace().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }

    /// SIGHUP: nginx reads its configuration again with new workers.
    pub(crate) fn reload(&self) {
        self.process.signal(Signal::SIGHUP);
    }

    pub(crate) fn error_log(&self) -> String {
        ["error.log", "stderr.log"].map(|name| read_log(&self.dir.path().join(name))).concat()
    }

    /// Where its files are.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The access log that the shipped location writes.
    pub(crate) fn access_log(&self) -> String {
        read_log(&self.dir.path().join("webws.log"))
    }
}

/// What loads Debian's Lua module.
pub(crate) const LUA: &str = "load_module /usr/lib/nginx/modules/ndk_http_module.so;\n\
                              load_module /usr/lib/nginx/modules/ngx_http_lua_module.so;";

/// The location that hands clients off.
const STRAIGHT: &str = "webws-straight-location.conf";

/// The shipped files; the first is complete, the others are for its includes.
const SHIPPED: [&str; 5] =
    ["nginx.conf", "webws-http.conf", "webws-location.conf", "webws-canary.conf", "webws-access.conf"];

fn edit_shipped(dir: &TempDir, names: &[&str], edit: impl Fn(&str, String) -> String) {
    for name in names {
        let path = dir.path().join(name);
        std::fs::write(&path, edit(name, std::fs::read_to_string(&path).unwrap())).unwrap();
    }
}

/// `nginx -t`: what it says of a configuration that is valid.
fn check(dir: &TempDir) -> String {
    let tested = command(dir).arg("-t").stderr(Stdio::piped()).output();
    let tested = tested.unwrap_or_else(|e| panic!("cannot start nginx: {e}; get it with: apt-get install nginx"));
    let told = String::from_utf8_lossy(&tested.stderr).into_owned();
    assert!(tested.status.success(), "nginx -t: {told}");
    told
}

/// nginx on the nginx.conf in `dir`.
fn command(dir: &TempDir) -> Command {
    let at = dir.path().display();
    let mut command = Command::new("nginx");
    command
        .args(["-p", &at.to_string(), "-c", &format!("{at}/nginx.conf")])
        .args(["-e", &format!("{at}/error.log")])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn ship_includes(dir: &TempDir, webws_socket: &Path) {
    let log = format!("{}/webws.log", dir.path().display());
    let sidecar = format!("server unix:{}", webws_socket.display());
    ship(dir, "webws-http.conf", &[("server unix:/run/webws/webws.sock", &sidecar)]);
    ship(dir, "webws-location.conf", &[("/var/log/nginx/webws.log", &log)]);
}

fn ship_canary(dir: &TempDir) {
    let log = format!("{}/lua.log", dir.path().display());
    ship(dir, "webws-canary.conf", &[("/var/log/nginx/access.log", &log)]);
    ship(dir, "webws-access.conf", &[]);
}

/// The location that hands clients off, and its script.
fn ship_straight(dir: &TempDir, handoff: &Path) {
    let at = dir.path().display();
    let (log, script) = (format!("{at}/webws.log"), format!("{at}/webws-straight.lua"));
    let handoff = handoff.display().to_string();
    let moved = [
        ("/var/log/nginx/webws.log", &*log),
        ("/etc/nginx/webws-straight.lua", &*script),
        ("/run/webws/handoff.sock", &*handoff),
    ];
    ship(dir, STRAIGHT, &moved);
    ship(dir, "webws-straight.lua", &[]);
}

/// Everything nginx.conf needs; its addresses and the files it writes are moved, all else stays.
fn ship_complete(dir: &TempDir, name: &str, webws_socket: &Path, addr: SocketAddr) {
    let at = dir.path().display();
    ship_includes(dir, webws_socket);
    ship_canary(dir);
    // nginx's workers would be another user than root, who alone may enter `dir`.
    let user = if nix::unistd::geteuid().is_root() { "user root; daemon off;" } else { "daemon off;" };
    let (user, files) = (user.to_owned(), format!("{at}/nginx"));
    let (daemon, prefix, port) = match name {
        "nginx.conf" => ("daemon off;", "/tmp/webws-nginx", "127.0.0.1:8088"),
        _ => ("user nobody nogroup;\ndaemon off;", "/tmp/webws-straight", "127.0.0.1:8089"),
    };
    let port = format!("{port} reuseport");
    ship(dir, name, &[(daemon, &user), (prefix, &files), (&port, &format!("{addr} reuseport"))]);
    for folder in ["src", "examples"] {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        std::os::unix::fs::symlink(source, dir.path().join(folder)).unwrap();
    }
}

/// Copies one shipped file with replacements, of which each must find something.
fn ship(dir: &TempDir, name: &str, replacements: &[(&str, &str)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("nginx").join(name);
    let mut text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    for (from, to) in replacements {
        assert!(text.contains(from), "{name} no longer contains {from:?}");
        text = text.replace(from, to);
    }
    std::fs::write(dir.path().join(name), text).unwrap();
}

fn main_conf(dir: &TempDir, addr: SocketAddr, workers: usize, site: Site<'_>) -> String {
    let at = dir.path().display().to_string();
    let Site { main, http, server, user } = site;
    let user = match user {
        _ if !nix::unistd::geteuid().is_root() => String::new(),
        "" => "user root;".to_owned(),
        user => {
            // They read the script, and more, there.
            std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
            format!("user {user};")
        }
    };
    format!(
        r"daemon off; {user}
worker_processes {workers};
pid {{at}}/nginx.pid;
error_log {{at}}/error.log info;
{main}
events {{ worker_connections 20000; }}
http {{
    access_log off;
    client_body_temp_path {{at}}/body; proxy_temp_path {{at}}/proxy; fastcgi_temp_path {{at}}/fastcgi;
    uwsgi_temp_path {{at}}/uwsgi; scgi_temp_path {{at}}/scgi;
{http}
    include {{at}}/webws-http.conf;
    server {{
        listen {addr} backlog=4096;
{server}
        include {{at}}/webws-location.conf;
    }}
}}
"
    )
    .replace("{at}", &at)
}
