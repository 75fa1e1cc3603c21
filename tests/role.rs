//! Promise: a server that is no master any more is left, whoever still calls it by its name; no message is lost
//! there without a word, and readiness says why nothing flows.

use std::time::Duration;

use serde_json::Value;

use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::{Witness, upgrades_within};
use crate::support::{SOON, throughout, until};

const PATH: &str = "/webws?channel=%22a%22";

/// The warnings that a server does not say whether it is a master: of those about a server, the ones without an
/// error and without a gap.
fn unknown_roles(webws: &Webws) -> usize {
    let is_one =
        |entry: &Value| entry["server"].is_string() && entry["error"].is_null() && entry["length_ms"].is_null();
    webws.warnings().iter().filter(|entry| is_one(entry)).count()
}

async fn says_replica(webws: &Webws) -> bool {
    let (status, why) = webws.readiness().await;
    status == 503 && why.contains("is a replica")
}

/// Makes `redis` a replica of the server at `port`, and waits until it follows.
async fn follow(redis: &Redis, port: u16) {
    redis.command(&["REPLICAOF", "127.0.0.1", &port.to_string()]).await;
    until("it follows", 2 * SOON, async || {
        format!("{:?}", redis.command(&["INFO", "replication"]).await).contains("master_link_status:up")
    })
    .await;
}

async fn lead(redis: &Redis) {
    redis.command(&["REPLICAOF", "NO", "ONE"]).await;
}

async fn pair() -> (Redis, Redis) {
    let (old, new) = (Redis::start().await, Redis::start_with(&["--repl-diskless-sync-delay", "0"]).await);
    old.command(&["CONFIG", "SET", "repl-diskless-sync-delay", "0"]).await;
    follow(&new, old.port()).await;
    (old, new)
}

#[tokio::test]
async fn a_demoted_master_is_left_for_the_one_that_its_name_leads_to_now() {
    let (old, new) = pair().await;
    let way = Proxy::start_on(([127, 0, 0, 2], old.port()).into(), new.port()).await;
    let broker = format!("redis://redis.test:{}", old.port());
    let keep = "path = \"/webws\"\npublish_timeout = \"60s\"";
    let webws = Webws::builder()
        .broker(&broker)
        .workers(2)
        .endpoint_toml(keep)
        .endpoint_toml("path = \"/told\"\non_gap = \"close\"")
        .hosts("127.0.0.1 redis.test\n")
        .start()
        .await;
    let target = webws.target();
    let mut witness = Witness::join(&target, PATH).await;
    let mut told = Witness::join(&target, "/told?channel=%22a%22").await;
    until("it is ready", SOON, async || webws.is_ready().await).await;
    // Planned: the links stay open, and what is published at the old master stays there.
    lead(&new).await;
    follow(&old, new.port()).await;
    until("it says why it is not ready", SOON, async || says_replica(&webws).await).await;
    let (status, why) = webws.readiness().await;
    assert!(status == 503 && why.contains(&format!("127.0.0.1:{}", old.port())), "{why}");
    let spy = new.spy(b"chat:a").await;
    witness.client.send_text("waits ").await;
    webws.set_hosts("127.0.0.2 redis.test\n");
    until("the new master hears it", 2 * SOON, async || spy.seen() == ["waits "]).await;
    witness.await_text("waits a", SOON).await;
    new.publish(b"chat:a", b"from there ").await;
    witness.await_text("from there a", SOON).await;
    witness.assert_open();
    told.expect_close(1012, SOON).await;
    until("it is ready again", SOON, async || webws.is_ready().await).await;
    until("the gap is reported", SOON, async || !webws.gaps().is_empty()).await;
    assert!(webws.outages().len() == 1 && webws.warns_of("is a replica"), "{}", webws.log());
    drop(way);
}

