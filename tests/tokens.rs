//! Promise: an endpoint with `claims = "token"` gives a client what a valid token says, and a token that is not valid
//! gives nothing: whatever its algorithm, its claims or its place. No part of a token gets into the log.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256};
use ring::{hmac, rsa};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::client::{Client, Socket, Target, upgrade_request};
use crate::support::events::events_request;
use crate::support::http::{Answer, request};
use crate::support::nginx::{Nginx, Site};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, until};

const ALICE: &str = "/webws?channel=%22alice%22";
const BOB: &str = "/webws?channel=%22bob%22";
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// Keys that openssl has made, and the files for webws.
struct Keys {
    dir: TempDir,
    rsa: rsa::KeyPair,
    ec: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

fn openssl(dir: &Path, arguments: &str) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output();
    let output = output.unwrap_or_else(|e| panic!("cannot start openssl: {e}; get it with: apt-get install openssl"));
    assert!(output.status.success(), "{arguments}: {output:?}");
    output.stdout
}

impl Keys {
    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let made = |name: &str, how: &str| {
            openssl(at, &format!("genpkey {how} -out {name}.key"));
            openssl(at, &format!("pkey -in {name}.key -pubout -out {name}.pem"));
            openssl(at, &format!("pkcs8 -topk8 -nocrypt -in {name}.key -outform DER"))
        };
        let rsa = rsa::KeyPair::from_pkcs8(&made("rsa", "-algorithm RSA -pkeyopt rsa_keygen_bits:2048")).unwrap();
        let ec = made("ec", "-algorithm EC -pkeyopt ec_paramgen_curve:P-256");
        let ec = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &ec, &SystemRandom::new()).unwrap();
        let ed = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&made("ed", "-algorithm ED25519")).unwrap();
        std::fs::write(at.join("secrets"), format!("{SECRET}\n")).unwrap();
        let keys = Self { rsa, ec, ed, dir };
        keys.write_set("ed-1");
        keys
    }

    /// A JWK Set with the key of Ed25519, called `id`.
    fn write_set(&self, id: &str) {
        let x = URL_SAFE_NO_PAD.encode(self.ed.public_key());
        let ours = json!({ "kty": "OKP", "crv": "Ed25519", "x": x, "kid": id, "use": "sig", "alg": "EdDSA" });
        let strange = json!({ "kty": "none", "kid": "x" });
        std::fs::write(self.file("jwks.json"), json!({ "keys": [strange, ours] }).to_string()).unwrap();
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let random = SystemRandom::new();
        let signature = match header["alg"].as_str().unwrap() {
            "HS256" => by_secret(SECRET.as_bytes(), &message),
            "RS256" => {
                let mut signature = vec![0; self.rsa.public().modulus_len()];
                self.rsa.sign(&RSA_PKCS1_SHA256, &random, message.as_bytes(), &mut signature).unwrap();
                signature
            }
            "ES256" => self.ec.sign(&random, message.as_bytes()).unwrap().as_ref().to_vec(),
            "EdDSA" => self.ed.sign(message.as_bytes()).as_ref().to_vec(),
            _ => Vec::new(),
        };
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn alice(&self, algorithm: &str) -> String {
        self.sign(&json!({ "alg": algorithm, "typ": "JWT" }), &claims())
    }

    /// A token of HS256 with changed claims; `null` takes one away.
    fn with(&self, changes: &Value) -> String {
        let mut claims = claims();
        for (name, value) in changes.as_object().unwrap() {
            claims[name] = value.clone();
        }
        claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        self.sign(&json!({ "alg": "HS256" }), &claims)
    }
}

fn by_secret(secret: &[u8], message: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes()).as_ref().to_vec()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({
        "sub": "u1", "exp": now() + 3_600, "nbf": now() - 1, "iss": "https://login.example", "aud": ["webws", "other"],
        "channels": ["rw:alice", "r:news/*"],
    })
}

async fn start(redis: &Redis, keys: &Keys) -> Webws {
    let files = ["secrets", "rsa.pem", "ec.pem", "jwks.json"].map(|name| format!("{:?}", keys.file(name)));
    let token = |more: &str| {
        format!(
            "claims = \"token\"\nno_origin = \"allow\"\ntoken = {{ keys = [{}], issuers = [\"https://login.example\"], \
             audiences = [\"webws\"], cookie = \"session\"{more} }}",
            files.join(", ")
        )
    };
    Webws::builder()
        .broker(&redis.url())
        .workers(1)
        .setting("log = \"debug\"")
        .endpoint_toml(&token(""))
        .endpoint_toml(&format!("path = \"/query\"\n{}", token(", query = \"jwt\"")))
        .start()
        .await
}

/// The recipe of the README for a cookie.
fn with_cookie(name: &str, text: String) -> String {
    match name {
        "webws-access.conf" => crate::readme::block("nginx", "set $webws_cookie").to_owned(),
        "webws-location.conf" => {
            assert!(text.contains("    # include webws-access.conf;"));
            text.replace("    # include webws-access.conf;", "    include webws-access.conf;")
        }
        _ => text,
    }
}

