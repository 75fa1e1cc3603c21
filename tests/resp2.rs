//! Promise: a server that speaks RESP2 only, as Redis before version 6 and several proxies, is served like
//! others. What every broker promises, `contract.rs` has of it too.

use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::Witness;
use crate::support::{SOON, START, until};

const PATH: &str = "/webws?channel=%22a%22";

async fn resp2(further: &[&str]) -> Redis {
    Redis::start_with(&[&["--rename-command", "HELLO", ""], further].concat()).await
}

async fn there_and_back(witness: &mut Witness, text: &str) {
    witness.client.send_text(&format!("{text} ")).await;
    witness.await_text(&format!("{text} a"), SOON).await;
    witness.assert_open();
}

#[tokio::test]
async fn resp2_is_reported_once_at_info_and_links_come_back_after_a_restart() {
    let mut redis = resp2(&[]).await;
    let webws = Webws::builder().broker(&redis.url()).workers(2).start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    there_and_back(&mut witness, "by RESP2").await;
    redis.has_answered().await;
    redis.kill();
    redis.start_again().await;
    until("it is subscribed again", START, async || redis.numsub(b"chat:a").await == 1).await;
    there_and_back(&mut witness, "after a restart").await;
    until("the gap is reported", SOON, async || !webws.gaps().is_empty()).await;
    let log = webws.log();
    let said: Vec<_> = log.lines().filter(|line| line.contains("RESP2")).collect();
    assert!(said.len() == 1 && said[0].contains("\"INFO\""), "{said:?}");
    assert_eq!(webws.warnings().len(), 2, "away, and a gap: {log}");
}

#[tokio::test]
async fn a_link_is_audited_without_errors_and_channels_come_and_go() {
    let redis = resp2(&[]).await;
    let webws = Webws::builder()
        .broker(&redis.url())
        .workers(1)
        .extra_toml("[redis]\nsubscription_linger = \"10ms\"")
        .start()
        .await;
    for n in 0..3 {
        let path = format!("/webws?channel=%22c{n}%22");
        let mut witness = Witness::join(&webws.target(), &path).await;
        let channel = format!("chat:c{n}");
        redis.publish(channel.as_bytes(), b"heard ").await;
        witness.await_text(&format!("heard c{n}"), SOON).await;
        witness.client.close().await;
        until("it is left", SOON, async || redis.numsub(channel.as_bytes()).await == 0).await;
    }
    until("the audit is a PING", START, async || {
        redis.clients().await.iter().any(|link| link.contains("name=webws-subscriber") && link.contains("cmd=ping"))
    })
    .await;
    let errors = redis.command(&["INFO", "errorstats"]).await;
    // HELLO itself, and nothing else.
    assert!(format!("{errors:?}").matches("errorstat_").count() == 1, "{errors:?}");
}

#[tokio::test]
async fn a_password_is_sent_by_auth() {
    let redis = resp2(&[]).await;
    redis.command(&["CONFIG", "SET", "requirepass", "hunter2"]).await;
    let broker = |password: &str| redis.url().replace("://", &format!("://:{password}@"));
    let webws = Webws::builder().broker(&broker("hunter2")).workers(1).start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    there_and_back(&mut witness, "with a password").await;
    let webws = Webws::builder().broker(&broker("hunter3")).workers(1).start().await;
    until("it is said", START, async || webws.warns_of("WRONGPASS")).await;
    assert!(!webws.log().contains("hunter"), "{}", webws.log());
}

#[tokio::test]
async fn a_hand_over_works_by_resp2() {
    let redis = resp2(&[]).await;
    let webws = Webws::builder().broker(&redis.url()).workers(1).exchangeable().start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    there_and_back(&mut witness, "before").await;
    webws.signal(nix::sys::signal::Signal::SIGUSR2);
    until("it is handed over", START, async || webws.heirs().len() == 1).await;
    there_and_back(&mut witness, "behind").await;
}
