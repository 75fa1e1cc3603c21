//! A worker's publishing link: texts leave in order, all that wait in one pipeline.
//!
//! At most once: what was sent and not answered when the link breaks is reported as
//! unknown and never sent again. While the worker's subscriptions are away nothing is
//! sent, so that a client's own text comes back to it; and after that the other workers
//! get a moment to find theirs, so that a restart of Redis loses no text between workers.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use tokio::time::Instant;

use super::connect::{LinkError, Made, Role, ask, is_for_now, is_not_allowed, is_refusal};
use super::role::{Rank, Watch};
use super::sentinel::Place;
use super::supervisor::Backoff;
use super::{Links, RETRY};
use crate::broker::Sink;
use crate::clock;
use crate::id::SessionKey;
use crate::message::{ClientMessage, NotPublished, Origin, Refusal};

/// Bytes of one pipeline, names included, and so of what comes back of it to each worker. Chosen: far under
/// Redis' query buffer and the output buffer at which it ends a subscriber, and over what comes in a round
/// trip.
const BATCH_BYTES: usize = 256 << 10;

/// Where neither probes nor the role are to be had: Redis' `timeout` setting closes a publisher that is idle, and a
/// dead link should be noticed before the next text is.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Between two looks at whether texts that are under way elsewhere are answered for.
const LOOK: Duration = Duration::from_millis(5);

/// Keeps the link, forever.
pub(super) async fn run(links: &Links, sink: &dyn Sink) {
    let mut backoff = Backoff::new(links.settings.max_reconnect_delay);
    loop {
        let on_slow = |slow: &LinkError| links.health.attempt_failed(slow);
        match links.settings.connect(Role::Publisher, &on_slow).await {
            Err(error) => links.health.attempt_failed(&error),
            Ok(Made { mut connection, driver, master, address, mut role, .. }) => {
                links.health.link_is_up();
                backoff.reset();
                if !role.is_told() {
                    links.health.role_is_unknown();
                }
                let mut doubt = Doubt::of(links, &role);
                let error = tokio::select! {
                    biased;
                    () = driver => LinkError::Closed,
                    error = async {
                        let mut link = Link { links, sink, connection: &mut connection, doubt: &mut doubt };
                        serve(&mut link, master.as_ref(), (&mut role, &address)).await
                    } => error,
                };
                links.health.link_is_lost(&error);
                if matches!(error, LinkError::NoMaster(..)) {
                    links.suspect();
                    sink.on_doubt(doubt.sessions, doubt.texts);
                }
            }
        }
        backoff.wait().await;
    }
}

/// Senders that a server's role puts in doubt at most. Chosen: far over those of a second; the texts of others
/// are only counted.
const MAX_DOUBTED: usize = 1 << 16;

/// Texts that Redis took since it said last that it is a master; none where it does not say that, and in a
/// cluster, where the topology decides.
#[derive(Debug, Default)]
struct Doubt {
    is_asked: bool,
    texts: u64,
    sessions: HashSet<SessionKey>,
}

impl Doubt {
    fn of(links: &Links, role: &Watch) -> Self {
        Self::when(role.is_told() && links.cluster.is_none())
    }

    fn when(is_asked: bool) -> Self {
        Self { is_asked, ..Self::default() }
    }

    fn add(&mut self, session: SessionKey) {
        if self.is_asked {
            self.texts += 1;
            if self.sessions.len() < MAX_DOUBTED {
                self.sessions.insert(session);
            }
        }
    }
}

/// The link, and what it works for.
struct Link<'a> {
    links: &'a Links,
    sink: &'a dyn Sink,
    connection: &'a mut MultiplexedConnection,
    doubt: &'a mut Doubt,
}

