//! Keys and certificates, made by openssl as people make them.

use std::path::Path;
use std::process::Command;

/// What `openssl` with `arguments`, split at blanks, does in `dir`.
pub(crate) fn openssl(dir: &Path, arguments: &str) {
    let made = Command::new("openssl").args(arguments.split_whitespace()).current_dir(dir).output();
    let made = made.unwrap_or_else(|e| panic!("cannot start openssl: {e}; get it with: apt-get install openssl"));
    assert!(made.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&made.stderr));
}

/// How a new key is asked for.
pub(crate) const NEW_KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// An authority NAME.pem with its key NAME.key.
pub(crate) fn authority(dir: &Path, name: &str) {
    openssl(dir, &format!("req -x509 {NEW_KEY} -keyout {name}.key -out {name}.pem -subj /CN={name} -days 2"));
}

/// A certificate server.pem with the subject `/CN=SUBJECT`, from the authority called `by`, with `extensions`;
/// without any it is of version 1.
pub(crate) fn certificate(dir: &Path, by: &str, subject: &str, extensions: &str) {
    openssl(dir, &format!("req -new {NEW_KEY} -keyout server.key -out server.csr -subj /CN={subject}"));
    sign(dir, by, "-days 2", extensions);
}

/// Signs server.csr.
pub(crate) fn sign(dir: &Path, by: &str, dates: &str, extensions: &str) {
    let by = format!("-CA {by}.pem -CAkey {by}.key -CAcreateserial");
    let extended = if extensions.is_empty() {
        ""
    } else {
        std::fs::write(dir.join("server.ext"), format!("{extensions}\n")).unwrap();
        "-extfile server.ext"
    };
    openssl(dir, &format!("x509 -req -in server.csr {by} -out server.pem {dates} {extended}"));
}

/// The extensions of a good one.
pub(crate) fn for_names(names: &str) -> String {
    format!("basicConstraints=critical,CA:FALSE\nsubjectAltName={names}")
}
