//! Promise: an endpoint with `channel_keys_file` serves the channels whose names the site has signed, as Rails and Turbo
//! sign, and no others. Keys are rotated while clients are there.

use std::path::Path;
use std::process::Command;

use crate::support::client::{Client, Socket, Target, upgrade_request};
use crate::support::events::events_request;
use crate::support::http::request;
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, until};

const OLD: &str = "0123456789abcdef0123456789abcdef";
const NEW: &str = "fedcba9876543210fedcba9876543210";

/// What the README's function signs.
fn signed(channel: &str, key: &str) -> String {
    let function = crate::readme::block("python", "def signed");
    let call = format!("{function}\nprint(signed({channel:?}, {key:?}.encode()))");
    let told = crate::readme::run(Path::new("/"), "python3", &["-c", &call], &[("PYTHONUTF8", "1")]);
    told.trim().to_owned()
}

fn path(named: &str) -> String {
    let escaped: String = named.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("/webws?channel=%22{escaped}%22")
}

async fn status(target: &Target, path: &str) -> u16 {
    request(&Socket::connect(target).await.unwrap(), &upgrade_request(path)).await.head.status
}

#[tokio::test]
async fn behind_nginx_only_signed_names_are_served_and_keys_are_rotated() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("channel-keys");
    std::fs::write(&file, format!("{NEW}\n{OLD}\n")).unwrap();
    let redis = Redis::start().await;
    let setting = format!("channel_keys_file = \"{}\"", file.display());
    let webws = Webws::builder().broker(&redis.url()).workers(1).endpoint_toml(&setting).start().await;
    let nginx = Nginx::start(&webws.socket()).await;
    let target = nginx.target();
    let (by_old, by_new) = (signed("alice", OLD), signed("alice", NEW));
    // Turbo.signed_stream_verifier.generate("alice"), with OLD as the key.
    assert_eq!(by_old, "ImFsaWNlIg==--23556a217701b73cc6596a4efd88b88cca19af59cfc10399319be64918b3fc46");
    let mut clients = Vec::new();
    for signed in [&by_old, &by_new] {
        clients.push(Client::connect(&target, &path(signed)).await);
    }
    clients[0].send_text("hello").await;
    for client in &mut clients {
        client.expect_text("helloalice").await;
    }
    let (payload, signature) = by_old.split_once("--").unwrap();
    let bob = signed("bob", OLD);
    let (of_bob, _) = bob.split_once("--").unwrap();
    for wrong in [
        "bob",
        of_bob,
        &format!("{of_bob}--{signature}"),
        &format!("{of_bob}--"),
        &format!("{payload}--{}", "0".repeat(64)),
        &signed("bob", "another key of the same length.."),
        &format!("bob--{signature}"),
    ] {
        assert_eq!(status(&target, &path(wrong)).await, 403, "{wrong}");
        let events = events_request(&path(wrong));
        let answer = request(&Socket::connect(&target).await.unwrap(), events.as_bytes()).await;
        assert_eq!(answer.head.status, 403, "{wrong}");
    }
    assert_eq!(redis.numsub(b"chat:bob").await, 0);
    assert_eq!(status(&target, &path(&signed("x".repeat(513).as_str(), OLD))).await, 400);

    std::fs::write(&file, NEW).unwrap();
    until("the old key is out", SOON, async || status(&target, &path(&by_old)).await == 403).await;
    assert_eq!(status(&target, &path(&by_new)).await, 101);
    clients[0].send_text("still here, ").await;
    clients[1].expect_text("still here, alice").await;
    // A file that is half saved takes nothing away.
    std::fs::write(&file, "half").unwrap();
    until("the fault is logged", SOON, async || {
        assert_eq!(status(&target, &path(&by_new)).await, 101);
        webws.log().contains("line 1 is shorter than 16 bytes")
    })
    .await;
    assert!(!webws.log().contains(signature) && !webws.log().contains(NEW), "{}", webws.log());
}

#[test]
fn a_server_without_its_keys_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let check = |file: &str| {
        let toml = format!("broker = \"memory\"\n[[endpoint]]\nchannel_keys_file = \"{file}\"\n");
        std::fs::write(dir.path().join("webws.toml"), toml).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_webws"));
        let output = command.args(["check", "--config", "webws.toml"]).current_dir(dir.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    std::fs::write(dir.path().join("keys"), "hunter2\n").unwrap();
    for (file, why) in [
        ("absent", "absent cannot be read"),
        ("keys", "line 1 is shorter"),
        ("credential:channel-keys", "no credential 'channel-keys'"),
    ] {
        let (code, told) = check(file);
        assert_eq!(code, Some(78), "{told}");
        assert!(told.contains("endpoint /webws: channel_keys_file: ") && told.contains(why), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
    }
    std::fs::write(dir.path().join("keys"), OLD).unwrap();
    assert_eq!(check("keys").0, Some(0));
}

#[tokio::test]
async fn no_client_reaches_a_channel_of_webws_or_redis() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("channel-keys");
    std::fs::write(&file, OLD).unwrap();
    let redis = Redis::start().await;
    let webws = Webws::builder()
        .broker(&redis.url())
        .workers(1)
        .endpoint_toml("prefix = \"\"\nallow_empty_prefix = true")
        .endpoint_toml(
            "path = \"/plain\"\nwire = \"plain\"\nchannel = \"plain\"\nprefix = \"\"\nallow_empty_prefix = true",
        )
        .endpoint_toml(&format!(
            "path = \"/signed\"\nprefix = \"\"\nallow_empty_prefix = true\nchannel_keys_file = \"{}\"",
            file.display()
        ))
        .start()
        .await;
    for name in
        ["webws:x", "webws:", "__keyspace@0__:a", "__keyevent@0__:del", "__redis__:invalidate", "__sentinel__:hello"]
    {
        let first = format!("%{:02X}{}", name.as_bytes()[0], &name[1..]);
        for path in [
            format!("/webws?channel=%22{name}%22"),
            format!("/webws?channel=%22{first}%22"),
            format!("/webws?channel=%22\\u{:04x}{}%22", name.as_bytes()[0], &name[1..]),
            format!("/plain?channel={name}"),
            format!("/plain?channel={first}"),
            path(&signed(name, OLD)).replace("/webws", "/signed"),
        ] {
            assert_eq!(status(&webws.target(), &path).await, 400, "{path}");
            let (socket, events) = (Socket::connect(&webws.target()).await.unwrap(), events_request(&path));
            assert_eq!(request(&socket, events.as_bytes()).await.head.status, 400, "{path}");
        }
        assert_eq!(redis.numsub(name.as_bytes()).await, 0, "{name}");
    }
    // What only looks like one.
    assert_eq!(status(&webws.target(), "/plain?channel=Webws:x").await, 101);
}
