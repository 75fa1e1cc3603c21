//! The real nginx with the configuration that the project ships.
//!
//! Both shipped files are used as they are but for two paths.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use tempfile::TempDir;
use tokio::net::TcpStream;

use super::client::Target;
use super::{Process, START, free_port, holds_within, read_log};

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
        let at = dir.path().display();
        let sidecar = format!("server unix:{}", webws_socket.display());
        ship(&dir, "webws-http.conf", "server unix:/run/webws/webws.sock", &sidecar);
        ship(&dir, "webws-location.conf", "/var/log/nginx/webws.log", &format!("{at}/webws.log"));
        std::fs::write(dir.path().join("nginx.conf"), main_conf(&dir, addr, workers)).unwrap();
        let mut command = Command::new("nginx");
        command
            .args(["-p", &at.to_string(), "-c", &format!("{at}/nginx.conf")])
            .args(["-e", &format!("{at}/error.log")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
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

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn target(&self) -> Target {
        Target::Tcp(self.addr)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// SIGHUP: nginx reads its configuration again with new workers.
    pub(crate) fn reload(&self) {
        self.process.signal(Signal::SIGHUP);
    }

    pub(crate) fn error_log(&self) -> String {
        read_log(&self.dir.path().join("error.log"))
    }

    /// The access log that the shipped location writes.
    pub(crate) fn access_log(&self) -> String {
        read_log(&self.dir.path().join("webws.log"))
    }
}

/// Copies one shipped file, with `from`, which must be in it, replaced by `to`.
fn ship(dir: &TempDir, name: &str, from: &str, to: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("nginx").join(name);
    let shipped = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
    assert!(shipped.contains(from), "{name} no longer contains {from:?}");
    std::fs::write(dir.path().join(name), shipped.replace(from, to)).unwrap();
}

fn main_conf(dir: &TempDir, addr: SocketAddr, workers: usize) -> String {
    let at = dir.path().display();
    let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
    format!(
        r"daemon off; {user}
worker_processes {workers};
pid {at}/nginx.pid;
error_log {at}/error.log info;
events {{ worker_connections 20000; }}
http {{
    access_log off;
    client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
    include {at}/webws-http.conf;
    server {{
        listen {addr} backlog=4096;
        include {at}/webws-location.conf;
    }}
}}
"
    )
}
