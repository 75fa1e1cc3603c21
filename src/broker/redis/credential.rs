//! The sources of user and password: the address, a file, a credential of systemd.
//!
//! Each link reads the file, so that it finds a rotated password. systemd's copy of a credential is as old as its
//! unit's last start. May not enter: the exchange with a server (`greeting.rs`, `sentinel.rs`).

use std::path::{Path, PathBuf};

use redis::Cmd;
use secrecy::{ExposeSecret, SecretString};

use super::error::SettingsError;
use crate::config::{RedisConfig, RedisUrl};

/// The files that systemd passed (systemd.exec(5), LoadCredential=).
#[derive(Debug, Clone, Default)]
pub(crate) struct SystemdCredentials {
    /// `redis-password`
    pub(crate) redis: Option<PathBuf>,
    /// `redis-sentinel-password`
    pub(crate) sentinel: Option<PathBuf>,
}

/// Our login at a server.
#[derive(Debug, Clone, Default)]
pub(super) struct Login {
    pub(super) username: Option<String>,
    pub(super) password: Option<SecretString>,
}

/// Our user at a server, and the source of its password.
#[derive(Debug, Clone)]
pub(super) struct Credential {
    username: Option<String>,
    password: Password,
}

#[derive(Debug, Clone)]
enum Password {
    None,
    /// In the address.
    Known(SecretString),
    /// In the first line of a file, which a setting names.
    File(PathBuf, &'static str),
    /// In a copy that systemd made.
    Copy(PathBuf),
}

impl Credential {
    /// For Redis itself; the address takes precedence.
    ///
    /// # Errors
    /// The address has a user, but no password is set. Such a user is usually a password without its colon.
    pub(super) fn of_redis(
        url: &RedisUrl,
        config: &RedisConfig,
        systemd: &SystemdCredentials,
    ) -> Result<Self, SettingsError> {
        let password = match &url.password {
            Some(password) => Password::Known(password.clone()),
            None => Password::in_file(config.password_file.as_ref(), "redis.password_file", systemd.redis.as_ref()),
        };
        if url.username.is_some() && matches!(password, Password::None) {
            return Err(SettingsError::NoPassword(url.to_string()));
        }
        Ok(Self { username: url.username.clone().or_else(|| config.username.clone()), password })
    }

    /// For Sentinels, if it differs from Redis'.
    pub(super) fn of_sentinels(config: &RedisConfig, systemd: &SystemdCredentials) -> Self {
        let setting = "redis.sentinel_password_file";
        let password = Password::in_file(config.sentinel_password_file.as_ref(), setting, systemd.sentinel.as_ref());
        Self { username: config.sentinel_username.clone(), password }
    }

    /// The login to send now.
    ///
    /// # Errors
    /// The password cannot be read.
    pub(super) fn read(&self) -> Result<Login, SettingsError> {
        let password = match &self.password {
            Password::None => None,
            Password::Known(password) => Some(password.clone()),
            Password::File(path, setting) => Some(first_line(path, setting)?),
            Password::Copy(path) => Some(first_line(path, "a credential of systemd")?),
        };
        Ok(Login { username: self.username.clone(), password })
    }

    /// Advice for when a server refuses the login.
    pub(super) fn hint(&self) -> &'static str {
        match self.password {
            Password::Copy(_) => {
                "the password is systemd's copy of the credential from the start of the unit: after a change, run \
                 systemctl restart webws, which keeps the WebSockets, or use redis.password_file"
            }
            _ => "user, password and ACL are under [redis]",
        }
    }
}

impl Login {
    /// Whether user and password are both unset.
    pub(super) fn is_empty(&self) -> bool {
        self.username.is_none() && self.password.is_none()
    }

    /// The password; empty if unset, which Redis accepts for a user with `nopass`.
    pub(super) fn password(&self) -> &str {
        self.password.as_ref().map_or("", |password| password.expose_secret())
    }

    /// AUTH. Without a user, every version of Redis knows this form.
    pub(super) fn auth(&self) -> Cmd {
        let mut auth = redis::cmd("AUTH");
        if let Some(username) = &self.username {
            auth.arg(username);
        }
        auth.arg(self.password());
        auth
    }
}

impl Password {
    fn in_file(file: Option<&PathBuf>, setting: &'static str, copy: Option<&PathBuf>) -> Self {
        match (file, copy) {
            (Some(file), _) => Self::File(file.clone(), setting),
            (None, Some(copy)) => Self::Copy(copy.clone()),
            (None, None) => Self::None,
        }
    }
}

/// The password is the first line only: editors append a newline.
fn first_line(path: &Path, setting: &'static str) -> Result<SecretString, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|error| SettingsError::Password {
        path: path.to_owned(),
        setting,
        error,
    })?;
    match text.lines().next() {
        Some(first) if !first.is_empty() => Ok(first.to_owned().into()),
        _ => Err(SettingsError::EmptyPassword { path: path.to_owned(), setting }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BrokerConfig;

    fn of(broker: &str, config: &RedisConfig, systemd: &SystemdCredentials) -> Result<Credential, SettingsError> {
        let Ok(BrokerConfig::Redis(urls)) = broker.parse() else { panic!("{broker}") };
        Credential::of_redis(&urls[0], config, systemd)
    }

    #[test]
    fn a_user_without_a_password_is_a_fault_that_does_not_repeat_it() {
        let none = SystemdCredentials::default();
        let fault = of("redis://hunter2@a", &RedisConfig::default(), &none).unwrap_err().to_string();
        assert!(fault.contains("redis://:PASSWORD@HOST") && !fault.contains("hunter2"), "{fault}");
        let file = RedisConfig { password_file: Some("/x".into()), ..RedisConfig::default() };
        of("redis://web@a", &file, &none).unwrap();
        let copy = SystemdCredentials { redis: Some("/x".into()), sentinel: None };
        let credential = of("redis://web@a", &RedisConfig::default(), &copy).unwrap();
        assert!(credential.hint().contains("systemctl restart"));
        let user = RedisConfig { username: Some("web".to_owned()), ..RedisConfig::default() };
        assert!(of("redis://a", &user, &none).unwrap().read().unwrap().password.is_none());
    }

    #[test]
    fn the_first_line_of_a_file_is_the_password_and_none_is_a_fault() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        let config = RedisConfig { password_file: Some(path.clone()), ..RedisConfig::default() };
        let read = || of("redis://a", &config, &SystemdCredentials::default()).unwrap().read();
        for (text, password) in [("pw", "pw"), ("pw\n", "pw"), ("pw\r\nx", "pw"), (" p w ", " p w ")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read().unwrap().password.unwrap().expose_secret(), password, "{text:?}");
        }
        for text in ["", "\n", "\npw"] {
            std::fs::write(&path, text).unwrap();
            let fault = read().unwrap_err().to_string();
            assert!(fault.contains("is empty") && fault.contains("redis.password_file"), "{fault}");
        }
        std::fs::write(&path, b"\xff\n").unwrap();
        assert!(read().unwrap_err().to_string().contains("UTF-8"));
        std::fs::remove_file(&path).unwrap();
        let fault = read().unwrap_err().to_string();
        assert!(fault.contains("cannot be read") && fault.contains("password"), "{fault}");
    }
}
