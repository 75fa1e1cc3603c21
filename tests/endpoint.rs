//! Promise: a path belongs to one endpoint, which serves what the nginx location of the Lua handler served;
//! and an endpoint of channels in paths works behind nginx as the README says.

use std::process::Command;

use crate::support::SOON;
use crate::support::client::Client;
use crate::support::http::{get, handshake};
use crate::support::nginx::Nginx;
use crate::support::redis::Redis;
use crate::support::webws::Webws;

const README: &str = include_str!("../README.md");

#[tokio::test]
async fn an_endpoint_serves_its_path_and_what_is_below_it() {
    let webws = Webws::builder()
        .broker("memory")
        .endpoint_toml("path = \"/webws\"")
        .endpoint_toml("path = \"/news\"\nchannel = \"path\"")
        .endpoint_toml("path = \"/webws/plain\"\nwire = \"plain\"")
        .start()
        .await;
    let target = webws.target();
    for (path, received) in [
        ("/webws", "hi zhang"),
        ("/webws/", "hi zhang"),
        ("/webws/foo", "hi zhang"),
        ("/webws/foo/bar.html", "hi zhang"),
        ("/webws/plain", "hi "),
        ("/webws/plain/foo", "hi "),
        ("/news/zhang", "hi zhang"),
    ] {
        let mut client = Client::connect(&target, &format!("{path}?channel=%22zhang%22")).await;
        client.send_text("hi ").await;
        client.expect_text(received).await;
    }
    for path in ["/", "/webwsfoo", "/Webws", "/web", "/news", "/news/", "/news/a/b"] {
        assert_eq!(handshake(&target, &format!("{path}?channel=1")).await.head.status, 404, "{path}");
    }
}

#[tokio::test]
async fn health_is_told_beside_an_endpoint_that_serves_everything() {
    let webws = Webws::builder().broker("memory").endpoint_toml("path = \"/\"").start().await;
    let target = webws.target();
    assert_eq!(handshake(&target, "/any/thing?channel=1").await.head.status, 101);
    for path in ["/readyz", "/healthz"] {
        assert_eq!(get(&target, path).await.body, "ok\n");
    }
}

/// The shipped location as the README's command changes it.
fn for_paths(shipped: &str) -> String {
    let start = README.find("sed -e 's#location = /webws").expect("the README's recipe");
    let recipe = &README[start..];
    let recipe = &recipe[..recipe.find("# in your server{}").expect("what to do with it")];
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("webws-location.conf"), shipped).unwrap();
    let recipe = recipe.replace("/etc/nginx/", &format!("{}/", dir.path().display()));
    assert!(Command::new("sh").args(["-ec", &recipe]).status().unwrap().success(), "{recipe}");
    std::fs::read_to_string(dir.path().join("webws-news.conf")).unwrap()
}

#[tokio::test]
async fn the_recipe_for_channels_in_paths_works_as_copied() {
    let redis = Redis::start().await;
    let start = README.find("[[endpoint]]                # /news/sport").expect("the README's endpoint");
    let endpoint = &README[start..];
    let endpoint = &endpoint[..endpoint.find("```").unwrap()];
    let webws =
        Webws::builder().broker(&redis.url()).endpoint_toml("path = \"/webws\"").extra_toml(endpoint).start().await;
    let edit = |name: &str, text: String| match name {
        "webws-location.conf" => format!("{text}\n{}", for_paths(&text)),
        _ => text,
    };
    let nginx = Nginx::start_complete(&webws.socket(), edit).await;
    for (path, channel) in [
        ("/news/sport", "news:sport"),
        ("/news/zh%20ang?token=1", "news:zh ang"),
        ("/news/%E4%B8%AD", "news:\u{4e2d}"),
        ("/news/\u{4e2d}", "news:\u{4e2d}"),
        ("/news/50%25", "news:50%"),
        ("/news/a\"<>b", "news:a\"<>b"),
        // nginx decides what a path is, and webws is told that.
        ("/x/../news/sport", "news:sport"),
        ("//news/./sport", "news:sport"),
    ] {
        let mut client = Client::connect(&nginx.target(), path).await;
        redis.publish(channel.as_bytes(), path.as_bytes()).await;
        client.expect_text(path).await;
    }
    for (path, status) in [("/news/", 404), ("/news/a/b", 404), ("/news/a%2Fb", 404), ("/news/../webws", 400)] {
        assert_eq!(handshake(&nginx.target(), path).await.head.status, status, "{path}");
    }
    // The drop-in beside it is as it was.
    let mut client = Client::connect(&nginx.target(), "/webws?channel=%22zhang%22").await;
    client.send_text("hi ").await;
    let frame = client.next_but_pings(SOON).await.unwrap();
    assert_eq!(&frame.payload[..], b"hi zhang");
}
