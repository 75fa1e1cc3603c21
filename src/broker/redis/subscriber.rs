//! A worker's subscribing link: made, kept, and made again with every wanted channel.
//!
//! One command is under way at a time and what comes meanwhile is coalesced into the next,
//! so confirmations are never mixed up and a storm of handshakes costs few round trips.
//! A channel counts as subscribed when Redis' confirmation is seen in the stream of
//! messages, not when the command returns. The messages themselves never come here: `sieve.rs`.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio::time::{Instant, timeout_at};

use super::cluster::NEWS;
use super::connect::{LinkError, Made, Role, ask, is_for_now, is_not_allowed, is_refusal};
use super::greeting::Protocol;
use super::role::Watch;
use super::supervisor::Backoff;
use super::{Command, Links, LinksState, MarkState, RETRY, Roster, refusal};
use crate::broker::{Gap, Sink};
use crate::channel::Channel;
use crate::channel::SubscriptionRefused;
use crate::clock;
use crate::placement::Node;
use crate::throttle::Throttle;

/// Channels per command, and the bytes of their names, which come back with the confirmations. Chosen: 1,000
/// names are some 30 kB, so a resubscription of many channels is interleaved with messages and stays far
/// under Redis' query and output buffers, however long the names are.
const CHUNK: usize = 1_000;
const CHUNK_BYTES: usize = 64 << 10;

/// How often what Redis has is compared with what the worker wants; that also keeps a link without
/// channels from being idle. Chosen: some hundred bytes each, and a channel that went lost is back
/// before its clients give up.
const AUDIT_INTERVAL: Duration = Duration::from_secs(5);

thread_local! {
    /// The worker of this thread. The crate wants streams and callbacks that are Send and Sync,
    /// so they cannot hold the worker itself.
    static TARGET: RefCell<Option<Target>> = const { RefCell::new(None) };
}

/// Where this thread's messages and pushes go.
pub(super) struct Target {
    sink: Rc<dyn Sink>,
    links: Roster,
}

/// Lets messages reach a worker for as long as it exists.
pub(super) struct TargetGuard;

impl Target {
    pub(super) fn set(sink: Rc<dyn Sink>, links: Roster) -> TargetGuard {
        TARGET.set(Some(Self { sink, links }));
        TargetGuard
    }
}

impl Drop for TargetGuard {
    fn drop(&mut self) {
        TARGET.set(None);
    }
}

/// Calls `act` with this thread's worker and its links to `node`.
fn with_target<T>(Node(node): Node, act: impl FnOnce(&dyn Sink, &Links) -> T) -> Option<T> {
    TARGET.with_borrow(|target| {
        let Target { sink, links } = target.as_ref()?;
        links.borrow().get(node).map(|links| act(&**sink, links))
    })
}

/// A message, in the order of the stream.
pub(super) fn on_message(node: Node, channel: &[u8], payload: &[u8]) {
    with_target(node, |sink, links| {
        if links.state.get() != LinksState::Kept {
            // Its channels are heard elsewhere, from a gap on that is known.
        } else if links.is_mark(channel) {
            // Whoever else may publish here must not decide where the stream stops.
            if links.is_sealed(payload) {
                links.set_mark_state(MarkState::Reached);
            }
        } else if !links.probe.takes(channel, payload) {
            sink.on_publication(channel, payload);
        }
    });
}

/// Whether the stream stands still; `waker` is woken when it goes on.
pub(super) fn is_stopped(node: Node, waker: Option<&Waker>) -> bool {
    let told = with_target(node, |_, links| {
        let is_stopped = links.mark_state() == Some(MarkState::Reached);
        if let Some(waker) = waker.filter(|_| is_stopped) {
            links.stopped.replace(Some(waker.clone()));
        }
        is_stopped
    });
    told.unwrap_or_default()
}

/// Messages came.
pub(super) fn on_heard(node: Node) {
    with_target(node, |_, links| links.probe.on_heard());
}

/// The link has nothing more to give at the moment.
pub(super) fn on_pause(node: Node) {
    with_target(node, |sink, _| sink.on_pause());
}

