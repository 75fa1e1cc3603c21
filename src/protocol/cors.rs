//! What lets a page of another origin read an answer (Fetch, §3.3), as lines of its head.
//!
//! May not enter: which pages are allowed (`front/cors.rs`).

/// Fields that a page may read, besides those that any page may.
pub(crate) const EXPOSED: &str = "Stream-Next-Offset, Stream-Up-To-Date, Stream-Gap, Retry-After";

/// The lines for a page of `origin`, each with its end; nothing without a page.
pub(crate) fn lines(origin: Option<&str>) -> String {
    let Some(origin) = origin else { return String::new() };
    format!(
        "Access-Control-Allow-Origin: {origin}\r\nAccess-Control-Allow-Credentials: true\r\n\
         Access-Control-Expose-Headers: {EXPOSED}\r\nVary: Origin\r\n"
    )
}
