//! Every reason for which a session ends, in one table: close code and text, metric label, and whether the client
//! should connect again.
//!
//! Close codes are those of RFC 6455 §7.4.1 and the IANA registry (1012, 1013), and 4401 of the private range.
//! May not enter: when a session ends (`protocol/session`).

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum CloseReason {
    /// The client sent a close frame.
    ClientClosed,
    /// The client went without a close frame: FIN, RST or an error on the socket.
    ClientGone,
    /// The client broke RFC 6455.
    ProtocolError,
    /// A text message was not UTF-8 (RFC 6455 §8.1).
    InvalidText,
    /// A frame or message was longer than the endpoint allows.
    TooBig,
    /// The client sent a message on an endpoint whose clients may not publish.
    PublishDenied,
    /// The client sent faster than the endpoint allows (`rate`).
    TooFast,
    /// The client sent a binary message on an endpoint that takes none.
    BinaryRefused,
    /// More bytes waited for the client than the endpoint allows.
    SlowConsumer,
    /// The process has spent its memory (`limits.memory`), and this session used most of it.
    Memory,
    /// The client's socket took nothing for `stall_timeout`.
    Stalled,
    /// The client sent no byte for `idle_timeout`.
    Silent,
    /// A message of the client could not be published in time, or its fate is unknown.
    NotPublished,
    /// The broker no longer allows the subscription of the channel.
    SubscriptionLost,
    /// Publications may be missing, and the endpoint closes its sessions for that (`on_gap`).
    Gap,
    /// What the client was allowed has ended.
    Expired,
    /// The sidecar stops.
    GoingAway,
    /// A client that polls has its answer.
    Answered,
    /// A fault in webws.
    Internal,
}

/// What a [`CloseReason`] means on the wire and in the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CloseRow {
    /// The code of our close frame; `None` where no frame of ours is sent
    /// (a client's own close is answered by the wire, a gone client by nothing, a poll by its answer).
    pub(crate) code: Option<u16>,
    /// The reason in the close frame, ≤ 123 bytes (RFC 6455 §5.5).
    pub(crate) text: &'static str,
    /// The metric label.
    pub(crate) label: &'static str,
    /// Whether a client should connect again. Documentation for clients, shown in the README's table.
    pub(crate) come_back: bool,
}

impl CloseReason {
    /// All reasons, in the order of the table in the README.
    pub(crate) const ALL: [CloseReason; 19] = [
        Self::ClientClosed,
        Self::ClientGone,
        Self::ProtocolError,
        Self::InvalidText,
        Self::TooBig,
        Self::PublishDenied,
        Self::TooFast,
        Self::BinaryRefused,
        Self::SlowConsumer,
        Self::Memory,
        Self::Stalled,
        Self::Silent,
        Self::NotPublished,
        Self::SubscriptionLost,
        Self::Gap,
        Self::Expired,
        Self::GoingAway,
        Self::Answered,
        Self::Internal,
    ];

    /// The table.
    pub(crate) const fn row(self) -> CloseRow {
        let (code, text, label, come_back) = match self {
            Self::ClientClosed => (None, "", "client_closed", false),
            Self::ClientGone => (None, "", "client_gone", true),
            Self::ProtocolError => (Some(1002), "protocol error", "protocol_error", false),
            Self::InvalidText => (Some(1007), "text is not UTF-8", "invalid_text", false),
            Self::TooBig => (Some(1009), "message too big", "too_big", false),
            Self::PublishDenied => (Some(1008), "publishing is not allowed here", "publish_denied", false),
            Self::TooFast => (Some(1008), "messages come too fast", "too_fast", false),
            Self::BinaryRefused => {
                (Some(1003), "binary messages are not taken here: send texts", "binary_refused", false)
            }
            Self::SlowConsumer => (Some(1013), "too many bytes waiting: read faster", "slow_consumer", true),
            Self::Memory => (Some(1013), "the server is short of memory: read faster", "memory", true),
            Self::Stalled => (Some(1013), "no progress: nothing was read in time", "stalled", true),
            Self::Silent => (Some(1001), "no sign of life from the client", "silent", true),
            Self::NotPublished => {
                (Some(1013), "a message could not be published: try again later", "not_published", true)
            }
            Self::SubscriptionLost => {
                (Some(1013), "the channel cannot be subscribed: try again later", "subscription_lost", true)
            }
            Self::Gap => (Some(1012), "messages may be missing: connect again and fetch", "gap", true),
            Self::Expired => {
                (Some(4401), "the permission has expired: ask for another and connect again", "expired", true)
            }
            Self::GoingAway => (Some(1001), "the server is shutting down: connect again", "going_away", true),
            Self::Answered => (None, "", "answered", true),
            Self::Internal => (Some(1011), "internal error", "internal", true),
        };
        CloseRow { code, text, label, come_back }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_fits_a_control_frame_and_has_its_own_label() {
        let mut labels = std::collections::HashSet::new();
        for reason in CloseReason::ALL {
            let row = reason.row();
            assert!(row.text.len() <= 123, "{reason:?}");
            assert!(labels.insert(row.label), "{reason:?}");
        }
    }

    /// What the test page does after a close is what clients are advised to do.
    #[test]
    fn the_test_page_comes_back_exactly_when_it_should() {
        let page = include_str!("front/page/transport.js");
        for reason in CloseReason::ALL {
            let CloseRow { code: Some(code), come_back, .. } = reason.row() else { continue };
            let start = format!("  {code}: [");
            let line = page.lines().find(|line| line.starts_with(&start)).unwrap();
            assert!(line.ends_with(&format!(", {come_back}],")), "{reason:?}: {line}");
        }
    }
}
