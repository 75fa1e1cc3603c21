//! Readers that take their time: for as long as the rules say, or at their pace.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::{Stack, join, path, redis_channel};
use crate::support::client::{Client, Socket};
use crate::support::frame::{Frame, PONG, TEXT};
use crate::support::{SOON, lasting};

const SIZE: usize = 8192;
/// Messages are published this many at a time ..
const BATCH: usize = 4;
/// .. and this far apart.
const PACE: Duration = Duration::from_millis(8);

pub(super) async fn steady_slow_reader_stays(stack: &Stack, messages: usize, until: Duration) {
    let count = messages.min(taken_unread(stack, messages).await + 2);
    let mut fast = join(stack, "slow").await;
    let mut other = join(stack, "slow-other").await;
    let mut slow = slow_reader(stack, "slow").await;
    let connected = Instant::now();
    let flood_ends = until - Duration::from_millis(1300);
    let flooding = async {
        sleep_until(connected + flood_ends.saturating_sub(flood_time(count))).await;
        flood(stack, "slow", count).await;
    };
    let fast_reading = async {
        for n in 0..count {
            assert_message(&next_frame(&mut fast).await, n, "slow");
        }
    };
    let slow_reading = async {
        sleep_until(connected + flood_ends).await;
        let mut ticks = interval(Duration::from_millis(100));
        while Instant::now() < connected + until {
            ticks.tick().await;
            let stays = slow.read_slowly(65_536.min(count * SIZE / 39)).await;
            assert!(stays, "the slow reader is dropped {:?} after its connect", connected.elapsed());
        }
        for n in 0..count {
            assert_message(&next_frame(&mut slow).await, n, "slow");
        }
    };
    let elsewhere = async {
        for n in 0..10 {
            sleep_until(connected + flood_ends.mul_f64(f64::from(n) / 10.0)).await;
            stack.redis.publish(b"chat:slow-other", n.to_string().as_bytes()).await;
            let frame = other.next_but_pings(Duration::from_secs(1)).await;
            let frame = frame.expect("a message on another channel is late");
            assert_eq!(frame.payload, format!("{n}slow-other"));
        }
    };
    tokio::join!(flooding, fast_reading, slow_reading, elsewhere);
    slow.expect_pong(b"still here", SOON).await;
}

pub(super) async fn ping_of_a_slow_reader_is_answered(stack: &Stack, messages: usize) {
    let count = messages.min(taken_unread(stack, messages).await + 2);
    let mut slow = slow_reader(stack, "slow-ping").await;
    flood(stack, "slow-ping", count).await;
    lasting(Duration::from_millis(500)).await;
    slow.send_ping(b"pp").await;
    lasting(Duration::from_millis(300)).await;
    let deadline = Instant::now() + Duration::from_secs(6);
    let (mut texts, mut pongs) = (0, 0);
    while texts < count || pongs < 1 {
        let left = deadline.saturating_duration_since(Instant::now());
        let frame = slow.next_but_pings(left).await;
        let frame =
            frame.unwrap_or_else(|| panic!("{texts} of {count} messages, {pongs} pongs, end: {:?}", slow.end()));
        if frame.opcode == PONG {
            assert_eq!(&frame.raw[..], [0x8a, 0x02, b'p', b'p']);
            pongs += 1;
        } else {
            assert_message(&frame, texts, "slow-ping");
            texts += 1;
        }
    }
    slow.expect_pong(b"still here", SOON).await;
}

/// The rules' k: how many of `messages` reach a client that reads nothing until they are published.
async fn taken_unread(stack: &Stack, messages: usize) -> usize {
    let mut client = slow_reader(stack, "slow-k").await;
    flood(stack, "slow-k", messages).await;
    lasting(Duration::from_millis(500)).await;
    let mut taken = 0;
    while taken < messages {
        match client.next_but_pings(Duration::from_secs(2)).await {
            Some(frame) if frame.opcode == TEXT => {
                assert_message(&frame, taken, "slow-k");
                taken += 1;
            }
            _ => break,
        }
    }
    taken
}

async fn slow_reader(stack: &Stack, name: &str) -> Client {
    let socket = Socket::connect_with(&stack.target(), Some(16_384)).await.unwrap();
    Client::upgrade(socket, &path(name)).await
}

async fn flood(stack: &Stack, name: &str, count: usize) {
    let channel = redis_channel(name);
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0..count {
        if n % BATCH == 0 {
            pace.tick().await;
        }
        stack.redis.publish(&channel, &message(n)).await;
    }
}

fn flood_time(count: usize) -> Duration {
    PACE * u32::try_from(count / BATCH).unwrap()
}

fn message(n: usize) -> Vec<u8> {
    let mut message = format!("{n:08}").into_bytes();
    message.resize(SIZE, b'm');
    message
}

fn assert_message(frame: &Frame, n: usize, name: &str) {
    let expected = [&message(n), name.as_bytes()].concat();
    assert!(frame.payload == expected, "{frame:?} instead of message {n} of {name}");
}

async fn next_frame(client: &mut Client) -> Frame {
    // The fast reader waits for the flood to begin.
    let frame = client.next_but_pings(SOON * 2).await;
    frame.unwrap_or_else(|| panic!("a message is missing, end: {:?}", client.end()))
}
