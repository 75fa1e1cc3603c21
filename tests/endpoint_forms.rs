//! Promise: in whatever form a cluster names its nodes (address, hostname, none at all, by TLS), they are found.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::support::certificate::{authority, certificate, for_names};
use crate::support::redis::Redis;
use crate::support::webws::Webws;
use crate::support::witness::{Witness, upgrades_within};
use crate::support::{SOON, START, free_port, until};

const PATH: &str = "/webws?channel=%22a%22";

/// A cluster of one node that owns all slots.
async fn node(further: &[&str]) -> Redis {
    let bus = free_port().to_string();
    let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus];
    let redis = Redis::start_with(&[&settings, further].concat()).await;
    redis.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    let is_well = async || format!("{:?}", redis.command(&["CLUSTER", "INFO"]).await).contains("cluster_state:ok");
    until("the cluster is well", START, is_well).await;
    redis
}

/// The masters that webws has found, each time that they changed.
fn masters(webws: &Webws) -> Vec<String> {
    let found = webws.entries_with("masters").into_iter();
    found.map(|entry| entry["masters"].as_str().unwrap().to_owned()).collect()
}

/// A text must come back through the node that is known as `master`.
async fn is_found(webws: &Webws, master: &str) {
    assert!(upgrades_within(&webws.target(), PATH, START).await, "{}", webws.log());
    let mut witness = Witness::join(&webws.target(), PATH).await;
    witness.client.send_text("there and back ").await;
    witness.await_text("there and back a", SOON).await;
    assert_eq!(masters(webws), [master]);
}

#[tokio::test]
async fn nodes_are_found_by_address_hostname_or_where_they_were_asked() {
    let hostname = ["--cluster-preferred-endpoint-type", "hostname"];
    let announced = ["--cluster-announce-hostname", "localhost"];
    // At once: a cluster takes two seconds to be well.
    let mut all = JoinSet::new();
    for (settings, host) in [
        // A node that was never met does not know its own address.
        (vec![], "127.0.0.1"),
        (vec!["--cluster-announce-ip", "127.0.0.1"], "127.0.0.1"),
        ([&hostname[..], &announced].concat(), "localhost"),
        // It has no hostname: `?`, with its address in the metadata or not at all.
        (hostname.to_vec(), "127.0.0.1"),
        ([&hostname[..], &["--cluster-announce-ip", "127.0.0.1"]].concat(), "127.0.0.1"),
        (vec!["--cluster-preferred-endpoint-type", "unknown-endpoint"], "127.0.0.1"),
        ([&["--cluster-preferred-endpoint-type", "unknown-endpoint"][..], &announced].concat(), "127.0.0.1"),
    ] {
        for protocol in [&[][..], &["--rename-command", "HELLO", ""]] {
            let settings = [&settings[..], protocol].concat();
            all.spawn(async move {
                let redis = node(&settings).await;
                let port = redis.port();
                let webws = Webws::builder().broker(&format!("redis+cluster://127.0.0.1:{port}")).workers(1);
                let webws = webws.start().await;
                is_found(&webws, &format!("redis://{host}:{port}")).await;
            });
        }
    }
    all.join_all().await;
}

#[tokio::test]
async fn nodes_are_found_by_their_tls_port() {
    let dir = tempfile::tempdir().unwrap();
    authority(dir.path(), "good");
    certificate(dir.path(), "good", "redis", &for_names("DNS:localhost"));
    let file = |name: &str| dir.path().join(name).display().to_string();
    let port = free_port();
    let (number, pem, key, ca) = (port.to_string(), file("server.pem"), file("server.key"), file("good.pem"));
    let mut arguments = vec!["--tls-port", &number, "--tls-cert-file", &pem, "--tls-key-file", &key];
    arguments.extend(["--tls-ca-cert-file", &ca, "--tls-auth-clients", "no", "--tls-cluster", "yes"]);
    arguments.extend(["--cluster-preferred-endpoint-type", "hostname", "--cluster-announce-hostname", "localhost"]);
    let _redis = node(&arguments).await;
    let webws = Webws::builder()
        .broker(&format!("rediss+cluster://localhost:{port}"))
        .workers(1)
        .extra_toml(&format!("[redis]\nca_file = {ca:?}"))
        .start()
        .await;
    is_found(&webws, &format!("rediss://localhost:{port}")).await;
}

/// A node that answers `CLUSTER SLOTS` with one range, of an owner with this endpoint and metadata, and speaks
/// RESP2 only.
async fn fake(endpoint: &str, metadata: &str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let slots = format!("*1\r\n*3\r\n:0\r\n:16383\r\n*4\r\n{endpoint}\r\n:7001\r\n$2\r\nid\r\n{metadata}\r\n");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let slots = slots.clone();
            tokio::spawn(async move {
                let (read, mut write) = client.into_split();
                let mut lines = BufReader::new(read).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let answer = match line.as_str() {
                        "HELLO" => "-ERR unknown command 'HELLO'\r\n",
                        "SETNAME" => "+OK\r\n",
                        "INFO" => "$16\r\ncluster_state:ok\r\n",
                        "SLOTS" => &slots,
                        _ => continue,
                    };
                    if write.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn every_form_on_the_wire_is_understood() {
    let (none, address) = ("*0", "*2\r\n$2\r\nip\r\n$8\r\n10.0.0.1");
    for (endpoint, metadata, host) in [
        ("$8\r\n10.0.0.1", none, "10.0.0.1"),
        ("$9\r\nr.example", address, "r.example"),
        ("$3\r\n::1", none, "[::1]"),
        ("$-1", address, "127.0.0.1"),
        ("$0\r\n", none, "127.0.0.1"),
        ("$1\r\n?", address, "10.0.0.1"),
        ("$1\r\n?", none, "127.0.0.1"),
    ] {
        let port = fake(endpoint, metadata).await;
        let webws = Webws::builder().broker(&format!("redis+cluster://127.0.0.1:{port}")).workers(1).start().await;
        let master = format!("redis://{host}:7001");
        until("it is found", SOON, async || masters(&webws).contains(&master)).await;
    }
}
