//! The cases whose rules are prose, one function each (`expect.rules` is what it asserts).
//!
//! Each has servers of its own, because it stops, stalls or times them.

mod outage;
mod slow;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Stack;
use crate::support::client::{Client, Fin, Socket, upgrade_request};
use crate::support::frame::{Frame, TEXT, client_frame, hex};
use crate::support::{SOON, until};

/// A `driver` of `golden.json` and its parameters.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(tag = "driver", content = "params", rename_all = "snake_case")]
pub(super) enum Scenario {
    RaceOwnEcho { tries: usize },
    Latency { messages: usize, median_ms_max: u64 },
    ReleaseLatency { tries: usize, max_s: f64 },
    Count50 { connections: usize },
    SlowClient { messages: usize, until_s: f64 },
    SlowClientPing { messages: usize },
    RedisSlowSub {},
    RedisSlowPub {},
    RedisKillone {},
    RedisRedisdown {},
    RedisDownAtConnect {},
    Term {},
}

impl Scenario {
    /// Panics with what did not hold.
    pub(super) async fn play(self, stack: Stack) {
        match self {
            Scenario::RaceOwnEcho { tries } => own_text_always_comes_back(&stack, tries).await,
            Scenario::Latency { messages, median_ms_max } => {
                messages_arrive_at_once(&stack, messages, Duration::from_millis(median_ms_max)).await;
            }
            Scenario::ReleaseLatency { tries, max_s } => {
                abrupt_ends_release(stack, tries, Duration::from_secs_f64(max_s)).await;
            }
            Scenario::Count50 { connections } => each_gets_one_copy(&stack, connections).await,
            Scenario::SlowClient { messages, until_s } => {
                slow::steady_slow_reader_stays(&stack, messages, Duration::from_secs_f64(until_s)).await;
            }
            Scenario::SlowClientPing { messages } => {
                slow::ping_of_a_slow_reader_is_answered(&stack, messages).await;
            }
            Scenario::RedisSlowSub {} => outage::stall_at_connect(&stack).await,
            Scenario::RedisSlowPub {} => outage::stall_at_publish(&stack).await,
            Scenario::RedisKillone {} => outage::subscriber_killed(&stack).await,
            Scenario::RedisRedisdown {} => outage::redis_restarted(stack).await,
            Scenario::RedisDownAtConnect {} => outage::redis_down_at_connect(stack).await,
            Scenario::Term {} => term_closes_with_1001(stack).await,
        }
    }
}

/// Upgrades on the lua wire's `"name"`.
async fn join(stack: &Stack, name: &str) -> Client {
    Client::connect(&stack.target(), &path(name)).await
}

fn path(name: &str) -> String {
    format!("/webws?channel=%22{name}%22")
}

fn redis_channel(name: &str) -> Vec<u8> {
    format!("chat:{name}").into_bytes()
}

/// A short text from the server, byte for byte.
fn assert_text(frame: &Frame, text: &str) {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 126, "{text:?} is no short text");
    let expected = [&[0x81, length], text.as_bytes()].concat();
    assert!(frame.raw == expected, "{frame:?} instead of {}", hex(&expected));
}

async fn released(stack: &Stack, name: &str, deadline: Duration) {
    let channel = redis_channel(name);
    let gone = async || stack.redis.numsub(&channel).await == 0;
    until(&format!("NUMSUB chat:{name} is 0"), deadline, gone).await;
}

async fn own_text_always_comes_back(stack: &Stack, tries: usize) {
    const DEADLINE: Duration = Duration::from_millis(1500);
    for i in 0..tries {
        let name = format!("rp{i}");
        let packet = [upgrade_request(&path(&name)), client_frame(Fin::Last as u8 | TEXT, b"x")].concat();
        let socket = Socket::connect(&stack.target()).await.unwrap();
        let mut client = Client::request(socket, &packet).await.expect("no reply");
        let frame = client.next_frame(DEADLINE).await.expect("the text in the packet of the request is lost");
        assert_text(&frame, &format!("x{name}"));

        let name = format!("rq{i}");
        let mut client = join(stack, &name).await;
        client.send_text("x").await;
        let frame = client.next_frame(DEADLINE).await.expect("the text at once after the 101 is lost");
        assert_text(&frame, &format!("x{name}"));
    }
}

async fn messages_arrive_at_once(stack: &Stack, messages: usize, median_max: Duration) {
    let mut client = join(stack, "lat").await;
    let mut delays = Vec::new();
    for i in 0..messages {
        let start = Instant::now();
        stack.redis.publish(b"chat:lat", i.to_string().as_bytes()).await;
        let frame = client.next_but_pings(SOON).await.expect("a message is missing");
        delays.push(start.elapsed());
        assert_text(&frame, &format!("{i}lat"));
    }
    delays.sort();
    let median = delays[delays.len() / 2];
    assert!(median <= median_max, "the median delay is {median:?}, not {median_max:?} at most");
}

async fn abrupt_ends_release(stack: Stack, tries: usize, max: Duration) {
    let stack = Arc::new(stack);
    let mut running = JoinSet::new();
    for i in 0..tries {
        let stack = Arc::clone(&stack);
        running.spawn(async move {
            let name = format!("rl{i}");
            let channel = redis_channel(&name);
            let client = join(&stack, &name).await;
            until("subscribed", SOON, async || stack.redis.numsub(&channel).await > 0).await;
            let half_closed = if i % 2 == 0 {
                client.fin();
                Some(client)
            } else {
                client.reset();
                None
            };
            released(&stack, &name, max).await;
            drop(half_closed);
        });
    }
    running.join_all().await;
}

async fn each_gets_one_copy(stack: &Stack, connections: usize) {
    let mut clients = Vec::new();
    for _ in 0..connections {
        clients.push(join(stack, "c50").await);
    }
    clients[0].send_text("all").await;
    for client in &mut clients {
        let frame = client.next_frame(SOON).await.expect("the text is missing");
        assert_text(&frame, "allc50");
    }
    for client in &mut clients {
        // A second copy would have left with the first.
        client.expect_silence(Duration::from_millis(10)).await;
    }
    for client in clients.split_off(connections / 2) {
        client.reset();
    }
    for client in clients {
        client.close().await;
    }
    released(stack, "c50", Duration::from_secs(3)).await;
}

async fn term_closes_with_1001(mut stack: Stack) {
    let mut client = join(&stack, "term").await;
    stack.webws.term();
    client.expect_close(1001, SOON).await;
    released(&stack, "term", Duration::from_secs(3)).await;
    stack.webws.wait_exit(Duration::from_secs(10)).await;
}