fn with_fields(request: &[u8], fields: &str) -> Vec<u8> {
    let text = std::str::from_utf8(request).unwrap();
    text.replace("Host: localhost\r\n", &format!("Host: localhost\r\n{fields}")).into_bytes()
}

fn offer(token: &str) -> String {
    format!("Sec-WebSocket-Protocol: token.{token}, webws\r\n")
}

async fn ask(target: &Target, path: &str, fields: &str) -> Answer {
    request(&Socket::connect(target).await.unwrap(), &with_fields(&upgrade_request(path), fields)).await
}

async fn join(target: &Target, path: &str, fields: &str) -> Client {
    let socket = Socket::connect(target).await.unwrap();
    let client = Client::request(socket, &with_fields(&upgrade_request(path), fields)).await.unwrap();
    assert_eq!(client.head().status, 101, "{:?}", client.head());
    client
}

#[tokio::test]
async fn behind_nginx_a_token_says_what_its_client_may_do() {
    let (redis, keys) = (Redis::start().await, Keys::make());
    let webws = start(&redis, &keys).await;
    let nginx = Nginx::start_in(Site::default(), &webws.socket(), with_cookie).await;
    let target = nginx.target();
    for algorithm in ["HS256", "RS256", "ES256", "EdDSA"] {
        let token = keys.alice(algorithm);
        for fields in [offer(&token), format!("Cookie: a=b; session={token}\r\n")] {
            let mut client = join(&target, ALICE, &fields).await;
            let spoken = client.head().header("Sec-WebSocket-Protocol");
            assert_eq!(spoken, fields.starts_with("Sec").then_some("webws"), "{algorithm}");
            client.send_text(algorithm).await;
            client.expect_text(&format!("{algorithm}alice")).await;
            client.close().await;
            assert_eq!(ask(&target, BOB, &fields).await.head.status, 403);
            let mut reader = join(&target, "/webws?channel=%22news/1%22", &fields).await;
            reader.send_text("forbidden").await;
            reader.expect_close(1008, SOON).await;
        }
        let events = with_fields(events_request(ALICE).as_bytes(), &format!("Cookie: session={token}\r\n"));
        let stream = crate::support::events::EventStream::request(&target, &events).await;
        assert_eq!(stream.head.status, 200);
        let in_query = format!("/query?channel=%22alice%22&jwt={token}");
        assert_eq!(ask(&webws.target(), &in_query, "").await.head.status, 101);
        assert_eq!(ask(&webws.target(), &in_query.replace("/query", "/webws"), "").await.head.status, 403);
    }
    // What the page offers goes before what the browser sends by itself.
    let both =
        format!("{}Cookie: session={}\r\n", offer(&keys.with(&json!({ "channels": "r:bob" }))), keys.alice("HS256"));
    assert_eq!(ask(&target, ALICE, &both).await.head.status, 403);
    join(&target, BOB, &both).await.close().await;
    let log = webws.log();
    assert!(log.contains("DEBUG"), "{log}");
    for algorithm in ["HS256", "RS256", "ES256", "EdDSA"] {
        for part in keys.alice(algorithm).split('.').take(2) {
            assert!(!log.contains(part), "{part}: {log}");
        }
    }
    assert!(!log.contains(SECRET));
}

