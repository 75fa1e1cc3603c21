//! The binary's settings: the file, the environment, the options; and the control sockets of the shipped
//! units.
//!
//! May not enter: what a setting means.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use webws::binary::{self, Reading};
use webws::{BrokerConfig, Config, EndpointConfig, HistoryConfig, Listen};

/// A longer file is not a configuration of webws.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Where the shipped units put their runtime directories (`%t` in systemd.unit(5)).
const RUNTIME_DIRECTORY: &str = "/run";
/// The shipped units' `RuntimeDirectory=`; an instance appends a dash and its name.
const CONTROL_DIRECTORY: &str = "webws-control";
const CONTROL_SOCKET: &str = "control.sock";

/// Messages about the settings, for when the log has started.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    warnings: Vec<String>,
    unused: Vec<String>,
}

impl Notes {
    pub(crate) fn of(reading: &mut Reading) -> Self {
        let (warnings, unused) = (std::mem::take(&mut reading.warnings), std::mem::take(&mut reading.unused));
        Self { warnings, unused }
    }

    pub(crate) fn log(&self) {
        self.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        self.unused.iter().for_each(|unused| tracing::debug!("{unused}"));
    }

    pub(crate) fn warnings(&self) -> impl Iterator<Item = &str> {
        self.warnings.iter().map(String::as_str)
    }

    /// Warns of a password in `--broker`, which every user can read.
    pub(crate) fn note_broker(&mut self, broker: Option<&BrokerConfig>) {
        if broker.is_some_and(BrokerConfig::has_password) {
            self.warnings.push(
                "every user of this machine can read the password in --broker (ps): put it into a file \
                 (redis.password_file), into systemd's credential redis-password, or the address into WEBWS_BROKER"
                    .to_owned(),
            );
        }
    }
}

/// Reads the file, if there is one, and the environment.
///
/// # Errors
/// When the file cannot be read, in a sentence.
pub(crate) fn read(file: Option<&Path>) -> Result<Reading, String> {
    let (name, text) = match file {
        None => ("configuration".to_owned(), String::new()),
        Some(path) => (path.display().to_string(), text(path)?),
    };
    // A setting that is not UTF-8 is refused by its name.
    let environment = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()));
    Ok(binary::examine(&name, &text, environment))
}

fn text(path: &Path) -> Result<String, String> {
    let name = path.display();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => "; check the path after --config",
            io::ErrorKind::PermissionDenied => "; the user that webws runs as must be able to read it",
            io::ErrorKind::IsADirectory => "; name the file in it",
            _ => "",
        };
        format!("the configuration file {name} cannot be read: {error}{advice}")
    })?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("the configuration file {name} is larger than 1 MiB, so it is probably the wrong file"));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(format!("the configuration file {name} is UTF-16: save it as UTF-8"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        format!("the configuration file {name} is not UTF-8 (line {line}): save it as UTF-8")
    })
}

/// Adapts the settings of the file and the environment for `webws dev`. The addresses to listen on have their own
/// defaults; so do the broker and the endpoints without a file.
pub(crate) fn dev(config: &mut Config, file: Option<&Path>, broker: Option<BrokerConfig>, listen: Vec<Listen>) {
    // The file's control socket belongs to another server.
    config.control = None;
    let is_unset = |name: &str| std::env::var_os(name).is_none_or(|value| value.is_empty());
    if !listen.is_empty() {
        config.listen = listen;
    } else if is_unset("WEBWS_LISTEN") {
        let socket = std::env::temp_dir().join("webws-dev.sock");
        config.listen = vec![Listen::Tcp(([127, 0, 0, 1], 8080).into()), Listen::Unix(socket)];
    }
    if let Some(broker) = broker {
        config.broker = broker;
    } else if file.is_none() && is_unset("WEBWS_BROKER") {
        config.broker = BrokerConfig::Memory;
    }
    if file.is_none() {
        config.endpoints.push(EndpointConfig::plain());
        // The page shows what a client that comes back gets.
        config.endpoints.iter_mut().for_each(|endpoint| endpoint.history = Some(HistoryConfig::default()));
    }
    if config.broker == BrokerConfig::Memory && file.is_none() && is_unset("WEBWS_WORKERS") {
        // Without Redis, a position means something to its worker only.
        config.workers = 1;
    }
}

/// The control socket of the shipped units.
///
/// # Errors
/// When there is none, or several instances have one, in a sentence.
pub(crate) fn shipped_control() -> Result<PathBuf, String> {
    find_control(Path::new(RUNTIME_DIRECTORY))
}

fn find_control(directory: &Path) -> Result<PathBuf, String> {
    let is_there = |socket: &PathBuf| match socket.try_exists() {
        Ok(is_there) => is_there,
        // The socket may exist, and only root may look. The later request reports this.
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    };
    let main = directory.join(CONTROL_DIRECTORY).join(CONTROL_SOCKET);
    if is_there(&main) {
        return Ok(main);
    }
    let of_instances = format!("{CONTROL_DIRECTORY}-");
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let instances = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&of_instances));
    let mut sockets: Vec<_> = instances.map(|entry| entry.path().join(CONTROL_SOCKET)).filter(is_there).collect();
    sockets.sort();
    match (sockets.pop(), sockets.len()) {
        (Some(only), 0) => Ok(only),
        (Some(last), _) => {
            sockets.push(last);
            let all: Vec<_> = sockets.iter().map(|socket| socket.display().to_string()).collect();
            Err(format!("several instances are running: choose one with --control: {}", all.join(", ")))
        }
        (None, _) => Err(format!(
            "no control socket was found: give the control socket of the running webws with --control, or its \
             configuration file with --config (the file must set control; the shipped units use \"{}\")",
            main.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_units_control_socket_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find_control(dir.path()).unwrap_err().contains("--control"));
        let make = |name: &str| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join(CONTROL_SOCKET), "").unwrap();
        };
        make("webws-control-a");
        assert_eq!(find_control(dir.path()).unwrap(), dir.path().join("webws-control-a/control.sock"));
        make("webws-control-b");
        let several = find_control(dir.path()).unwrap_err();
        assert!(several.contains("control-a/") && several.contains("control-b/"), "{several}");
        make("webws-control");
        assert_eq!(find_control(dir.path()).unwrap(), dir.path().join("webws-control/control.sock"));
    }
}