/// A sharded channel is not subscribed any more. False when that is an answer.
pub(super) fn on_unsubscribed(node: Node, channel: &[u8]) -> bool {
    let told = with_target(node, |sink, links| {
        if links.leaving.borrow_mut().remove(channel) {
            return false;
        }
        if links.probe.is_on(channel) {
            // Another name is found at the next audit.
            links.probe.lose();
        } else if sink.on_dropped(node, channel) {
            let known = links.cluster.as_ref().and_then(|cluster| cluster.known_at()?.checked_sub(NEWS));
            links.lost(links.heard_until(known.unwrap_or_else(Instant::now)));
        }
        links.contradicted();
        true
    });
    told.unwrap_or_default()
}

/// Runs inside the link's driver, once per push, in the order of the stream.
#[expect(clippy::needless_pass_by_value, clippy::unnecessary_wraps, reason = "the signature is the crate's")]
pub(super) fn on_push(node: Node, push: PushInfo) -> Result<(), std::convert::Infallible> {
    if let (PushKind::Subscribe | PushKind::SSubscribe, [Value::BulkString(channel), ..]) =
        (&push.kind, push.data.as_slice())
    {
        with_target(node, |sink, links| {
            if !links.probe.is_on(channel) && !links.is_mark(channel) {
                sink.on_subscribed(node, channel);
            }
        });
    }
    Ok(())
}

/// Keeps the link, forever.
pub(super) async fn run(links: &Links, sink: &dyn Sink) {
    let mut backoff = Backoff::new(links.settings.max_reconnect_delay);
    loop {
        let on_slow = |slow: &LinkError| links.health.attempt_failed(slow);
        match links.settings.connect(Role::Subscriber(links.node), &on_slow).await {
            Err(error) => links.health.attempt_failed(&error),
            Ok(Made { mut connection, driver, master, address, mut role, protocol }) => {
                links.protocol.set(protocol);
                links.subscriber_at.replace(master.clone());
                if !role.is_told() {
                    links.health.role_is_unknown();
                }
                if protocol == Protocol::Resp2 {
                    // There the publisher asks for both.
                    role.end();
                }
                let error = tokio::select! {
                    biased;
                    () = driver => LinkError::Closed,
                    error = serve(links, sink, &mut connection, (&mut role, &address), &mut backoff) => error,
                    error = links.settings.is_moved(master.as_ref()) => error,
                    silence = hears_nothing(links) => LinkError::Deaf(silence),
                };
                links.unanswered_since.set(None);
                links.probe.end();
                links.leaving.borrow_mut().clear();
                links.retry_at.set(None);
                links.set_mark_state(MarkState::Lost);
                if sink.subscribed(links.node) > 0 || !links.is_deaf() {
                    links.lost(match error {
                        // What the probe heard says nothing about a subscription that Redis forgot.
                        LinkError::Fewer(_) => links.audited_at.get(),
                        // Its new master may have had messages since that it did not hear of.
                        LinkError::NoMaster(..) => role.master_at(),
                        _ => links.probe.heard_at(),
                    });
                }
                if links.is_deaf() {
                    links.health.attempt_failed(&error);
                } else {
                    links.health.link_is_lost(&error);
                    links.deaf_since.set(Some(Instant::now()));
                    links.health.worker_is_deaf();
                }
                sink.on_lost(links.node);
            }
        }
        backoff.wait().await;
    }
}

