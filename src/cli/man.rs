//! The man page webws(8): the command line from clap, and the sections that a person writes.
//!
//! May not enter: what a setting means (see the README's table).

use std::io::{self, Write};

use clap::CommandFactory;

use super::arguments::Cli;

/// The section after the synopsis.
const DESCRIPTION: &str = r#".SH DESCRIPTION
webws is a sidecar for nginx. It takes the WebSockets that nginx passes on and joins each to a channel of Redis
Pub/Sub. Every message published on the channel reaches every browser; webws publishes what a browser sends.
.PP
The service has two units: webws.service, which systemd starts at boot, and webws.socket, which holds the listening
socket. Both start and stop together. Several instances are webws@1.service, webws@2.service and so on; they share
the configuration file.
.TP
.B systemctl reload webws
exchanges the binary and the configuration. Every WebSocket stays connected and no message is lost. When the
new process cannot take over, the reload fails and the old process continues to serve.
.TP
.B systemctl restart webws
applies what systemd itself reads (the unit, its environment, credentials and limits). WebSockets stay
connected. Messages published during the restart are missing; the log calls this a gap. New clients wait.
.TP
.B systemctl stop webws
closes every WebSocket with 1001, and closes the listening socket, so that no client can start the service again.
"#;

/// The sections after the commands.
const SECTIONS: &str = r#".SH FILES
.TP
.I /etc/webws/webws.toml
Settings. An empty file is valid: all settings have defaults.
.TP
.I /etc/webws/redis\-password
Password of Redis for the drop\-in redis\-password.conf. Owner root, group webws\-redis, mode 0640.
.TP
.I /etc/systemd/system/webws.service.d/
Place for the drop\-ins that an administrator copies from /usr/share/webws/systemd.
.TP
.I /run/webws/webws.sock
Socket for nginx; an instance has /run/webws/INSTANCE.sock.
.TP
.I /run/webws\-control/control.sock
Control socket of the service, for root; an instance has /run/webws\-control\-INSTANCE/control.sock.
.TP
.I /usr/share/webws/nginx/
Files to include in nginx' configuration, and a complete nginx.conf to try.
.TP
.I /usr/share/webws/systemd/
Drop\-ins: redis\-password.conf, redis\-remote.conf and redis\-unix.conf for webws.service, nginx\-limits.conf
for nginx.service.
.SH ENVIRONMENT
.TP
.B WEBWS_LOG
The setting log: error, warn, info, debug, trace or off, or a filter of Rust's tracing, for example webws=debug.
Default: info. "webws log" changes the level of a running webws.
.TP
.B WEBWS_<SETTING>
A setting of the file, in capitals; WEBWS_WORKERS=2 is "workers = 2". Two underscores go into a table:
WEBWS_REDIS__USERNAME=web. An environment variable overrides the file; an option overrides both.
.TP
.B CREDENTIALS_DIRECTORY
Set by systemd (LoadCredential=). The file redis\-password in it is the password of Redis, and the file
redis\-sentinel\-password the password of the Sentinels. systemd copies both when the unit starts.
.TP
.BR LISTEN_FDS ", " LISTEN_FDNAMES ", " LISTEN_PID ", " NOTIFY_SOCKET ", " WATCHDOG_USEC ", " WATCHDOG_PID ", " JOURNAL_STREAM
Set by systemd: sockets, readiness, watchdog and journal.
.SH "EXIT STATUS"
.TP
.B 0
Done, or stopped by a signal.
.TP
.B 1
The command or the service failed; stderr or the journal says why.
.TP
.B 64
Wrong arguments.
.TP
.B 78
Wrong settings.
.SH EXAMPLES
.TP
Try webws without Redis:
webws dev
.TP
Check the settings, and print those in force:
webws check \-\-config /etc/webws/webws.toml
.TP
Ask whether nginx hands its clients off to webws, and why not:
webws check \-\-nginx http://127.0.0.1/webws
.TP
Apply changed settings while every WebSocket stays connected:
systemctl reload webws
.TP
Show today's warnings and errors:
journalctl \-u webws \-p warning \-\-since today
.TP
Ask whether webws serves and reaches Redis:
curl \-\-unix\-socket /run/webws/webws.sock http://localhost/readyz
.TP
Start two instances, now and at boot:
systemctl enable \-\-now webws@1.service webws@2.service
.TP
Set the password of Redis:
groupadd \-\-system webws\-redis
.br
install \-o root \-g webws\-redis \-m 0640 /dev/null /etc/webws/redis\-password
.br
editor /etc/webws/redis\-password
.br
install \-D \-m 644 \-t /etc/systemd/system/webws.service.d /usr/share/webws/systemd/redis\-password.conf
.br
systemctl daemon\-reload && systemctl restart webws
.SH "SEE ALSO"
.BR nginx (8),
.BR redis\-server (1),
.BR systemd.socket (5),
.BR systemd.exec (5);
/usr/share/doc/webws/README.md has all settings.
"#;

/// Writes the page. Each subcommand's options are a section.
///
/// # Errors
/// When `out` cannot be written to.
pub(crate) fn write(out: &mut Vec<u8>) -> io::Result<()> {
    let mut command = Cli::command();
    command.build();
    let page = clap_mangen::Man::new(command.clone()).section("8").manual("System Manager's Manual");
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    out.extend_from_slice(DESCRIPTION.as_bytes());
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        let man = clap_mangen::Man::new(subcommand.clone());
        writeln!(out, ".SH \"WEBWS {}\"", subcommand.get_name().to_uppercase())?;
        writeln!(out, "{}", subcommand.get_about().map(ToString::to_string).unwrap_or_default())?;
        let mut options = Vec::new();
        man.render_options_section(&mut options)?;
        // The heading above replaces this one.
        let options = String::from_utf8_lossy(&options).replace(".SH OPTIONS\n", "");
        out.extend_from_slice(options.as_bytes());
    }
    out.extend_from_slice(SECTIONS.as_bytes());
    let mut notes = Vec::new();
    page.render_extra_section(&mut notes)?;
    out.extend_from_slice(String::from_utf8_lossy(&notes).replace(".SH EXTRA\n", ".SH NOTES\n").as_bytes());
    page.render_version_section(out)
}
