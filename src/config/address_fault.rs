//! What is wrong with a broker's address, and which address the user probably meant. The address may hold a password,
//! so a message repeats nothing of it except a bare host and port. May not enter: the parser of an address
//! (`redis_url.rs`).

/// The mask that `webws check` and the log show instead of a password, and the mask of earlier versions.
const MASKS: [&str; 2] = ["<hidden>", "***"];

/// Schemes of other programs, and ours for the same address.
const SCHEMES: [(&str, &str); 12] = [
    ("tcp", "redis://"),
    ("http", "redis://"),
    ("https", "rediss://"),
    ("valkey", "redis://"),
    ("valkeys", "rediss://"),
    ("redis+tls", "rediss://"),
    ("redis+ssl", "rediss://"),
    ("tls", "rediss://"),
    ("redis-sentinel", "redis+sentinel://"),
    ("sentinel", "redis+sentinel://"),
    ("redis-cluster", "redis+cluster://"),
    ("redis-socket", "unix://"),
];

/// What is wrong with `text`. `part` is the address in it that cannot be read, `said` the parser's reason.
pub(super) fn explain(text: &str, part: &str, said: &str) -> String {
    if text.split_whitespace().skip(1).any(|part| !part.contains("://")) {
        return "a blank separates one address from the next, and the text after the blank is not an address: write a blank \
                in a password as %20"
            .to_owned();
    }
    let Some((scheme, _)) = part.split_once("://") else { return without_scheme(text, part) };
    if let Some((_, ours)) = SCHEMES.iter().find(|(other, _)| scheme.eq_ignore_ascii_case(other)) {
        return format!("'{}://' is not known here: write {ours}", scheme.to_ascii_lowercase());
    }
    match said {
        "empty host" => "its host is missing".to_owned(),
        "invalid port number" => "its port is not a number from 1 to 65535".to_owned(),
        said => said.to_owned(),
    }
}

fn without_scheme(text: &str, part: &str) -> String {
    if text.trim().is_empty() {
        return "it is empty".to_owned();
    }
    if part.eq_ignore_ascii_case("memory") {
        return "write \"memory\" in small letters".to_owned();
    }
    if let Some(scheme) = ["redis", "rediss", "unix"].iter().find(|scheme| part.starts_with(&format!("{scheme}:"))) {
        return format!("two slashes are missing: {scheme}://");
    }
    if part.starts_with('/') {
        return "a Unix socket is written unix:///PATH".to_owned();
    }
    match part.split_once(':') {
        _ if part.contains('@') => "its scheme is missing: redis:// goes before the user and the password".to_owned(),
        Some((host, port)) if is_host(host) && port.parse::<u16>().is_ok() => {
            format!("its scheme is missing: write redis://{part}")
        }
        _ => "its scheme is missing: write redis://HOST:PORT".to_owned(),
    }
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
}

/// Whether a password is a mask.
pub(super) fn is_mask(password: &str) -> bool {
    MASKS.contains(&password)
}

#[cfg(test)]
mod tests {
    use super::super::BrokerConfig;

    #[test]
    fn what_was_meant_is_said_and_no_password_repeated() {
        for (wrong, advice) in [
            ("localhost:6379", "write redis://localhost:6379"),
            ("redis.example", "write redis://HOST:PORT"),
            ("hunter2:x@localhost:6379", "scheme is missing"),
            ("hunter2@localhost", "scheme is missing"),
            ("web:hunter2", "scheme is missing"),
            ("Memory", "small letters"),
            ("redis:web:hunter2@localhost", "two slashes"),
            ("/run/redis.sock", "unix:///PATH"),
            ("redis://:hunter 2@localhost", "%20"),
            ("redis://localhost hunter2", "%20"),
            ("tcp://web:hunter2@localhost", "write redis://"),
            ("VALKEYS://localhost", "write rediss://"),
            ("hunter2://localhost", ""),
            ("redis://localhost:hunter2", "not a number"),
            ("redis://web:hunter2@", "host is missing"),
            ("redis://web:<hidden>@localhost", "mask"),
            ("redis://web:***@localhost", "mask"),
            ("redis://:%3Chidden%3E@localhost", "mask"),
            ("redis://***@localhost", "mask"),
            ("  ", "empty"),
        ] {
            let error = wrong.parse::<BrokerConfig>().unwrap_err().to_string();
            assert!(error.contains(advice) && !error.contains("hunter2"), "{wrong}: {error}");
        }
    }
}