/// Resolves when a probe is missing, unless the stream stands still at a mark.
async fn hears_nothing(links: &Links) -> Duration {
    loop {
        let silence = links.probe.is_missed().await;
        if links.mark_state() != Some(MarkState::Reached) {
            return silence;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn serve(
    links: &Links,
    sink: &dyn Sink,
    connection: &mut MultiplexedConnection,
    (role, address): (&mut Watch, &str),
    backoff: &mut Backoff,
) -> LinkError {
    if let Err(error) = subscribe_probe(links, connection).await {
        return error;
    }
    // No await between these two: what is wanted from here on is commanded from here on.
    links.commands.borrow_mut().clear();
    let wanted = sink.wanted(links.node);
    if let Err(error) = subscribe_all(links, sink, connection, &wanted).await {
        return error;
    }
    let count = match judge_count(links, sink, connection).await {
        Ok(count) => count,
        Err(error) => return error,
    };
    links.probe.begin();
    links.deaf_since.set(None);
    links.subscribed_at.set(Instant::now());
    links.health.worker_hears();
    links.hears_again.notify_one();
    links.health.link_is_up();
    backoff.reset();
    end_gap(links, sink);
    links.audited_at.set(Instant::now());
    let mut audit_at = Instant::now() + AUDIT_INTERVAL;
    loop {
        let now = Instant::now();
        let retry_at = links.retry_at.get();
        // Asked first, so that a storm of handshakes cannot put it off.
        let done = if role.is_due() || links.is_suspect.take() {
            check_role(links, connection, role, address).await
        } else if audit_at <= now {
            audit_at = now + AUDIT_INTERVAL;
            audit(links, sink, connection, count).await
        } else if retry_at.is_some_and(|at| at <= now) {
            links.retry_at.set(None);
            // What was commanded before comes first: a channel may have to be left and joined again.
            match obey(links, sink, connection).await {
                Ok(()) => subscribe_all(links, sink, connection, &sink.unconfirmed(links.node)).await,
                failed => failed,
            }
        } else if timeout_at(soonest([Some(audit_at), retry_at, role.next_at()]), links.commands_wait.notified())
            .await
            .is_ok()
        {
            obey(links, sink, connection).await
        } else {
            Ok(())
        };
        if let Err(error) = done {
            return error;
        }
        end_gap(links, sink);
    }
}

/// The soonest of some times, or now.
fn soonest<const N: usize>(times: [Option<Instant>; N]) -> Instant {
    times.into_iter().flatten().min().unwrap_or_else(Instant::now)
}

/// Leaves a server that is no master any more.
async fn check_role(
    links: &Links,
    connection: &mut MultiplexedConnection,
    role: &mut Watch,
    address: &str,
) -> Result<(), LinkError> {
    if role.next_at().is_none() {
        return Ok(());
    }
    let sent = Instant::now();
    let answer = match answered(links, ask(connection, &role.question())).await {
        Err(LinkError::Ended(error)) => Err(error),
        answer => Ok(answer?),
    };
    let rank = role.on_answer(sent, answer).map_err(LinkError::Ended)?;
    if !role.is_told() {
        links.health.role_is_unknown();
    }
    links.judge(rank, address)
}

/// Reports what was lost, once all is there again.
fn end_gap(links: &Links, sink: &dyn Sink) {
    if links.lost_since.get().is_none() && links.refused_since.get().is_none()
        || !sink.unconfirmed(links.node).is_empty()
    {
        return;
    }
    links.refused_since.set(None);
    if let Some(since) = links.lost_since.take() {
        links.hears_again.notify_one();
        let server = links.settings.server().to_string();
        sink.on_gap(Gap { node: links.node, server: &server, length: since.elapsed() });
    }
}

/// Subscribes the probe's channel, if Redis lets us: one that lives there, where channels are sharded.
async fn subscribe_probe(links: &Links, connection: &mut MultiplexedConnection) -> Result<(), LinkError> {
    let is_sharded = links.placement.has_sharded();
    if is_sharded {
        links.probe.rename(|channel| links.placement.node_of(channel) == links.node);
    }
    let channel = links.probe.channel();
    let mut subscribe = redis::cmd(if is_sharded { "SSUBSCRIBE" } else { "SUBSCRIBE" });
    subscribe.arg(&*channel);
    match answered(links, ask(connection, &subscribe)).await {
        Ok(_) => links.probe.allow(),
        Err(LinkError::Ended(error)) if is_for_now(error.code()) => links.probe.lose(),
        Err(LinkError::Ended(error)) if is_not_allowed(&error) => {
            links.probe.refuse();
            links.health.probe_is_refused(&error);
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// What the server's count of subscriptions is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Count {
    Believed,
    /// Our ACL does not let us ask, or it was wrong before.
    Unknown,
}

/// How many subscriptions Redis lacks of those the worker was told of; `None` where its ACL or RESP2 does
/// not allow us to ask, or it does not say.
async fn missing(
    links: &Links,
    sink: &dyn Sink,
    connection: &mut MultiplexedConnection,
) -> Result<Option<usize>, LinkError> {
    if links.protocol.get() == Protocol::Resp2 {
        // A subscriber may not ask there; PING is a sign of life.
        answered(links, ask(connection, &redis::cmd("PING"))).await?;
        return Ok(None);
    }
    let mut info = redis::cmd("CLIENT");
    info.arg("INFO");
    // Nothing else is under way on this link, so that the numbers belong together.
    let told = sink.subscribed(links.node) + usize::from(links.probe.is_allowed());
    let info: String = match answered(links, ask(connection, &info)).await {
        Ok(value) => redis::from_redis_value(value).unwrap_or_default(),
        Err(LinkError::Ended(error)) if is_refusal(&error) => String::new(),
        Err(error) => return Err(error),
    };
    let there =
        ["sub=", "ssub="].map(|kind| info.split(' ').find_map(|field| field.strip_prefix(kind)?.parse::<usize>().ok()));
    // Who does not count sharded ones has none of them, or too few for us to believe.
    let [Some(there), sharded] = there else { return Ok(None) };
    // Sharded channels may have been taken from us before Redis counted.
    let told = told.min(sink.subscribed(links.node) + usize::from(links.probe.is_allowed()));
    Ok(Some(told.saturating_sub(there + sharded.unwrap_or_default())))
}

/// Whether the server's count of subscriptions can be believed: right behind their confirmations it
/// must be complete.
async fn judge_count(
    links: &Links,
    sink: &dyn Sink,
    connection: &mut MultiplexedConnection,
) -> Result<Count, LinkError> {
    static WRONG: Throttle = Throttle::per_minute();
    let missing = missing(links, sink, connection).await?;
    if let Some(missing @ 1..) = missing
        && WRONG.allows()
    {
        tracing::warn!(
            missing,
            "Redis counts {missing} subscriptions fewer than it has just confirmed (CLIENT INFO): webws does not use \
             the count on this link"
        );
    }
    Ok(if missing == Some(0) { Count::Believed } else { Count::Unknown })
}

/// Compares the number of subscriptions that Redis has with the number that Redis confirmed. If Redis does not count,
/// the answer is only a sign of life.
///
/// If Redis has fewer, no answer names the missing ones. So the worker subscribes all again, on this link, which
/// meanwhile delivers for the others.
///
/// # Errors
/// When Redis has fewer even then.
async fn audit(
    links: &Links,
    sink: &dyn Sink,
    connection: &mut MultiplexedConnection,
    count: Count,
) -> Result<(), LinkError> {
    if let Some(missing @ 1..) = missing(links, sink, connection).await?
        && count == Count::Believed
    {
        tracing::warn!(
            missing,
            "Redis has {missing} subscriptions fewer than it confirmed: webws subscribes all again"
        );
        links.lost(links.audited_at.get());
        sink.on_lost(links.node);
        let wanted = sink.wanted(links.node);
        subscribe_all(links, sink, connection, &wanted).await?;
        if let Some(missing @ 1..) = self::missing(links, sink, connection).await? {
            return Err(LinkError::Fewer(missing));
        }
    }
    refusal::look_again(links, connection).await?;
    links.audited_at.set(Instant::now());
    // The answer came behind all messages before it.
    links.probe.proved();
    if links.probe.is_lost() {
        // Its slot may have moved, or Redis did not take it for a moment.
        subscribe_probe(links, connection).await?;
        links.probe.begin();
    }
    Ok(())
}

async fn subscribe_all(
    links: &Links,
    sink: &dyn Sink,
    connection: &mut MultiplexedConnection,
    channels: &[Channel],
) -> Result<(), LinkError> {
    let mut rest = channels;
    while !rest.is_empty() {
        let (chunk, left) = rest.split_at(chunk_len(rest));
        subscribe(links, sink, connection, chunk).await?;
        rest = left;
    }
    Ok(())
}

/// How many of `channels` go into one command.
fn chunk_len(channels: &[Channel]) -> usize {
    let mut bytes = 0;
    let fits = |channel: &&Channel| {
        let is_room = bytes < CHUNK_BYTES;
        bytes += channel.len();
        is_room
    };
    channels.iter().take(CHUNK).take_while(fits).count()
}

/// Carries out all commands, each run of the same kind as one.
async fn obey(links: &Links, sink: &dyn Sink, connection: &mut MultiplexedConnection) -> Result<(), LinkError> {
    loop {
        let (mut join, mut leave) = (Vec::new(), Vec::new());
        let mut mark = None;
        {
            let mut commands = links.commands.borrow_mut();
            let mut bytes = 0;
            while join.len() + leave.len() < CHUNK && bytes < CHUNK_BYTES {
                if let Some(Command::Subscribe(channel) | Command::Unsubscribe(channel)) = commands.front() {
                    bytes += channel.len();
                }
                match commands.pop_front() {
                    Some(Command::Subscribe(channel)) if leave.is_empty() => join.push(channel),
                    Some(Command::Unsubscribe(channel)) if join.is_empty() => leave.push(channel),
                    Some(Command::Mark) if join.is_empty() && leave.is_empty() => {
                        mark = Some((true, links.mark.borrow().as_ref().map(|mark| mark.channel.clone())));
                        break;
                    }
                    Some(Command::Unmark(channel)) if join.is_empty() && leave.is_empty() => {
                        mark = Some((false, Some(channel)));
                        break;
                    }
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
            unsubscribe(links, connection, leave).await?;
        } else if let Some((is_wanted, channel)) = mark {
            if let Some(channel) = channel {
                set_mark(links, connection, is_wanted, &channel).await?;
            }
        } else {
            return Ok(());
        }
    }
}

async fn subscribe(
    links: &Links,
    sink: &dyn Sink,
    connection: &mut MultiplexedConnection,
    channels: &[Channel],
) -> Result<(), LinkError> {
    if !links.placement.has_sharded() {
        return subscribe_plain(links, sink, connection, channels).await;
    }
    let (sharded, plain) = split(links, channels.to_vec());
    subscribe_plain(links, sink, connection, &plain).await?;
    let answers = each(links, connection, "SSUBSCRIBE", &sharded).await?;
    let (mut taken, mut refused) = (None, None);
    for (channel, answer) in sharded.iter().zip(answers) {
        match answer.extract_error() {
            Err(error) if is_for_now(error.code()) => {
                tracing::debug!(%error, "a channel cannot be subscribed at this node for now: {error}");
                links.contradicted();
            }
            Err(error) => {
                refuse(sink, channel, &error);
                refused = Some((channel, error));
            }
            Ok(_) => taken = Some(channel),
        }
    }
    judge_refusal(links, connection, taken, refused).await
}

/// After some channels were subscribed, or refused: the last of each.
async fn judge_refusal(
    links: &Links,
    connection: &mut MultiplexedConnection,
    taken: Option<&Channel>,
    refused: Option<(&Channel, RedisError)>,
) -> Result<(), LinkError> {
    if let Some(channel) = taken {
        refusal::on_taken(links, channel);
    }
    match refused {
        Some((channel, error)) => refusal::on_refused(links, connection, channel, &error).await,
        None => Ok(()),
    }
}

/// Never sharded: at its node it is in one order with everything all the same.
async fn set_mark(
    links: &Links,
    connection: &mut MultiplexedConnection,
    is_wanted: bool,
    channel: &Channel,
) -> Result<(), LinkError> {
    let mut command = redis::cmd(if is_wanted { "SUBSCRIBE" } else { "UNSUBSCRIBE" });
    command.arg(&**channel);
    match answered(links, ask(connection, &command)).await {
        Ok(_) if is_wanted && links.is_mark(channel) && links.mark_state() == Some(MarkState::Wanted) => {
            links.set_mark_state(MarkState::Subscribed);
        }
        Ok(_) => {}
        Err(LinkError::Ended(error)) if is_refusal(&error) => links.set_mark_state(MarkState::Lost),
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Those that are sharded, and those that are not.
fn split(links: &Links, channels: Vec<Channel>) -> (Vec<Channel>, Vec<Channel>) {
    channels.into_iter().partition(|channel| links.placement.is_sharded(channel))
}

/// Sends a command for each channel, for two slots cannot be in one; an answer for each comes back.
async fn each(
    links: &Links,
    connection: &mut MultiplexedConnection,
    name: &str,
    channels: &[Channel],
) -> Result<Vec<Value>, LinkError> {
    if channels.is_empty() {
        return Ok(Vec::new());
    }
    let mut pipeline = Pipeline::with_capacity(channels.len());
    for channel in channels {
        pipeline.cmd(name).arg(&**channel);
    }
    answered(links, connection.send_packed_commands(&pipeline, 0, channels.len())).await
}

async fn unsubscribe(
    links: &Links,
    connection: &mut MultiplexedConnection,
    channels: Vec<Channel>,
) -> Result<(), LinkError> {
    let (sharded, plain) = split(links, channels);
    if !plain.is_empty() {
        answered(links, connection.unsubscribe(names(&plain))).await?;
    }
    if sharded.is_empty() {
        return Ok(());
    }
    links.leaving.borrow_mut().extend(sharded.iter().cloned());
    each(links, connection, "SUNSUBSCRIBE", &sharded).await?;
    links.leaving.borrow_mut().clear();
    // A subscription that ended by itself just before was counted as an answer, and then there is one
    // too many.
    let mut echo = redis::cmd("PING");
    echo.arg("in step");
    match answered(links, ask(connection, &echo)).await {
        Ok(Value::BulkString(answer)) if answer == b"in step" => Ok(()),
        Ok(_) => Err(LinkError::OutOfStep),
        Err(LinkError::Ended(error)) if is_refusal(&error) => Err(LinkError::OutOfStep),
        Err(error) => Err(error),
    }
}

fn refuse(sink: &dyn Sink, channel: &[u8], error: &RedisError) {
    tracing::debug!(%error, "Redis refuses to subscribe a channel: {error}");
    sink.on_refused(channel, SubscriptionRefused(format!("Redis refuses the channel: {error}").into()));
}

/// When Redis refuses, one by one, to find whom it refuses.
async fn subscribe_plain(
    links: &Links,
    sink: &dyn Sink,
    connection: &mut MultiplexedConnection,
    channels: &[Channel],
) -> Result<(), LinkError> {
    if channels.is_empty() {
        return Ok(());
    }
    match answered(links, connection.subscribe(names(channels))).await {
        Err(LinkError::Ended(error)) if is_for_now(error.code()) => {
            links.contradicted();
            return Ok(());
        }
        Err(LinkError::Ended(error)) if is_refusal(&error) => {}
        Err(error) => return Err(error),
        Ok(()) => return judge_refusal(links, connection, channels.last(), None).await,
    }
    let (mut taken, mut refused) = (None, None);
    for channel in channels {
        match answered(links, connection.subscribe(names(std::slice::from_ref(channel)))).await {
            Err(LinkError::Ended(error)) if is_refusal(&error) => {
                refuse(sink, channel, &error);
                refused = Some((channel, error));
            }
            done => {
                done?;
                taken = Some(channel);
            }
        }
    }
    judge_refusal(links, connection, taken, refused).await
}

fn names(channels: &[Channel]) -> Vec<&[u8]> {
    channels.iter().map(|channel| &**channel).collect()
}

pub(super) async fn answered<T>(links: &Links, answer: impl Future<Output = RedisResult<T>>) -> Result<T, LinkError> {
    let timeout = links.settings.response_timeout;
    links.unanswered_since.set(Some(Instant::now()));
    let mut answer = pin!(answer);
    let answer = loop {
        match clock::timeout(timeout, &mut answer).await {
            // It waits behind the mark.
            Err(_) if links.mark_state() == Some(MarkState::Reached) => {}
            answer => break answer,
        }
    };
    links.unanswered_since.set(None);
    match answer {
        Ok(answer) => answer.map_err(LinkError::Ended),
        Err(_) => Err(LinkError::Silent("Redis".to_owned(), timeout)),
    }
}
