//! TLS to a port without TLS, and plain text to a TLS port: both look like other faults. May not enter: other faults of
//! a link (`error.rs`).

use std::io::ErrorKind;

use super::error::{LinkError, Step};
use crate::config::RedisAddress;

/// Adds advice about the scheme to an error before the first answer.
pub(super) fn explain(address: &RedisAddress, error: LinkError) -> LinkError {
    let is_tls = match address {
        RedisAddress::Tcp(..) => false,
        RedisAddress::Tls(..) => true,
        _ => return error,
    };
    match (is_tls, &error) {
        // A TLS port ends a connection that does not begin with TLS.
        (false, LinkError::Refused(why, _) | LinkError::Ended(why)) if why.is_connection_dropped() => {}
        (false, LinkError::Unreachable(_, why))
            if matches!(why.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe) => {}
        (false, LinkError::Closed) => {}
        // Redis waits for the end of a line, or answers with text.
        (true, LinkError::Late { step: Step::Tls, .. }) => {}
        (true, LinkError::Unreachable(_, why)) if why.to_string().contains("InvalidContentType") => {}
        _ => return error,
    }
    let advice = if is_tls {
        "if this port does not speak TLS, write redis:// instead of rediss://"
    } else {
        "if this port speaks TLS, write rediss:// instead of redis://"
    };
    LinkError::WrongPort(Box::new(error), advice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_a_wrong_scheme_looks_like_has_the_other_one_in_its_sentence() {
        let (tcp, tls) = (RedisAddress::Tcp("a".to_owned(), 1), RedisAddress::Tls("a".to_owned(), 1));
        let unreachable = |error| LinkError::Unreachable("redis://a:1".to_owned(), error);
        let silent =
            || LinkError::Late { step: Step::Tls, address: "127.0.0.1:1".to_owned(), limit: Duration::from_secs(2) };
        for (address, error, expected) in [
            (&tcp, LinkError::Closed, "write rediss://"),
            (&tcp, unreachable(ErrorKind::ConnectionReset.into()), "write rediss://"),
            (&tcp, unreachable(ErrorKind::ConnectionRefused.into()), ""),
            (&tcp, LinkError::Silent("redis://a:1".to_owned(), Duration::from_secs(2)), ""),
            (&tls, silent(), "write redis://"),
            (
                &tls,
                unreachable(std::io::Error::other("received corrupt message of type InvalidContentType")),
                "write redis://",
            ),
            (&tls, unreachable(ErrorKind::ConnectionRefused.into()), ""),
            (&tls, LinkError::Moved("b".to_owned(), 2), ""),
        ] {
            let said = explain(address, error).to_string();
            assert_eq!(said.contains("write redis"), !expected.is_empty(), "{said}");
            assert!(said.contains(expected), "{said}");
        }
    }
}
