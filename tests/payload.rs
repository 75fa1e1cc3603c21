//! Promise: no message disappears for not being a text: a binary message of a client is published, or the
//! client is told; and what is published and is not UTF-8 arrives unchanged on the plain wire.

use crate::support::client::{Client, Fin};
use crate::support::frame::{BINARY, CONTINUATION, TEXT, client_frame};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::{SOON, until};

const NOT_UTF8: &[u8] = b"a\xff\x00\xe4\xb8z";

/// Endpoints on channels of the same names.
async fn start(redis: &Redis) -> Webws {
    Webws::builder()
        .broker(&redis.url())
        // Each worker counts what it hears.
        .workers(1)
        .endpoint_toml("path = \"/webws\"")
        .endpoint_toml("path = \"/plain\"\nwire = \"plain\"\nchannel = \"plain\"")
        .endpoint_toml("path = \"/binary\"\nwire = \"plain\"\nchannel = \"plain\"\nbinary = \"publish\"")
        .endpoint_toml("path = \"/text\"\nwire = \"plain\"\nchannel = \"plain\"\nnot_utf8 = \"replace\"")
        .endpoint_toml("path = \"/news\"\nwire = \"plain\"\nchannel = \"plain\"\npublish = false\nbinary = \"publish\"")
        .exchangeable()
        .start()
        .await
}

async fn expect(client: &mut Client, opcode: u8, payload: &[u8]) {
    let frame = client.next_but_pings(SOON).await.expect("a message");
    assert_eq!((frame.opcode, &frame.payload[..]), (opcode, payload));
}

/// What it counted, once it has stopped.
async fn counted<const N: usize>(mut webws: Webws, counters: [&str; N]) -> [u64; N] {
    webws.term();
    webws.wait_exit(SOON).await;
    counters.map(|name| webws.counter(name))
}

#[tokio::test]
async fn a_binary_message_is_published_or_the_client_is_told() {
    let redis = Redis::start().await;
    let webws = start(&redis).await;
    let spy = redis.spy(b"chat:a").await;
    let mut sender = Client::connect(&webws.target(), "/binary?channel=a").await;
    sender.send_frame(BINARY, Fin::Last, NOT_UTF8).await;
    expect(&mut sender, BINARY, NOT_UTF8).await;
    // In pieces as well; what is UTF-8 comes back as a text, for Redis does not tell the two apart.
    sender.send_frame(BINARY, Fin::More, b"from a ").await;
    sender.send_frame(CONTINUATION, Fin::Last, b"Buffer").await;
    expect(&mut sender, TEXT, b"from a Buffer").await;
    assert_eq!(spy.seen(), [NOT_UTF8, b"from a Buffer"]);

    for (path, code) in [("/plain?channel=b", 1003), ("/news?channel=b", 1008)] {
        let mut refused = Client::connect(&webws.target(), path).await;
        refused.send_frame(BINARY, Fin::Last, b"x").await;
        let frame = refused.next_but_pings(SOON).await.expect("a close frame");
        assert_eq!(frame.close_code(), Some(code), "{path}");
        assert!(frame.payload.len() > 2, "no reason: {frame:?}");
        refused.send_close(code).await;
        assert!(refused.ends_within(SOON).await.is_some());
    }
    // The Lua handler read and ignored them.
    let mut lua = Client::connect(&webws.target(), "/webws?channel=%22c%22").await;
    lua.send_frame(BINARY, Fin::Last, b"x").await;
    lua.send_text("y").await;
    lua.expect_text("yc").await;
    drop((sender, lua));
    let counters = ["binaries_taken", "binaries_ignored", "binaries_refused"];
    assert_eq!(counted(webws, counters).await, [2, 1, 1]);
}

#[tokio::test]
async fn what_is_published_and_is_not_utf8_arrives_unchanged_on_the_plain_wire() {
    let redis = Redis::start().await;
    let webws = start(&redis).await;
    let mut plain = Client::connect(&webws.target(), "/plain?channel=a").await;
    let mut other = Client::connect(&webws.target(), "/news?channel=a").await;
    let mut text = Client::connect(&webws.target(), "/text?channel=a").await;
    let mut lua = Client::connect(&webws.target(), "/webws?channel=%22a%22").await;
    let large = [0xff; 70_000];
    for payload in [NOT_UTF8, b"\xff", &large] {
        redis.publish(b"chat:a", payload).await;
        expect(&mut plain, BINARY, payload).await;
        expect(&mut other, BINARY, payload).await;
        let replaced: String = payload
            .utf8_chunks()
            .flat_map(|chunk| [chunk.valid().to_owned(), "\u{fffd}".repeat(chunk.invalid().len())])
            .collect();
        expect(&mut text, TEXT, replaced.as_bytes()).await;
        expect(&mut lua, TEXT, format!("{replaced}a").as_bytes()).await;
    }
    redis.publish(b"chat:a", "z\u{fc}".as_bytes()).await;
    plain.expect_text("z\u{fc}").await;
    lua.expect_text("z\u{fc}a").await;
    // With nobody there it is nobody's.
    redis.publish(b"chat:b", NOT_UTF8).await;
    drop((plain, other, text, lua));
    assert_eq!(counted(webws, ["publications_not_utf8"]).await, [3]);
}

#[tokio::test]
async fn half_a_binary_message_goes_on_in_the_process_that_takes_over() {
    let redis = Redis::start().await;
    let webws = start(&redis).await;
    let mut sender = Client::connect(&webws.target(), "/binary?channel=a").await;
    sender.send_frame(BINARY, Fin::More, &NOT_UTF8[..3]).await;
    let frame = client_frame(0x80 | CONTINUATION, &NOT_UTF8[3..]);
    let (first, last) = frame.split_at(frame.len() - 1);
    sender.send_raw(first).await;
    webws.signal(nix::sys::signal::Signal::SIGUSR2);
    until("it is handed over", 8 * SOON, async || webws.heirs().len() == 1).await;
    sender.send_raw(last).await;
    expect(&mut sender, BINARY, NOT_UTF8).await;
}
