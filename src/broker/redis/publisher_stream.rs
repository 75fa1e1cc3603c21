//! The publisher's stream: a connection of the redis crate, which takes pipelines and returns their answers. What has
//! arrived is read before the publisher judges a deadline. May not enter: what is sent when (`publisher.rs`).

use std::task::{Context, Poll};

use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisResult, Value};
use tokio::time::Instant;

use super::connect::{Driver, Greeted, multiplex};
use super::error::LinkError;
use super::node_state::{Greeting, NodeState};
use super::publisher::Publisher;
use super::transport::{BoxFuture, Progress};

/// A connection, the future that moves its bytes, and the greeting that it had.
type Made = (MultiplexedConnection, Driver, Greeting);

/// The publisher's stream.
pub(super) enum PublisherStream {
    None,
    Connecting(BoxFuture<Result<Made, LinkError>>),
    Up { connection: MultiplexedConnection, driver: Driver, answers: Option<BoxFuture<RedisResult<Vec<Value>>>> },
}

impl PublisherStream {
    /// A stream that is being made.
    pub(super) fn connect(connecting: BoxFuture<Result<Greeted, LinkError>>) -> Self {
        Self::Connecting(Box::pin(async move {
            let Greeted { transport, greeting } = connecting.await?;
            let (connection, driver) = multiplex(transport).await?;
            Ok((connection, driver, greeting))
        }))
    }