#[tokio::test]
async fn a_client_is_told_when_a_demoted_master_took_its_message() {
    let (old, new) = pair().await;
    let webws = Webws::builder().broker(&old.url()).workers(1).start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    let mut silent = Witness::join(&webws.target(), PATH).await;
    until("it is ready", SOON, async || webws.is_ready().await).await;
    let spy = new.spy(b"chat:a").await;
    // Right behind a look at the role, so that this text is taken before the next one.
    lead(&new).await;
    old.command(&["REPLICAOF", "127.0.0.1", &new.port().to_string()]).await;
    witness.client.send_text("lost ").await;
    while witness.closed.is_none() {
        assert!(witness.take(2 * SOON).await, "{}", webws.log());
    }
    assert_eq!(witness.closed, Some(1013));
    assert_eq!(spy.seen(), [""; 0]);
    silent.ping(b"still there", SOON).await;
    silent.assert_open();
}

#[tokio::test]
async fn a_virtual_address_that_moves_while_the_links_stay_open_is_followed() {
    let (old, new) = pair().await;
    let address = Proxy::start(old.port()).await;
    let webws = Webws::builder().broker(&address.url()).workers(1).start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    address.lead_to(new.port());
    lead(&new).await;
    follow(&old, new.port()).await;
    until("it listens there", 2 * SOON, async || new.numsub(b"chat:a").await == 1).await;
    witness.client.send_text("there and back ").await;
    witness.await_text("there and back a", SOON).await;
    assert_eq!(old.numsub(b"chat:a").await, 0);
    witness.assert_open();
}

#[tokio::test]
async fn a_replica_is_not_used_until_it_is_a_master_whatever_its_own_master_does() {
    let (mut master, replica) = pair().await;
    let webws = Webws::builder().broker(&replica.url()).workers(1).start().await;
    let target = webws.target();
    until("it says why", SOON, async || says_replica(&webws).await).await;
    master.kill();
    let is_alone =
        async || format!("{:?}", replica.command(&["INFO", "replication"]).await).contains("master_link_status:down");
    until("the replica has lost its master", SOON, is_alone).await;
    throughout("it is refused", Duration::from_secs(1), async || says_replica(&webws).await).await;
    assert!(!upgrades_within(&target, PATH, Duration::from_secs(1)).await);
    lead(&replica).await;
    assert!(upgrades_within(&target, PATH, 2 * SOON).await, "{}", webws.log());
    assert_eq!(webws.warnings().len(), 1, "{}", webws.log());
}

#[tokio::test]
async fn of_several_addresses_the_masters_is_used() {
    let (master, replica) = pair().await;
    let ways = [
        Proxy::start_on(([127, 0, 0, 2], replica.port()).into(), replica.port()).await,
        Proxy::start_on(([127, 0, 0, 3], replica.port()).into(), master.port()).await,
    ];
    // The replica first, in the file as for the resolver (RFC 6724 §5, rule 9).
    let hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"].map(|address| format!("{address} redis.test\n")).concat();
    let broker = format!("redis://redis.test:{}", replica.port());
    let webws = Webws::builder().broker(&broker).workers(2).hosts(&hosts).start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    assert_eq!((master.numsub(b"chat:a").await, replica.numsub(b"chat:a").await), (1, 0));
    // Links that are lost find the same way.
    master.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    until("it is subscribed again", SOON, async || master.numsub(b"chat:a").await == 1).await;
    witness.client.send_text("there and back ").await;
    witness.await_text("there and back a", SOON).await;
    assert_eq!(replica.numsub(b"chat:a").await, 0);
    drop(ways);
}

#[tokio::test]
async fn of_several_servers_only_the_demoted_one_is_left() {
    let (old, new) = pair().await;
    let other = Redis::start().await;
    let address = Proxy::start(old.port()).await;
    let broker = format!("{} {}", other.url(), address.url());
    let webws = Webws::builder().broker(&broker).workers(1).start().await;
    // As the README computes it for two: zhang on the second, li there as well, c0 to c3 on either.
    let mut witnesses = Vec::new();
    for name in ["zhang", "li", "c0", "c1", "c2", "c3"] {
        let witness = Witness::join(&webws.target(), &format!("/webws?channel=%22{name}%22")).await;
        let is_moving = old.numsub(format!("chat:{name}").as_bytes()).await == 1;
        witnesses.push((name, is_moving, witness));
    }
    assert!(witnesses.iter().any(|(_, is_moving, _)| *is_moving) && witnesses.iter().any(|(_, moves, _)| !moves));
    address.lead_to(new.port());
    lead(&new).await;
    follow(&old, new.port()).await;
    let moved = witnesses.iter().filter(|(_, is_moving, _)| *is_moving);
    for (name, ..) in moved {
        let channel = format!("chat:{name}");
        until("it has moved", 2 * SOON, async || new.numsub(channel.as_bytes()).await == 1).await;
    }
    for (name, _, witness) in &mut witnesses {
        witness.client.send_text("there and back ").await;
        witness.await_text(&format!("there and back {name}"), SOON).await;
        witness.assert_open();
    }
    until("the gap is reported", SOON, async || !webws.gaps().is_empty()).await;
    assert_eq!(webws.gaps().len(), 1, "{}", webws.log());
}

