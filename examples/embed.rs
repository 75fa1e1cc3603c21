//! webws inside another program: on a listener that the program made, with messages that the
//! program publishes itself, ended when the program ends.
//!
//! ```text
//! cargo run --example embed --no-default-features
//! websocat 'ws://127.0.0.1:8090/plain?channel=clock'
//! ```

use std::error::Error;
use std::future::Future;
use std::io::{self, Write};
use std::net::TcpListener;
use std::time::Duration;

use webws::{ChannelRule, Config, EndpointConfig, NotPublished, Publisher, Server, WireName};

type Failure = Box<dyn Error + Send + Sync>;

/// How often the clock strikes.
const PERIOD: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let listener = TcpListener::bind("127.0.0.1:8090")?;
    writeln!(io::stdout(), "ws://{}/plain?channel=clock, until Ctrl-C", listener.local_addr()?)?;
    let interrupted = async {
        // Without signals it simply never ends.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    };
    run(listener, PERIOD, interrupted).await
}

/// Serves on `listener` and strikes the clock until `shutdown` resolves.
///
/// # Errors
/// When the server does not start, or a worker of it ends before its time.
pub(crate) async fn run(
    listener: TcpListener,
    period: Duration,
    shutdown: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let mut config = Config::default();
    // The embedded broker. With "redis://127.0.0.1:6379" other processes hear the clock too.
    config.broker = "memory".parse()?;
    let endpoint = EndpointConfig::new("/plain").with_wire(WireName::Plain).with_channel(ChannelRule::Plain);
    config.endpoints = vec![endpoint];
    let server = Server::on(config, vec![listener.into()])?;
    let clock = tokio::spawn(strike(server.publisher(), period));
    // Returns when all clients have been told 1001.
    server.run(shutdown).await?;
    // The server is gone, so the clock notices with its next strike.
    clock.await?.map_err(Failure::from)
}

/// Publishes until there is no server any more.
async fn strike(publisher: Publisher, period: Duration) -> Result<(), NotPublished> {
    let mut strikes = tokio::time::interval(period);
    for n in 1.. {
        strikes.tick().await;
        match publisher.publish("chat:clock", format!("strike {n}")).await {
            Err(NotPublished::Unavailable) => break,
            told => told?,
        }
    }
    Ok(())
}
