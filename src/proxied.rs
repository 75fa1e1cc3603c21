//! Why nginx proxied a handshake instead of handing its client off: labels, and what an operator can do. May not enter: the
//! header in which nginx says so (`front/arrival.rs`).

/// Why nginx proxied a handshake instead of handing its client off, as nginx/webws-straight.lua says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxied {
    /// TLS ends in nginx.
    Tls,
    /// The request is a long-poll.
    Poll,
    /// The request is not HTTP/1.1.
    Protocol,
    /// The client reached nginx by a Unix socket.
    Unix,
    /// The request has a body.
    Body,
    /// nginx has read bytes behind the request.
    Ahead,
    /// The queue of handoffs was full.
    Full,
    /// webws did not listen for handoffs, or nginx may not send there.
    Away,
    /// nginx is not built as the script expects.
    Layout,
    /// Another reason.
    Other,
}

impl Proxied {
    pub(crate) const ALL: [Self; 10] = [
        Self::Tls,
        Self::Poll,
        Self::Protocol,
        Self::Unix,
        Self::Body,
        Self::Ahead,
        Self::Full,
        Self::Away,
        Self::Layout,
        Self::Other,
    ];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Poll => "poll",
            Self::Protocol => "protocol",
            Self::Unix => "unix",
            Self::Body => "body",
            Self::Ahead => "ahead",
            Self::Full => "full",
            Self::Away => "away",
            Self::Layout => "layout",
            Self::Other => "other",
        }
    }

    /// For an operator, with what to do where something can be done.
    pub(crate) fn explained(self) -> &'static str {
        match self {
            Self::Tls => "nginx terminates this client's TLS, so nginx alone has its keys",
            Self::Poll => "a poll is answered once, and its client keeps the connection to nginx for the next one",
            Self::Protocol => "the request came over another version than HTTP/1.1",
            Self::Unix => "the client reached nginx by a Unix socket",
            Self::Body => "the request has a body, which nginx reads",
            Self::Ahead => "the client sent more behind its request, and nginx has read that",
            Self::Full => "the queue of webws' handoff socket was full: raise net.unix.max_dgram_qlen",
            Self::Away => {
                "nginx cannot send to the handoff socket: it needs handoff:PATH in the setting listen, the same path as \
                 $webws_handoff in nginx, and a mode and group that nginx' workers may write to (nginx' error log has \
                 the errno)"
            }
            Self::Layout => "this nginx is not built as webws-straight.lua expects: its error log says what differs",
            Self::Other => "the script did not recognize the connection: see nginx' error log",
        }
    }

    /// From the value of X-Webws-Straight, `no; reason=tls`.
    pub(crate) fn of(value: &str) -> Self {
        let reason = value.split_once("reason=").map_or("", |(_, reason)| reason.trim());
        Self::ALL.into_iter().find(|proxied| proxied.label() == reason).unwrap_or(Self::Other)
    }
}
