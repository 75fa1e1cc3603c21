//! Producers: numbered messages by plain PUBLISH, by scripts and by transactions, in turns. May not enter: clients.

use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, RedisResult};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::message::{CHANNELS, Id, redis_name};

/// Between two batches of a producer.
const TICK: Duration = Duration::from_millis(10);

const SCRIPT: &str = "for n = 1, #ARGV, 2 do redis.call('PUBLISH', ARGV[n], ARGV[n + 1]) end";

/// Publishes until it is stopped. Returns for each number whether Redis has confirmed it.
pub(super) async fn produce(
    producer: u8,
    rate: u32,
    mut master: watch::Receiver<u16>,
    stop: watch::Receiver<bool>,
) -> Vec<bool> {
    let batch = rate * u32::try_from(TICK.as_millis()).unwrap() / 1_000;
    let (mut confirmed, mut connection) = (Vec::new(), None);
    let mut pace = interval(TICK);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in 0.. {
        pace.tick().await;
        if *stop.borrow() {
            break;
        }
        if master.has_changed().unwrap() {
            connection = None;
        }
        let port = *master.borrow_and_update();
        let Some(open) = &mut connection else {
            connection = connect(port).await.ok();
            continue;
        };
        let first = u32::try_from(confirmed.len()).unwrap();
        let messages: Vec<_> = (first..first + batch)
            .map(|number| {
                let channel = (number as usize * 7 + usize::from(producer)) % CHANNELS;
                (redis_name(channel), Id { producer, number }.payload())
            })
            .collect();
        let published = publish(open, turn, &messages).await;
        confirmed.resize(confirmed.len() + messages.len(), published.is_ok());
        if published.is_err() {
            connection = None;
        }
    }
    confirmed
}

/// A connection that waits longer than any stall that a test makes (the crate's default is 500 ms).
pub(super) async fn connect(port: u16) -> RedisResult<MultiplexedConnection> {
    let patience = Some(Duration::from_secs(20));
    let config = AsyncConnectionConfig::new().set_connection_timeout(patience).set_response_timeout(patience);
    let client = Client::open(format!("redis://127.0.0.1:{port}"))?;
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Publishes messages, each a channel and a payload, in one of three ways.
async fn publish(to: &mut MultiplexedConnection, turn: usize, messages: &[(String, String)]) -> RedisResult<()> {
    if turn.is_multiple_of(3) {
        let mut script = ::redis::cmd("EVAL");
        script.arg(SCRIPT).arg(0).arg(messages);
        return script.exec_async(to).await;
    }
    let mut pipeline = ::redis::pipe();
    if turn % 3 == 1 {
        pipeline.atomic();
    }
    for (channel, payload) in messages {
        pipeline.publish(channel, payload).ignore();
    }
    pipeline.exec_async(to).await
}