/// Tokens that no key has signed so, besides `valid`.
fn forged(keys: &Keys, valid: &str) -> Vec<String> {
    let unsigned = keys.sign(&json!({ "alg": "none" }), &claims());
    let message = |header: Value| {
        let token = keys.sign(&header, &claims());
        token.rsplit_once('.').unwrap().0.to_owned()
    };
    let hs256 = message(json!({ "alg": "HS256" }));
    let by = |secret: &[u8]| format!("{hs256}.{}", URL_SAFE_NO_PAD.encode(by_secret(secret, &hs256)));
    let pem = std::fs::read(keys.file("rsa.pem")).unwrap();
    let der = openssl(keys.dir.path(), "pkey -pubin -in rsa.pem -outform DER");
    let (head, rest) = valid.split_once('.').unwrap();
    let (_, signature) = rest.split_once('.').unwrap();
    let other = keys.with(&json!({ "sub": "u2", "channels": "rw:*" }));
    let own_key = json!({
        "alg": "EdDSA", "kid": "mine",
        "jwk": { "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(keys.ed.public_key()) },
    });
    vec![
        unsigned.clone(),
        unsigned.replacen(&unsigned[..10], &URL_SAFE_NO_PAD.encode("{\"alg\":\"None\"}")[..10], 1),
        // The public key as a secret.
        by(&pem),
        by(pem.trim_ascii()),
        by(&der),
        by(keys.rsa.public().as_ref()),
        by(b""),
        by(b"another secret of the same length"),
        // A signature by one key, in the name of another algorithm.
        format!("{}.{signature}", message(json!({ "alg": "RS256" }))),
        format!("{}.{signature}", message(json!({ "alg": "EdDSA" }))),
        keys.sign(&json!({ "alg": "RS512" }), &claims()),
        keys.sign(&json!({ "alg": "HS512" }), &claims()),
        keys.sign(&own_key, &claims()),
        keys.sign(&json!({ "alg": "HS256", "crit": ["x"], "x": 1 }), &claims()),
        format!("{head}.{}.{signature}", other.split('.').nth(1).unwrap()),
        format!("{head}.{}.", rest.split_once('.').unwrap().0),
        format!("{valid}."),
        format!("{valid}A"),
        valid[..valid.len() - 1].to_owned(),
        "a.b.c".to_owned(),
        "..".to_owned(),
        String::new(),
    ]
}

/// Tokens of a key, with claims that are not valid or allow nothing here.
fn wrongly_claimed(keys: &Keys) -> Vec<String> {
    let changes = [
        json!({ "exp": now() - 60 }),
        json!({ "exp": null }),
        json!({ "exp": "9999999999" }),
        json!({ "exp": -1 }),
        json!({ "exp": 1e300 }),
        json!({ "nbf": now() + 600 }),
        json!({ "nbf": "1" }),
        json!({ "aud": "other" }),
        json!({ "aud": [] }),
        json!({ "aud": null }),
        json!({ "iss": "https://evil.example" }),
        json!({ "iss": null }),
        json!({ "sub": null }),
        json!({ "sub": 7 }),
        json!({ "channels": null }),
        json!({ "channels": [] }),
        json!({ "channels": { "alice": "rw" } }),
        json!({ "channels": ["rw:bob"] }),
    ];
    changes.iter().map(|changes| keys.with(changes)).collect()
}

#[tokio::test]
async fn a_token_that_is_not_valid_gives_nothing() {
    let (redis, keys) = (Redis::start().await, Keys::make());
    let webws = start(&redis, &keys).await;
    let (target, valid) = (webws.target(), keys.alice("HS256"));
    let wrong = [forged(&keys, &valid), wrongly_claimed(&keys)].concat();
    for token in &wrong {
        for fields in [offer(token), format!("Cookie: session={token}\r\n")] {
            let answer = ask(&target, ALICE, &fields).await;
            assert_eq!(answer.head.status, 403, "{token}: {answer:?}");
        }
    }
    let twice = [
        format!("Cookie: session={valid}; session={valid}\r\n"),
        format!("Cookie: session={valid}\r\nCookie: session={valid}\r\n"),
        format!("Sec-WebSocket-Protocol: token.{valid}, token.{valid}\r\n"),
        format!("Sec-WebSocket-Protocol: token.{valid}\r\nSec-WebSocket-Protocol: token.{valid}\r\n"),
    ];
    for fields in twice.iter().map(String::as_str).chain(["", "Cookie: other=x\r\n"]) {
        assert_eq!(ask(&target, ALICE, fields).await.head.status, 403, "{fields}");
    }
    for malformed in [json!({ "sub": "a b" }), json!({ "sub": "" }), json!({ "channels": ["alice"] })] {
        assert_eq!(ask(&target, ALICE, &offer(&keys.with(&malformed))).await.head.status, 500, "{malformed}");
    }
    assert_eq!(redis.numsub(b"chat:alice").await, 0);
    assert_eq!(ask(&target, ALICE, &offer(&valid)).await.head.status, 101);
}

#[tokio::test]
async fn a_session_ends_with_its_token_and_a_set_of_keys_is_read_again() {
    let (redis, keys) = (Redis::start().await, Keys::make());
    let webws = start(&redis, &keys).await;
    let target = webws.target();
    let mut short = join(&target, ALICE, &offer(&keys.with(&json!({ "exp": now() + 1 })))).await;
    let named = |id: &str| keys.sign(&json!({ "alg": "EdDSA", "kid": id }), &claims());
    assert_eq!(ask(&target, ALICE, &offer(&named("ed-1"))).await.head.status, 101);
    assert_eq!(ask(&target, ALICE, &offer(&named("ed-2"))).await.head.status, 403);
    keys.write_set("ed-2");
    until("the new key counts", SOON, async || ask(&target, ALICE, &offer(&named("ed-2"))).await.head.status == 101)
        .await;
    assert_eq!(ask(&target, ALICE, &offer(&named("ed-1"))).await.head.status, 403);
    // Half saved.
    std::fs::write(keys.file("jwks.json"), "{ \"keys\": [").unwrap();
    until("the fault is logged", SOON, async || {
        assert_eq!(ask(&target, ALICE, &offer(&named("ed-2"))).await.head.status, 101);
        webws.log().contains("no JWK Set")
    })
    .await;
    short.expect_close(4401, Duration::from_secs(10) + SOON).await;
}
