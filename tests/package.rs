//! Promise: the Debian package starts webws, reloads it at an upgrade and leaves nothing running behind. Its
//! scripts may be run again at any time.
//!
//! The scripts run for real, with programs that write down what is asked of them and directories of the test's
//! own. `booted/run.sh` does it with apt and systemd.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::support::program::told;

/// A machine as the scripts see it.
struct Machine {
    dir: TempDir,
}

/// What a script did: how it ended, what it asked of others (a line each), what it said.
struct Run {
    code: Option<i32>,
    asked: Vec<String>,
    said: String,
}

impl Machine {
    /// Run by systemd; webws and an instance of it are active.
    fn booted() -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(machine.path("run/systemd/system")).unwrap();
        std::fs::create_dir_all(machine.path("etc/systemd/system/multi-user.target.wants")).unwrap();
        machine.program(
            "systemctl",
            "case \"$1\" in list-units) for unit in webws webws@1; do echo $unit.service loaded active; done ;; esac",
        );
        // It knows what "remove" masked, as the real one does by a link and a file of its own.
        machine.program("deb-systemd-helper", &format!("case \"$1\" in unmask) rm -f {} ;; esac", machine.path(MASK)));
        machine.program("deb-systemd-invoke", "");
        machine
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// Writes down its arguments, then does what `body` says.
    fn program(&self, name: &str, body: &str) {
        let text = format!("#!/bin/sh\necho \"{name} $*\" >>{}\n{body}\n", self.path("asked"));
        std::fs::write(self.path(name), text).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Run {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(script);
        let mut text = std::fs::read_to_string(shipped).unwrap();
        for directory in ["/run/", "/etc/"] {
            text = text.replace(directory, &self.path(&directory[1..]));
        }
        let path = format!("{}:{}", self.dir.path().display(), std::env::var("PATH").unwrap());
        std::fs::write(self.path("asked"), "").unwrap();
        let output = Command::new("sh").args(["-c", &text, script]).args(arguments).env("PATH", path).output().unwrap();
        let (code, stdout, stderr) = told(&output);
        let asked = std::fs::read_to_string(self.path("asked")).unwrap().lines().map(str::to_owned).collect();
        Run { code, asked, said: stdout + &stderr }
    }
}

/// Where a unit is masked.
const MASK: &str = "etc/systemd/system/webws.service";

impl Run {
    /// How often something beginning like this was asked for, in a run that went well.
    fn count(&self, beginning: &str) -> usize {
        assert_eq!(self.code, Some(0), "{}", self.said);
        self.asked.iter().filter(|line| line.starts_with(beginning)).count()
    }

