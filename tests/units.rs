//! Promise: systemd takes the units and their drop-ins without a word, and they expose little.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::program::told;

/// At most this much exposure (`systemd-analyze security`: 0 is none, 10 all).
const MAX_EXPOSURE: f64 = 1.2;
/// The drop-ins for webws itself.
const DROP_INS: [&str; 3] = ["redis-password.conf", "redis-unix.conf", "redis-remote.conf"];
const UNITS: [&str; 4] = ["webws.service", "webws.socket", "webws@.service", "webws@.socket"];
/// The Debian package's scripts, which `package.rs` runs.
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

/// A copy of the units that starts the binary of this build.
fn copy(dir: &Path) {
    for unit in UNITS {
        let text = std::fs::read_to_string(shipped().join(unit)).unwrap();
        let is_service = unit.ends_with(".service");
        assert_eq!(text.matches("=/usr/bin/webws ").count(), if is_service { 3 } else { 0 }, "{unit}");
        let built = format!("={} ", env!("CARGO_BIN_EXE_webws"));
        std::fs::write(dir.join(unit), text.replace("=/usr/bin/webws ", &built)).unwrap();
    }
}

/// Puts a drop-in beside the `unit` in `dir`.
fn drop_in(dir: &Path, unit: &str, name: &str) {
    let directory = dir.join(format!("{unit}.d"));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::copy(shipped().join(name), directory.join(name)).unwrap();
}

fn analyze(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("systemd-analyze");
    // The trailing colon keeps the system's own units findable.
    command.args(arguments).env("SYSTEMD_UNIT_PATH", format!("{}:", dir.display())).current_dir(dir);
    command
        .output()
        .unwrap_or_else(|e| panic!("cannot start systemd-analyze: {e}; get it with: apt-get install systemd"))
}

/// Says nothing about these units, or the test fails.
fn verify(dir: &Path, units: &[&str]) {
    let verified = analyze(dir, &[&["verify", "--man=no"], units].concat());
    assert_eq!(told(&verified), (Some(0), String::new(), String::new()), "{units:?}");
}

fn exposure(dir: &Path, unit: &str) -> f64 {
    let (code, stdout, stderr) = told(&analyze(dir, &["security", "--offline=true", "--no-pager", unit]));
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let line = stdout.lines().find(|line| line.contains("Overall exposure level"));
    let line = line.unwrap_or_else(|| panic!("no overall exposure: {stdout}{stderr}"));
    let figure = line.split_once(": ").unwrap().1.split(' ').next().unwrap();
    figure.parse().unwrap_or_else(|e| panic!("{e}: {line}"))
}

#[test]
fn systemd_finds_no_fault_in_the_units() {
    let dir = tempfile::tempdir().unwrap();
    copy(dir.path());
    verify(dir.path(), &["webws.service", "webws.socket", "webws@1.service", "webws@1.socket"]);
}

#[test]
fn systemd_finds_no_fault_in_the_drop_ins() {
    for name in DROP_INS {
        let dir = tempfile::tempdir().unwrap();
        copy(dir.path());
        drop_in(dir.path(), "webws.service", name);
        drop_in(dir.path(), "webws@.service", name);
        verify(dir.path(), &["webws.service", "webws@1.service"]);
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("nginx.service"), "[Service]\nExecStart=/bin/true\n").unwrap();
    drop_in(dir.path(), "nginx.service", "nginx-limits.conf");
    verify(dir.path(), &["nginx.service"]);
    let known = DROP_INS.iter().chain(&UNITS).chain(&SCRIPTS).chain(&["nginx-limits.conf", "webws.toml"]);
    let files = std::fs::read_dir(shipped()).unwrap().count();
    assert_eq!(files, known.count(), "a file in systemd/ that no test knows");
}

#[test]
fn exposure_is_low_with_and_without_each_drop_in() {
    for name in [None].into_iter().chain(DROP_INS.map(Some)) {
        let dir = tempfile::tempdir().unwrap();
        copy(dir.path());
        if let Some(name) = name {
            drop_in(dir.path(), "webws.service", name);
            drop_in(dir.path(), "webws@.service", name);
        }
        for unit in ["webws.service", "webws@1.service"] {
            let exposure = exposure(dir.path(), unit);
            assert!(exposure <= MAX_EXPOSURE, "{unit} with {name:?}: {exposure}");
        }
    }
}

/// What an instance has of its own. The rest is the same text twice, and stays so.
#[test]
fn an_instance_differs_from_the_service_by_its_name_only() {
    for (unit, template) in UNITS[..2].iter().zip(&UNITS[2..]) {
        let read = |name| std::fs::read_to_string(shipped().join(name)).unwrap();
        let mut expected = read(unit);
        for (of_unit, of_instance) in [
            ("webws.socket", "webws@%i.socket"),
            ("webws.service", "webws@%i.service"),
            ("webws/webws.sock", "webws/%i.sock"),
            ("webws/handoff.sock", "webws/%i-handoff.sock"),
            ("webws-control", "webws-control-%i"),
        ] {
            expected = expected.replace(of_unit, of_instance);
        }
        let lines = |text: &str| text.lines().map(|line| line.trim_end_matches(" (instance %i)").to_owned()).collect();
        let (expected, found): (Vec<String>, Vec<String>) = (lines(&expected), lines(&read(template)));
        assert_eq!(expected, found, "{unit} and {template}");
    }
}

#[test]
fn the_shipped_settings_are_the_defaults() {
    let text = std::fs::read_to_string(shipped().join("webws.toml")).unwrap();
    assert_eq!(webws::Config::read("webws.toml", &text, []).unwrap(), webws::Config::default());
    let bare: String = text.lines().skip(3).map(|line| format!("{}\n", line.trim_start_matches("# "))).collect();
    assert_eq!(webws::Config::read("webws.toml", &bare, []).unwrap(), webws::Config::default());
}

/// Else the three tests above could be blind.
#[test]
fn faults_and_openness_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    copy(dir.path());
    drop_in(dir.path(), "webws.service", "redis-remote.conf");
    let drop_in = dir.path().join("webws.service.d/redis-remote.conf");
    std::fs::write(drop_in, "[Service]\nNonsense=1\nCapabilityBoundingSet=CAP_SYS_ADMIN\nPrivateDevices=no\n").unwrap();
    assert!(exposure(dir.path(), "webws.service") > MAX_EXPOSURE);
    assert!(told(&analyze(dir.path(), &["verify", "--man=no", "webws.service"])).2.contains("Nonsense"));
}
