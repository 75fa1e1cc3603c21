//! Faults that tests ask for, in builds with the feature `internals` only: the file that the variable
//! `HANDOVER_FAULT` names says at which point this process shall end, or stop, or speak as a version that
//! does not exist.

/// Where a fault may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// Connected and subscribed, and not said.
    Ready,
    /// Said, and nothing taken.
    AfterReady,
    /// The first sessions have come.
    Sessions,
    /// All have.
    Adopted,
    /// Told to go on, and not said that it does.
    Commit,
}

/// What the file says, word by word.
#[cfg(feature = "internals")]
fn asked() -> Vec<String> {
    let text = std::env::var_os("HANDOVER_FAULT").and_then(|path| std::fs::read_to_string(path).ok());
    text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Has the fault that is asked for here, if one is.
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

/// The format that is asked for instead of our own, with the oldest that it understands.
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