    fn has_asked(&self, line: &str) -> bool {
        self.count(line) > 0
    }
}

#[test]
fn a_first_installation_enables_and_starts() {
    let machine = Machine::booted();
    // Twice, as after an installation that was interrupted.
    for _ in 0..2 {
        let run = machine.run("postinst", &["configure", ""]);
        assert!(run.has_asked("deb-systemd-helper enable webws.service"), "{:?}", run.asked);
        assert!(run.has_asked("deb-systemd-invoke start webws.service"), "{:?}", run.asked);
        assert_eq!((run.count("systemctl reload"), run.said.as_str()), (0, ""));
    }
}

#[test]
fn an_upgrade_reloads_what_runs_and_starts_nothing() {
    let machine = Machine::booted();
    let run = machine.run("postinst", &["configure", "0.1.0"]);
    assert!(run.has_asked("systemctl reload webws.service") && run.has_asked("systemctl reload webws@1.service"));
    assert_eq!((run.count("deb-systemd-invoke"), run.count("systemctl start")), (0, 0), "{:?}", run.asked);
    let prerm = machine.run("prerm", &["upgrade", "0.2.0"]);
    assert_eq!((prerm.code, prerm.asked.len()), (Some(0), 0), "the process goes on until postinst");
}

#[test]
fn sockets_that_were_enabled_become_services_that_are_enabled() {
    let machine = Machine::booted();
    let wants = machine.path("etc/systemd/system/sockets.target.wants");
    std::fs::create_dir_all(&wants).unwrap();
    for name in ["webws", "webws@1", "webws@two"] {
        symlink("/usr/lib/systemd/system/webws.socket", format!("{wants}/{name}.socket")).unwrap();
    }
    let run = machine.run("postinst", &["configure", "0.1.0~previous"]);
    for unit in ["webws.service", "webws@1.service", "webws@two.service"] {
        assert!(run.has_asked(&format!("systemctl --quiet enable {unit}")), "{:?}", run.asked);
    }
    assert_eq!((run.count("systemctl --quiet enable"), std::fs::read_dir(wants).unwrap().count()), (3, 0));
}

#[test]
fn a_hand_over_that_fails_is_said_and_does_not_fail_the_package() {
    let machine = Machine::booted();
    let systemctl = std::fs::read_to_string(machine.path("systemctl")).unwrap();
    std::fs::write(machine.path("systemctl"), format!("{systemctl}\n[ \"$1\" != reload ]\n")).unwrap();
    let run = machine.run("postinst", &["configure", "0.1.0"]);
    assert_eq!(run.count("systemctl reload"), 2, "one that cannot is not in the way of the others");
    let said = "webws: webws@1.service did not hand over; the process of version 0.1.0 serves on";
    assert!(run.said.contains(said), "{}", run.said);
}

#[test]
fn an_installation_after_a_removal_starts_like_the_first() {
    let machine = Machine::booted();
    symlink("/dev/null", machine.path(MASK)).unwrap();
    let instance = machine.path("etc/systemd/system/multi-user.target.wants/webws@7.service");
    symlink("/usr/lib/systemd/system/webws@.service", instance).unwrap();
    let run = machine.run("postinst", &["configure", "0.1.0"]);
    assert!(run.has_asked("deb-systemd-invoke start webws.service webws@7.service"), "{:?}", run.asked);
    assert_eq!(run.count("systemctl reload"), 0);
    // An administrator's mask is not of a removal: whatever runs, instances, is reloaded.
    machine.program("deb-systemd-helper", "");
    symlink("/dev/null", machine.path(MASK)).unwrap();
    let run = machine.run("postinst", &["configure", "0.1.0"]);
    assert_eq!((run.count("deb-systemd-invoke"), run.count("systemctl reload")), (0, 2), "{:?}", run.asked);
}

#[test]
fn a_removal_stops_instances_and_sockets_and_a_purge_leaves_no_password() {
    let machine = Machine::booted();
    let run = machine.run("prerm", &["remove"]);
    let stop = "systemctl stop webws.service webws.socket webws@*.service webws@*.socket";
    assert!(run.has_asked(stop), "{:?}", run.asked);
    for directory in ["etc/webws", "run/webws"] {
        std::fs::create_dir_all(machine.path(directory)).unwrap();
    }
    std::fs::write(machine.path("etc/webws/redis-password"), "secret").unwrap();
    let instance = machine.path("etc/systemd/system/multi-user.target.wants/webws@7.service");
    symlink("/usr/lib/systemd/system/webws@.service", &instance).unwrap();
    let run = machine.run("postrm", &["remove"]);
    assert!(run.has_asked("deb-systemd-helper mask webws.service webws.socket"), "{:?}", run.asked);
    assert!(!Path::new(&machine.path("run/webws")).exists());
    assert!(Path::new(&machine.path("etc/webws/redis-password")).exists(), "a removal keeps settings");
    for _ in 0..2 {
        let run = machine.run("postrm", &["purge"]);
        assert!(run.has_asked("deb-systemd-helper purge webws.service webws.socket"), "{:?}", run.asked);
        assert!(!Path::new(&machine.path("etc/webws")).exists());
        assert!(std::fs::symlink_metadata(&instance).is_err());
    }
    for arguments in [["upgrade", "0.2.0"], ["failed-upgrade", "0.1.0"], ["abort-install", ""], ["disappear", "x"]] {
        assert_eq!(machine.run("postrm", &arguments).asked, Vec::<String>::new(), "{arguments:?}");
    }
}

#[test]
fn a_machine_without_systemd_is_left_alone() {
    let machine = Machine::booted();
    std::fs::remove_dir_all(machine.path("run/systemd")).unwrap();
    for (script, arguments) in [
        ("postinst", &["configure", "0.1.0"][..]),
        ("postinst", &["configure"]),
        ("prerm", &["remove"]),
        ("postrm", &["purge"]),
    ] {
        let run = machine.run(script, arguments);
        assert_eq!((run.count("systemctl"), run.count("deb-systemd-invoke")), (0, 0), "{script} {arguments:?}");
    }
}

/// What debian/build puts together belongs together.
#[test]
fn changelog_and_assets_are_those_of_this_version() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let changelog = std::fs::read_to_string(root.join("debian/changelog")).unwrap();
    let version = format!("webws ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&version), "debian/changelog begins with {version}");
    let manifest: toml::Table = std::fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    let mut targets = Vec::new();
    for asset in deb["assets"].as_array().unwrap() {
        let (source, target) = (asset[0].as_str().unwrap(), asset[1].as_str().unwrap());
        let is_built = source.starts_with("target/");
        let is_there = source.contains('*') || root.join(source).exists();
        assert!(is_built || is_there, "{source} is not there");
        targets.push(target);
    }
    assert!(targets.contains(&"usr/lib/systemd/system/") && targets.contains(&"usr/share/man/man8/"));
}