async fn serve(link: &mut Link<'_>, master: Option<&Place>, (role, address): (&mut Watch, &str)) -> LinkError {
    let Link { links, sink, .. } = *link;
    loop {
        let all_hear = async {
            links.hears().await;
            // Twice the longest pause between attempts; a worker that cannot come back must not
            // hold the others for longer.
            links.health.all_hear(links.subscribed_at.get() + 2 * links.settings.max_reconnect_delay).await;
        };
        // Asked also while the subscriber is away: those with texts in doubt should not wait for it.
        if at(role.next_at(), all_hear).await.is_none() {
            if let Err(error) = check_role(link, role, address).await {
                return error;
            }
            continue;
        }
        if links.is_deaf() {
            continue;
        }
        if !links.is_where_the_subscriber_is(master) {
            return LinkError::Elsewhere;
        }
        if links.is_behind_others() {
            tokio::time::sleep(LOOK).await;
            continue;
        }
        if links.is_mark_due.take()
            && let Err(error) = publish_mark(links, link.connection).await
        {
            return error;
        }
        let now = Instant::now();
        if links.probe.due_at().is_some_and(|at| at <= now)
            && let Err(error) = publish_probe(links, link.connection).await
        {
            return error;
        }
        let texts = sink.take_texts(links.node, BATCH_BYTES);
        let next = [links.probe.due_at(), role.next_at()].into_iter().flatten().min();
        let done = if !texts.is_empty() {
            publish(link, texts).await
        } else if tokio::time::timeout_at(next.unwrap_or(now + PING_INTERVAL), links.texts_wait.notified())
            .await
            .is_err()
            && next.is_none()
        {
            ping(links, link.connection).await
        } else {
            Ok(())
        };
        if let Err(error) = done {
            return error;
        }
    }
}

/// What `future` resolves to, unless it is `time` before.
async fn at<T>(time: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
    match time {
        Some(time) if time <= Instant::now() => None,
        Some(time) => tokio::time::timeout_at(time, future).await.ok(),
        None => Some(future.await),
    }
}

/// Leaves a server that is no master any more.
async fn check_role(link: &mut Link<'_>, role: &mut Watch, address: &str) -> Result<(), LinkError> {
    let question = role.question();
    let (sent, timeout) = (Instant::now(), link.links.settings.response_timeout);
    let answer = tokio::time::timeout(timeout, ask(link.connection, &question)).await;
    let answer = answer.map_err(|_| LinkError::Silent("Redis".to_owned(), timeout))?;
    let rank = role.on_answer(sent, answer).map_err(LinkError::Ended)?;
    link.links.judge(rank, address)?;
    if rank == Rank::Master || !role.is_told() {
        *link.doubt = Doubt::of(link.links, role);
    }
    if !role.is_told() {
        link.links.health.role_is_unknown();
    }
    Ok(())
}

async fn publish(link: &mut Link<'_>, texts: Vec<ClientMessage>) -> Result<(), LinkError> {
    let Link { links, sink, .. } = *link;
    let mut pipeline = Pipeline::with_capacity(texts.len());
    for text in &texts {
        pipeline.cmd(command(links, &text.channel)).arg(&*text.channel).arg(&*text.payload);
    }
    let count = texts.len();
    let batch = links.begin_batch(&texts);
    let mut sent = Sent { sink, doubt: link.doubt, unanswered: texts.into(), taken_back: Vec::new() };
    let timeout = links.settings.response_timeout;
    let answers = clock::timeout(timeout, link.connection.send_packed_commands(&pipeline, 0, count))
        .await
        .map_err(|_| LinkError::Silent("Redis".to_owned(), timeout))?
        .map_err(LinkError::Ended)?;
    let overtaken = sent.overtaken(&answers);
    for (answer, is_overtaken) in answers.into_iter().zip(overtaken) {
        match answer {
            Value::ServerError(error) if is_for_now(Some(error.code())) && !is_overtaken => sent.take_back(),
            Value::ServerError(error) => {
                let refusal = Refusal::new(error.code(), error.details());
                sent.answer(Err(NotPublished::Refused(refusal)));
            }
            _ => sent.answer(Ok(())),
        }
    }
    let is_refused_for_now = !sent.taken_back.is_empty();
    drop(sent);
    drop(batch);
    if is_refused_for_now {
        links.contradicted();
        tokio::time::sleep(RETRY).await;
    }
    Ok(())
}

fn command(links: &Links, channel: &[u8]) -> &'static str {
    if links.placement.is_sharded(channel) { "SPUBLISH" } else { "PUBLISH" }
}

async fn publish_mark(links: &Links, connection: &mut MultiplexedConnection) -> Result<(), LinkError> {
    let mut publish = redis::cmd("PUBLISH");
    match &*links.mark.borrow() {
        Some(mark) => {
            let signature = mark.seal.map_or_else(String::new, |seal| seal.sign(&mark.channel));
            publish.arg(&*mark.channel).arg(signature)
        }
        None => return Ok(()),
    };
    let timeout = links.settings.response_timeout;
    match clock::timeout(timeout, ask(connection, &publish)).await {
        Ok(Ok(_)) => {}
        // Nobody comes to it, then, and they say so.
        Ok(Err(error)) if is_refusal(&error) => {
            tracing::debug!(%error, "Redis refuses the hand-over's marker: {error}")
        }
        Ok(Err(error)) => return Err(LinkError::Ended(error)),
        Err(_) => return Err(LinkError::Silent("Redis".to_owned(), timeout)),
    }
    Ok(())
}