#[tokio::test]
async fn a_plain_address_of_a_sentinel_is_answered_with_the_right_scheme() {
    let dir = tempfile::tempdir().unwrap();
    let port = crate::support::free_port();
    let file = dir.path().join("sentinel.conf");
    let text = format!("port {port}\nbind 127.0.0.1\nlogfile sentinel.log\ndir {}\n", dir.path().display());
    std::fs::write(&file, text).unwrap();
    let mut command = std::process::Command::new("redis-server");
    command.arg(&file).arg("--sentinel").stdout(std::process::Stdio::null());
    let kill = nix::sys::signal::Signal::SIGKILL;
    let _sentinel = crate::support::Process::spawn(&mut command, kill, "apt-get install redis-server");
    let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
    until("it listens", crate::support::START, listens).await;
    let webws = Webws::builder().broker(&format!("redis://127.0.0.1:{port}")).workers(1).start().await;
    until("it says so", 2 * SOON, async || webws.readiness().await.1.contains("is a Sentinel")).await;
    until("the log has the right address", SOON, async || webws.warns_of("redis+sentinel://")).await;
}

#[tokio::test]
async fn a_server_that_refuses_to_tell_its_role_is_reported_once_and_asked_again() {
    let redis = Redis::start_with(&["--rename-command", "HELLO", ""]).await;
    let rights = "on >pw allkeys allchannels +@all -role";
    let words: Vec<_> = ["ACL", "SETUSER", "web"].into_iter().chain(rights.split(' ')).collect();
    redis.command(&words).await;
    let broker = redis.url().replace("redis://", "redis://web:pw@");
    let webws = Webws::builder().broker(&broker).workers(2).start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    witness.client.send_text("there and back ").await;
    witness.await_text("there and back a", SOON).await;
    until("it is reported", SOON, async || unknown_roles(&webws) == 1).await;
    // From now on it may be asked, and that is found out.
    redis.command(&["ACL", "SETUSER", "web", "+role"]).await;
    redis.command(&["REPLICAOF", "127.0.0.1", &crate::support::free_port().to_string()]).await;
    until("it is noticed", 4 * SOON, async || says_replica(&webws).await).await;
    assert_eq!(unknown_roles(&webws), 1, "{}", webws.log());
}

#[tokio::test]
async fn a_right_to_ask_for_the_role_that_is_taken_away_is_reported_and_found_again() {
    let redis = Redis::start_with(&["--rename-command", "HELLO", ""]).await;
    let words = ["ACL", "SETUSER", "web", "on", ">pw", "allkeys", "allchannels", "+@all"];
    redis.command(&words).await;
    let broker = redis.url().replace("redis://", "redis://web:pw@");
    let webws = Webws::builder().broker(&broker).workers(1).start().await;
    let mut witness = Witness::join(&webws.target(), PATH).await;
    assert_eq!(unknown_roles(&webws), 0, "{}", webws.log());
    redis.command(&["ACL", "SETUSER", "web", "-role"]).await;
    until("it is reported", SOON, async || unknown_roles(&webws) > 0).await;
    redis.command(&["ACL", "SETUSER", "web", "+role"]).await;
    redis.command(&["REPLICAOF", "127.0.0.1", &crate::support::free_port().to_string()]).await;
    until("it is noticed", 4 * SOON, async || says_replica(&webws).await).await;
    witness.assert_open();
    witness.ping(b"still there", SOON).await;
}
