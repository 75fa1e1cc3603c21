//! Keys for tokens, each for one algorithm: what a token says of its algorithm never chooses how a key is used.
//!
//! May not enter: where a token is in a request, and what its claims mean (`token.rs`).

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation, decode};
use serde::de::DeserializeOwned;

use super::secrets::secrets;
use super::token_crypto;

/// Shortest secret: RFC 7518 §3.2.
const MIN_SECRET_BYTES: usize = 32;

/// The keys of one file.
#[derive(Debug)]
pub(super) struct TokenKeys(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Why no key of a file accepts a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotValid {
    /// No key has signed the token, or a claim is malformed or not as the settings ask.
    Invalid,
    /// A key has signed the token, whose time is over.
    Expired,
    /// A key has signed the token, whose time has not begun.
    Early,
}

impl TokenKeys {
    /// Secrets, public keys in PEM, or a JWK Set.
    ///
    /// # Errors
    /// What is wrong, without the keys.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        token_crypto::install();
        let trimmed = text.trim_start();
        let keys = if trimmed.starts_with('{') {
            of_set(trimmed)?
        } else if trimmed.starts_with("-----BEGIN") {
            of_pem(trimmed)?
        } else {
            let key = |secret: Vec<u8>| DecodingKey::from_secret(&secret).map_err(|_| "it has an empty secret");
            let keys = secrets(text, MIN_SECRET_BYTES)?.into_iter().map(key);
            let keys = keys.map(|key| Ok(Key { id: None, algorithm: Algorithm::HS256, key: key? }));
            keys.collect::<Result<_, &str>>()?
        };
        Ok(Self(keys))
    }

    /// The claims of a token that one of the keys has signed.
    ///
    /// # Errors
    /// Why the token is not valid.
    pub(super) fn verify<T: DeserializeOwned>(
        &self,
        token: &str,
        header: &Header,
        validation: &Validation,
    ) -> Result<T, NotValid> {
        let fits = |key: &&Key| {
            let is_named = match (&key.id, &header.kid) {
                (Some(own), Some(named)) => own == named,
                _ => true,
            };
            key.algorithm == header.alg && is_named
        };
        let mut why = NotValid::Invalid;
        for Key { algorithm, key, .. } in self.0.iter().filter(fits) {
            let validation = Validation { algorithms: vec![*algorithm], ..validation.clone() };
            match decode(token, key, &validation) {
                Ok(decoded) => return Ok(decoded.claims),
                Err(error) => match error.kind() {
                    jsonwebtoken::errors::ErrorKind::ExpiredSignature => why = NotValid::Expired,
                    jsonwebtoken::errors::ErrorKind::ImmatureSignature => why = NotValid::Early,
                    _ => {}
                },
            }
        }
        Err(why)
    }
}

/// The keys of a JWK Set that webws can use. Others are passed over: a set is shared by programs.
fn of_set(text: &str) -> Result<Vec<Key>, String> {
    #[derive(serde::Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_str(text)
        .map_err(|error| format!("it is no JWK Set: line {}, column {}", error.line(), error.column()))?;
    let keys: Vec<_> = set.keys.into_iter().filter_map(|jwk| of_jwk(&serde_json::from_value(jwk).ok()?)).collect();
    if keys.is_empty() {
        return Err("its JWK Set has no key for HS256, RS256, ES256 or EdDSA".to_owned());
    }
    Ok(keys)
}

fn of_jwk(jwk: &Jwk) -> Option<Key> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(of) if of.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKeyPair(of) if of.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        _ => return None,
    };
    let common = &jwk.common;
    let is_for_this = common.key_algorithm.is_none_or(|of| of == KeyAlgorithm::from(algorithm));
    let is_to_sign = common.public_key_use.as_ref().is_none_or(|of| *of == PublicKeyUse::Signature);
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let is_long = algorithm != Algorithm::HS256 || key.try_get_as_bytes().ok()?.len() >= MIN_SECRET_BYTES;
    (is_for_this && is_to_sign && is_long).then(|| Key { id: common.key_id.clone(), algorithm, key })
}

