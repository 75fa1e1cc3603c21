//! What is wrong with a configuration. May not enter: the checks that find a fault.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// A configuration that cannot be used: all its faults. `Display` writes one line per fault.
///
/// ```
/// let mut config = webws::Config::default();
/// config.workers = 5_000;
/// config.endpoints.clear();
/// let error = config.validate().unwrap_err();
/// assert_eq!(error.faults().count(), 2);
/// assert!(error.to_string().starts_with("workers = 5000 is out of range"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    faults: Vec<ConfigFault>,
}

/// One fault of a configuration. `Display` writes a sentence: where, what, and what to do. The
/// [source](Error::source) is the error that a file or a library reported, where there is one.
#[derive(Debug, Clone)]
pub struct ConfigFault {
    sentence: String,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ConfigError {
    pub(crate) fn new<F: Into<ConfigFault>>(faults: impl IntoIterator<Item = F>) -> Self {
        Self { faults: faults.into_iter().map(Into::into).collect() }
    }

    /// The faults, at least one, in the order of the file.
    pub fn faults(&self) -> impl Iterator<Item = &ConfigFault> {
        self.faults.iter()
    }

    pub(crate) fn into_faults(self) -> Vec<ConfigFault> {
        self.faults
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, fault) in self.faults.iter().enumerate() {
            let separator = if n == 0 { "" } else { "\n" };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

impl Error for ConfigError {
    /// The cause of the only fault. Several faults have no common cause: see [`ConfigError::faults`].
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self.faults.as_slice() {
            [only] => only.source(),
            _ => None,
        }
    }
}

impl ConfigFault {
    /// A fault whose sentence is the error's own.
    pub(crate) fn caused_by(error: impl Error + Send + Sync + 'static) -> Self {
        Self { sentence: error.to_string(), source: Some(Arc::new(error)) }
    }

    pub(super) fn sentence(&self) -> &str {
        &self.sentence
    }
}

impl From<String> for ConfigFault {
    fn from(sentence: String) -> Self {
        Self { sentence, source: None }
    }
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Error for ConfigFault {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&**self.source.as_ref()?)
    }
}

/// By their sentences: causes cannot be compared.
impl PartialEq for ConfigFault {
    fn eq(&self, other: &Self) -> bool {
        self.sentence == other.sentence
    }
}

impl Eq for ConfigFault {}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_fault_keeps_its_cause() {
        let error = ConfigError::new([ConfigFault::caused_by(io::Error::from(io::ErrorKind::NotFound))]);
        let fault = error.source().and_then(<dyn Error>::downcast_ref::<io::Error>);
        assert_eq!(fault.map(io::Error::kind), Some(io::ErrorKind::NotFound));
        let several = ConfigError::new(["one".to_owned(), "two".to_owned()]);
        assert_eq!(several.to_string(), "one\ntwo");
        assert!(several.source().is_none());
    }
}
