//! Faults that tests inject into a hand-over, in builds with the feature `internals` only.
//!
//! The variable `HANDOVER_FAULT` names a file. The file holds `abort POINT`, `hang POINT`, or `format FORMAT OLDEST`,
//! which makes this process announce another version of the protocol. May not enter: what a release does.

/// A point of the new process' side at which a fault can be injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// Links and subscriptions are made; the old process has not been told.
    Ready,
    /// The old process has been told; no session has been taken.
    AfterReady,
    /// A message with sessions has been taken, and not acknowledged.
    Sessions,
    /// All sessions have been taken; the old process has not been told.
    Adopted,
    /// The old process has said `Commit`; this one has not said `Serving`.
    Commit,
}

/// The file's content, split at blanks.
#[cfg(feature = "internals")]
fn asked() -> Vec<String> {
    let text = std::env::var_os("HANDOVER_FAULT").and_then(|path| std::fs::read_to_string(path).ok());
    text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Injects the fault that the file names for this point, if any.
#[cfg(feature = "internals")]
pub(crate) fn at(point: Point) {
    let words = asked();
    if words.get(1) != Some(&format!("{point:?}")) {
        return;
    }
    match words.first().map(String::as_str) {
        Some("abort") => std::process::abort(),
        Some("hang") => loop {
            std::thread::park();
        },
        _ => {}
    }
}

/// The protocol format that the file names instead of our own, with the oldest format that it understands.
#[cfg(feature = "internals")]
pub(crate) fn format() -> Option<(u32, u32)> {
    match asked().as_slice() {
        [word, format, oldest] if word == "format" => Some((format.parse().ok()?, oldest.parse().ok()?)),
        _ => None,
    }
}

#[cfg(not(feature = "internals"))]
pub(crate) fn at(_: Point) {}

#[cfg(not(feature = "internals"))]
pub(crate) fn format() -> Option<(u32, u32)> {
    None
}