async fn publish_probe(links: &Links, connection: &mut MultiplexedConnection) -> Result<(), LinkError> {
    let number = links.probe.next();
    let mut publish = redis::cmd(if links.placement.has_sharded() { "SPUBLISH" } else { "PUBLISH" });
    publish.arg(&*links.probe.channel()).arg(links.probe.payload(number));
    let timeout = links.settings.response_timeout;
    match clock::timeout(timeout, ask(connection, &publish)).await {
        Ok(Ok(Value::Int(receivers))) => links.probe.on_published(number, receivers),
        Ok(Err(error)) if is_not_allowed(&error) => {
            links.probe.refuse();
            links.health.probe_is_refused(&error);
        }
        // It was not published, and that says nothing about the subscriber; where its slot has moved,
        // the subscriber is told so as well.
        Ok(Err(error)) if is_refusal(&error) => tracing::debug!(%error, "Redis refuses the probe: {error}"),
        Ok(Ok(other)) => tracing::debug!(?other, "Redis answers PUBLISH with {other:?} instead of a number"),
        Ok(Err(error)) => return Err(LinkError::Ended(error)),
        Err(_) => return Err(LinkError::Silent("Redis".to_owned(), timeout)),
    }
    Ok(())
}

async fn ping(links: &Links, connection: &mut MultiplexedConnection) -> Result<(), LinkError> {
    let timeout = links.settings.response_timeout;
    match clock::timeout(timeout, ask(connection, &redis::cmd("PING"))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(LinkError::Ended(error)),
        Err(_) => Err(LinkError::Silent("Redis".to_owned(), timeout)),
    }
}

/// Texts that were sent. However this ends, every one of them is reported or given back.
struct Sent<'a> {
    sink: &'a dyn Sink,
    doubt: &'a mut Doubt,
    unanswered: VecDeque<ClientMessage>,
    taken_back: Vec<ClientMessage>,
}

impl Sent<'_> {
    fn answer(&mut self, outcome: Result<(), NotPublished>) {
        if let Some(text) = self.unanswered.pop_front() {
            let bytes = text.cost();
            if let (Ok(()), Origin::Session(key)) = (&outcome, &text.origin) {
                self.doubt.add(*key);
            }
            self.sink.on_published(text.origin, bytes, outcome);
        }
    }

    /// Of each text, whether one behind it on its channel was published: it cannot be tried again then,
    /// for it would come after that.
    fn overtaken(&self, answers: &[Value]) -> Vec<bool> {
        let is_taken = |answer: &Value| !matches!(answer, Value::ServerError(_));
        if answers.iter().all(is_taken) {
            return vec![false; answers.len()];
        }
        let mut published = HashSet::new();
        let mut overtaken: Vec<_> = self
            .unanswered
            .iter()
            .zip(answers)
            .rev()
            .map(|(text, answer)| {
                if is_taken(answer) {
                    published.insert(&text.channel);
                }
                published.contains(&text.channel)
            })
            .collect();
        overtaken.reverse();
        overtaken
    }

    fn take_back(&mut self) {
        self.taken_back.extend(self.unanswered.pop_front());
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        while !self.unanswered.is_empty() {
            self.answer(Err(NotPublished::Unknown));
        }
        if !self.taken_back.is_empty() {
            self.sink.take_back(std::mem::take(&mut self.taken_back));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubt_is_bounded_and_none_is_kept_where_the_role_is_not_told() {
        let (mut asked, mut not_asked) = (Doubt::when(true), Doubt::when(false));
        let count = u32::try_from(MAX_DOUBTED).unwrap() + 10;
        for index in 0..count {
            asked.add(SessionKey { index, generation: index });
            not_asked.add(SessionKey { index, generation: index });
        }
        assert_eq!((asked.sessions.len(), asked.texts), (MAX_DOUBTED, u64::from(count)));
        assert_eq!((not_asked.sessions.len(), not_asked.texts), (0, 0));
    }
}
