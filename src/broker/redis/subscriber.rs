//! A worker's subscribing link: made, kept, and made again with every wanted channel.
//!
//! One command is under way at a time and what comes meanwhile is coalesced into the next,
//! so confirmations are never mixed up and a storm of handshakes costs few round trips.
//! A channel counts as subscribed when Redis' confirmation is seen in the stream of
//! messages, not when the command returns. The messages themselves never come here: `sieve.rs`.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::time::Instant;

use super::connect::{LinkError, Role};
use super::supervisor::Backoff;
use super::{Command, Links};
use crate::broker::{Refused, Sink};
use crate::endpoint::Channel;

/// Channels per command. Chosen: 1,000 names are some 30 kB, so a resubscription of many
/// channels is interleaved with messages and stays far under Redis' query buffer.
const CHUNK: usize = 1_000;

/// A link with nothing to do is asked for a sign of life this often.
const PING_INTERVAL: Duration = Duration::from_secs(5);

thread_local! {
    /// The worker of this thread. The crate wants a push callback that is Send and Sync,
    /// so it cannot hold the worker itself.
    static TARGET: RefCell<Option<Rc<dyn Sink>>> = const { RefCell::new(None) };
}

/// Lets this thread's pushes reach a worker for as long as it exists.
#[derive(Debug)]
pub(super) struct PushTarget;

impl PushTarget {
    pub(super) fn set(sink: Rc<dyn Sink>) -> Self {
        TARGET.set(Some(sink));
        Self
    }
}

impl Drop for PushTarget {
    fn drop(&mut self) {
        TARGET.set(None);
    }
}

pub(super) fn with_target(act: impl FnOnce(&dyn Sink)) {
    TARGET.with_borrow(|target| {
        if let Some(sink) = target {
            act(&**sink);
        }
    });
}

/// Runs inside the link's driver, once per push, in the order of the stream.
#[expect(clippy::needless_pass_by_value, clippy::unnecessary_wraps, reason = "the signature is the crate's")]
pub(super) fn on_push(push: PushInfo) -> Result<(), std::convert::Infallible> {
    if let (PushKind::Subscribe, [Value::BulkString(channel), ..]) = (&push.kind, push.data.as_slice()) {
        with_target(|sink| sink.on_subscribed(channel));
    }
    Ok(())
}

/// Keeps the link, forever.
pub(super) async fn run(links: &Links, sink: &dyn Sink) {
    let mut backoff = Backoff::new(links.settings.max_reconnect_delay);
    loop {
        match links.settings.connect(Role::Subscriber).await {
            Err(error) => links.health.attempt_failed(&error),
            Ok((mut connection, driver)) => {
                let error = tokio::select! {
                    biased;
                    () = driver => LinkError::Closed,
                    error = serve(links, sink, &mut connection, &mut backoff) => error,
                };
                links.unanswered_since.set(None);
                if links.is_deaf() {
                    links.health.attempt_failed(&error);
                } else {
                    links.health.link_is_lost(&error);
                    links.deaf_since.set(Some(Instant::now()));
                    links.health.worker_is_deaf();
                }
                sink.on_lost();
            }
        }
        backoff.wait().await;
    }
}

async fn serve(
    links: &Links,
    sink: &dyn Sink,
    connection: &mut MultiplexedConnection,
    backoff: &mut Backoff,
) -> LinkError {
    // No await between these two: what is wanted from here on is commanded from here on.
    links.commands.borrow_mut().clear();
    let wanted = sink.wanted();
    for chunk in wanted.chunks(CHUNK) {
        if let Err(error) = subscribe(links, sink, connection, chunk).await {
            return error;
        }
    }
    links.deaf_since.set(None);
    links.heard_at.set(Instant::now());
    links.health.worker_hears();
    links.hears_again.notify_one();
    links.health.link_is_up();
    backoff.reset();
    loop {
        let asked = tokio::time::timeout(PING_INTERVAL, links.commands_wait.notified()).await;
        let done = match asked {
            Ok(()) => obey(links, sink, connection).await,
            Err(_) => answered(links, connection.send_packed_command(&redis::cmd("PING"))).await.map(drop),
        };
        if let Err(error) = done {
            return error;
        }
    }
}

/// Carries out all commands, each run of the same kind as one.
async fn obey(links: &Links, sink: &dyn Sink, connection: &mut MultiplexedConnection) -> Result<(), LinkError> {
    loop {
        let (mut join, mut leave) = (Vec::new(), Vec::new());
        {
            let mut commands = links.commands.borrow_mut();
            while join.len() + leave.len() < CHUNK {
                match commands.pop_front() {
                    Some(Command::Subscribe(channel)) if leave.is_empty() => join.push(channel),
                    Some(Command::Unsubscribe(channel)) if join.is_empty() => leave.push(channel),
                    Some(other_kind) => {
                        commands.push_front(other_kind);
                        break;
                    }
                    None => break,
                }
            }
        }
        if !join.is_empty() {
            subscribe(links, sink, connection, &join).await?;
        } else if !leave.is_empty() {
            answered(links, connection.unsubscribe(names(&leave))).await?;
        } else {
            return Ok(());
        }
    }
}

/// Subscribes; when Redis refuses, one by one, to find whom it refuses.
async fn subscribe(
    links: &Links,
    sink: &dyn Sink,
    connection: &mut MultiplexedConnection,
    channels: &[Channel],
) -> Result<(), LinkError> {
    match answered(links, connection.subscribe(names(channels))).await {
        Err(LinkError::Ended(error)) if is_refusal(&error) => {}
        done => return done,
    }
    for channel in channels {
        match answered(links, connection.subscribe(names(std::slice::from_ref(channel)))).await {
            Err(LinkError::Ended(error)) if is_refusal(&error) => {
                tracing::debug!(%error, "Redis refuses a channel");
                sink.on_refused(channel, Refused(format!("Redis refuses the channel: {error}").into()));
            }
            done => done?,
        }
    }
    Ok(())
}

/// Whether Redis answered, and the answer was no.
fn is_refusal(error: &RedisError) -> bool {
    !error.is_unrecoverable_error() && error.code().is_some()
}

fn names(channels: &[Channel]) -> Vec<&[u8]> {
    channels.iter().map(|channel| &**channel).collect()
}

async fn answered<T>(links: &Links, answer: impl Future<Output = RedisResult<T>>) -> Result<T, LinkError> {
    let timeout = links.settings.response_timeout;
    links.unanswered_since.set(Some(Instant::now()));
    let answer = tokio::time::timeout(timeout, answer).await;
    links.unanswered_since.set(None);
    match answer {
        Ok(answer) => answer.map_err(LinkError::Ended),
        Err(_) => Err(LinkError::Silent("Redis".to_owned(), timeout)),
    }
}