fn of_pem(text: &str) -> Result<Vec<Key>, String> {
    const BEGIN: &str = "-----BEGIN ";
    let mut keys = Vec::new();
    for block in text.split(BEGIN).skip(1) {
        if block.lines().next().unwrap_or_default().contains("PRIVATE") {
            return Err("it has a private key: write the public key only (openssl pkey -pubout)".to_owned());
        }
        let pem = format!("{BEGIN}{block}");
        let pem = pem.as_bytes();
        // Of each PEM block, exactly one of these reads the kind of key that it has.
        let (algorithm, key) = if let Ok(key) = DecodingKey::from_ec_pem(pem) {
            (Algorithm::ES256, key)
        } else if let Ok(key) = DecodingKey::from_ed_pem(pem) {
            (Algorithm::EdDSA, key)
        } else if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
            (Algorithm::RS256, key)
        } else {
            return Err("its PEM is no public key of RSA, P-256 or Ed25519".to_owned());
        };
        let has_length = |length| key.try_get_as_bytes().is_ok_and(|bytes| bytes.len() == length);
        if (algorithm == Algorithm::ES256 && !has_length(65)) || (algorithm == Algorithm::EdDSA && !has_length(32)) {
            return Err("its PEM has a key of another curve than P-256 or Ed25519".to_owned());
        }
        keys.push(Key { id: None, algorithm, key });
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::crypto::verify;
    use jsonwebtoken::decode_header;
    use serde_json::{Value, json};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn jwks(keys: &Value) -> String {
        json!({ "keys": keys }).to_string()
    }

    /// The examples of RFC 7515 (A.1, A.3) and RFC 8037 (A.4), and what each has as its algorithm.
    #[test]
    fn the_examples_of_the_standards_verify_with_their_own_key_only() {
        const CLAIMS: &str =
            "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let keys = json!([
            { "kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow" },
            { "kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
              "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0" },
            { "kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo" },
        ]);
        let keys = TokenKeys::parse(&jwks(&keys)).unwrap();
        let examples = [
            (
                format!("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.{CLAIMS}"),
                "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
            ),
            (
                format!("eyJhbGciOiJFUzI1NiJ9.{CLAIMS}"),
                "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
            ),
            (
                "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc".to_owned(),
                "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
            ),
        ];
        assert_eq!(keys.0.len(), examples.len());
        for (own, (message, signature)) in examples.iter().enumerate() {
            let header = decode_header(format!("{message}.{signature}")).unwrap();
            assert_eq!(header.alg, keys.0[own].algorithm);
            for (index, Key { algorithm, key, .. }) in keys.0.iter().enumerate() {
                let is_valid = verify(signature, message.as_bytes(), key, *algorithm);
                assert_eq!(is_valid.unwrap_or(false), index == own, "{own} {index}");
                // An algorithm that is not the key's is refused before anything is computed.
                if index != own {
                    assert!(verify(signature, message.as_bytes(), key, header.alg).is_err(), "{own} {index}");
                }
            }
        }
        let expired = format!("{}.{}", examples[0].0, examples[0].1);
        let verified = |token: &str| {
            let header = decode_header(token).unwrap();
            keys.verify::<Value>(token, &header, &Validation::new(jsonwebtoken::Algorithm::HS256)).unwrap_err()
        };
        assert_eq!(verified(&expired), NotValid::Expired);
        assert_eq!(verified(&format!("{}.{}", examples[0].0, examples[1].1)), NotValid::Invalid);
    }

    #[test]
    fn keys_for_something_else_are_passed_over() {
        let secret = json!({ "kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T" });
        let with = |name: &str, value: &str| {
            let mut key = secret.clone();
            key[name] = value.into();
            key
        };
        let count = |keys: Value| TokenKeys::parse(&jwks(&keys)).map(|keys| keys.0.len());
        assert_eq!(count(json!([secret, with("use", "sig"), with("alg", "HS256"), with("kid", "a")])), Ok(4));
        assert_eq!(
            count(json!([secret, with("use", "enc"), with("alg", "HS512"), with("alg", "X"), { "kty": "x" }, 7])),
            Ok(1)
        );
        for none in [
            json!([]),
            json!([with("use", "enc")]),
            json!([{ "kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qz" }]),
            json!([{ "kty": "EC", "crv": "P-384", "x": "AA", "y": "AA" }]),
        ] {
            assert!(count(none.clone()).unwrap_err().contains("no key for"), "{none}");
        }
    }

    #[test]
    fn a_file_that_is_no_key_is_a_fault_that_does_not_repeat_it() {
        for (text, why) in [
            ("", "no key"),
            ("hunter2", "line 1 is shorter than 32 bytes"),
            ("{ \"keys\": \"hunter2\" }", "no JWK Set: line 1"),
            ("{", "no JWK Set"),
            ("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n", "private key"),
            ("-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----\n", "private key"),
            ("-----BEGIN PUBLIC KEY-----\naHVudGVyMg==\n-----END PUBLIC KEY-----\n", "no public key of"),
        ] {
            let fault = TokenKeys::parse(text).unwrap_err();
            assert!(fault.contains(why) && !fault.contains("hunter2"), "{text}: {fault}");
        }
        let keys = TokenKeys::parse(&format!("{SECRET}\n{SECRET}\n")).unwrap();
        assert_eq!(keys.0.len(), 2);
        assert!(!format!("{keys:?}").contains(SECRET));
    }
}