    /// Reads answers and then judges their deadline, or sends what is due.
    pub(super) fn poll(
        &mut self,
        publisher: &mut Publisher,
        node: &mut NodeState,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Progress {
        if publisher.awaits_answers() {
            let progress = self.poll_stream(publisher, node, cx, now);
            if progress == Progress::None {
                publisher.judge_deadline(node, now);
            }
            return progress;
        }
        if let Some(pipeline) = publisher.step(node, now) {
            self.send(pipeline);
        }
        self.poll_stream(publisher, node, cx, now)
    }

    /// Makes the stream, or moves its bytes and returns answers.
    fn poll_stream(
        &mut self,
        publisher: &mut Publisher,
        node: &mut NodeState,
        cx: &mut Context<'_>,
        now: Instant,
    ) -> Progress {
        match self {
            Self::None => Progress::None,
            Self::Connecting(connecting) => {
                let Poll::Ready(made) = connecting.as_mut().poll(cx) else { return Progress::None };
                match made {
                    Ok((connection, driver, greeting)) => {
                        *self = Self::Up { connection, driver, answers: None };
                        publisher.on_connected(node, greeting, now);
                    }
                    Err(error) => {
                        *self = Self::None;
                        publisher.on_not_connected(node, &error, now);
                    }
                }
                Progress::Made
            }
            Self::Up { driver, answers, .. } => {
                let is_closed = driver.as_mut().poll(cx).is_ready();
                let answered = answers.as_mut().map_or(Poll::Pending, |answers| answers.as_mut().poll(cx));
                match answered {
                    // The error of commands on a closed stream says less than that the stream is closed.
                    Poll::Ready(answered) if answered.is_ok() || !is_closed => {
                        *answers = None;
                        publisher.on_answers(node, answered, now);
                    }
                    Poll::Pending if !is_closed => return Progress::None,
                    Poll::Ready(_) | Poll::Pending => {}
                }
                if is_closed {
                    publisher.fail(node, &LinkError::Closed, now);
                    // The driver must not be polled again.
                    *self = Self::None;
                }
                Progress::Made
            }
        }
    }

    /// Sends commands on a stream that is up.
    pub(super) fn send(&mut self, pipeline: Pipeline) {
        let Self::Up { connection, answers, .. } = self else {
            debug_assert!(false, "only a link that is up sends");
            return;
        };
        let mut connection = connection.clone();
        *answers = Some(Box::pin(async move {
            let count = pipeline.cmd_iter().count();
            connection.send_packed_commands(&pipeline, 0, count).await
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::broker::event::Report;
    use crate::broker::redis::health::Health;
    use crate::broker::redis::node_state::Terms;
    use crate::broker::redis::resp::Protocol;
    use crate::broker::redis::role::RoleWatch;
    use crate::channel::Channel;
    use crate::config::RedisUrl;
    use crate::id::SessionKey;
    use crate::message::{ClientMessage, NotPublished, Origin};
    use crate::placement::{Node, Placement};

    /// A publishing link over a stream in memory, whose other end is Redis'.
    struct Stage {
        node: NodeState,
        publisher: Publisher,
        stream: PublisherStream,
        redis: DuplexStream,
    }

    impl Stage {
        /// A link whose one message Redis has.
        async fn publishing() -> Self {
            let now = Instant::now();
            let health = Arc::new(Health::new(&RedisUrl::default(), 1));
            let mut node = NodeState::new(Node(0), Terms::of_test(), health, Placement::over(1), now);
            node.incomplete_since = None;
            node.health.worker_is_complete();
            let mut publisher = Publisher::new(node.terms.max_reconnect_delay, now);
            assert!(publisher.wants_link(now));
            let (ours, redis) = tokio::io::duplex(1 << 10);
            let role = RoleWatch::of_master(Protocol::Resp3, now);
            let greeting = Greeting { protocol: Protocol::Resp3, address: "a:1".to_owned(), role, master: None };
            let greeted = Greeted { transport: Box::new(ours), greeting };
            let stream = PublisherStream::connect(Box::pin(std::future::ready(Ok(greeted))));
            let mut stage = Self { node, publisher, stream, redis };
            assert_eq!(stage.poll().await, Progress::Made);
            stage.poll().await;
            let asked = stage.node.events.pop_front();
            assert!(matches!(asked, Some(Report::Room { .. })), "{asked:?}");
            let origin = Origin::Session(SessionKey { index: 0, generation: 0 });
            let channel = Channel::from_static(b"a");
            let message = ClientMessage { channel, payload: Bytes::from_static(b"x"), origin, since: 0 };
            let pipeline = stage.publisher.on_messages(&mut stage.node, vec![message], now);
            stage.stream.send(pipeline.unwrap());
            // The crate hands the command from one future to the other.
            for _ in 0..4 {
                assert_eq!(stage.poll().await, Progress::None);
            }
            let mut sent = [0; 100];
            let len = stage.redis.read(&mut sent).await.unwrap();
            assert!(sent[..len].ends_with(b"PUBLISH\r\n$1\r\na\r\n$1\r\nx\r\n"), "{}", sent.escape_ascii());
            stage
        }

        async fn poll(&mut self) -> Progress {
            let Self { node, publisher, stream, .. } = self;
            std::future::poll_fn(|cx| Poll::Ready(stream.poll(publisher, node, cx, Instant::now()))).await
        }

        /// The deadline of the answer passes while the worker does something else.
        async fn pass(&self) {
            tokio::time::advance(self.node.terms.response_timeout).await;
        }

        fn outcome(&mut self) -> Result<(), NotPublished> {
            match self.node.events.pop_front() {
                Some(Report::Published { outcome, .. }) => outcome,
                other => panic!("{other:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_has_arrived_is_read_before_its_deadline_is_judged() {
        let mut stage = Stage::publishing().await;
        stage.redis.write_all(b":1\r\n").await.unwrap();
        stage.pass().await;
        assert_eq!(stage.poll().await, Progress::Made);
        assert!(stage.publisher.is_up());
        assert_eq!(stage.outcome(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_has_not_arrived_in_time_ends_the_link() {
        let mut stage = Stage::publishing().await;
        stage.pass().await;
        stage.poll().await;
        assert!(!stage.publisher.is_up());
        assert_eq!(stage.outcome(), Err(NotPublished::Unknown));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_before_the_end_of_the_stream_counts() {
        let mut stage = Stage::publishing().await;
        stage.redis.write_all(b":1\r\n").await.unwrap();
        stage.redis.shutdown().await.unwrap();
        while stage.publisher.is_up() {
            stage.poll().await;
        }
        assert_eq!(stage.outcome(), Ok(()));
    }
}
