//! What a client makes of the bytes that it received: publications, positions, and that something may be missing.
//!
//! May not enter: sockets, whether that is right.

use crate::protocol::hub::NOT_KEPT;

/// Something that a client received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    /// A publication, and the position behind it, if it was told.
    Publication { payload: Vec<u8>, position: Option<String> },
    /// A position alone.
    Position(String),
    /// Something may be missing.
    Gap,
    /// The same, as the answer to the position with which the client came back: it starts over.
    NotRecovered,
}

impl Item {
    pub(crate) fn publication(payload: &[u8], position: Option<String>) -> Self {
        assert!(payload.ends_with(b"!"), "a publication is whole and no other's: {payload:?}");
        Self::Publication { payload: payload.to_vec(), position }
    }

    /// The position that the client has from it.
    pub(crate) fn position(&self) -> Option<&str> {
        match self {
            Self::Publication { position, .. } => position.as_deref(),
            Self::Position(position) => Some(position),
            Self::Gap | Self::NotRecovered => None,
        }
    }
}

fn gap(reason: &str) -> Item {
    if reason == NOT_KEPT { Item::NotRecovered } else { Item::Gap }
}

/// A message of nchan's subprotocol.
pub(crate) fn message(text: &str) -> Item {
    let (header, payload) = match text.strip_prefix('\n') {
        Some(payload) => ("", payload),
        None => text.split_once("\n\n").expect("a header ends with an empty line"),
    };
    if header == "event: gap" {
        return gap(payload);
    }
    let position = header.strip_prefix("id: ");
    if let Some(position) = position.and_then(|position| position.strip_suffix("\nevent: position")) {
        return Item::Position(position.to_owned());
    }
    Item::publication(payload.as_bytes(), position.map(str::to_owned))
}

/// A server-sent event, without its empty line.
pub(crate) fn event(text: &str) -> Item {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    let (position, data) = (field("id: "), field("data: "));
    match (field("event: ").as_deref(), data, position) {
        (Some("gap"), Some(reason), _) => gap(&reason),
        (None, Some(data), position) => Item::publication(data.as_bytes(), position),
        (None, None, Some(position)) => Item::Position(position),
        other => panic!("{text:?} is none of our events: {other:?}"),
    }
}
