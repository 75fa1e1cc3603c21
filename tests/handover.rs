//! Promise: the binary and its configuration are exchanged while every WebSocket stays connected, and
//! nobody notices; and when that cannot be, everything goes on as if nothing had been asked.

mod history;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::support::client::{Client, Fin};
use crate::support::frame::{TEXT, client_frame};
use crate::support::redis::Redis;
use crate::support::webws::{Builder, Webws};
use crate::support::witness::Witness;
use crate::support::{SOON, holds_within, lasting, until};

const PATH: &str = "/webws?channel=%22a%22";

/// Starting a process, its links, all of it, on a busy machine; and the longest that a new process may
/// take before it is given up.
pub(crate) const UPGRADE: Duration = Duration::from_secs(40);

/// A webws with a control socket, as a binary that can be exchanged.
pub(crate) struct Stage {
    pub(crate) redis: Redis,
    pub(crate) webws: Webws,
    pub(crate) witness: Witness,
    said: usize,
}

impl Stage {
    pub(crate) async fn start() -> Stage {
        Stage::start_with(|builder| builder.workers(2)).await
    }

    pub(crate) async fn start_with(more: impl FnOnce(Builder) -> Builder) -> Stage {
        let redis = Redis::start().await;
        let webws = more(Webws::builder().broker(&redis.url())).exchangeable().start().await;
        let witness = Witness::join(&webws.target(), PATH).await;
        Stage { redis, webws, witness, said: 0 }
    }

    /// Messages go both ways, once each, in order.
    async fn goes_on(&mut self) {
        for _ in 0..3 {
            let (up, down) = (self.said, self.said + 1);
            self.witness.client.send_text(&format!("{up} ")).await;
            self.witness.await_text(&format!("{up} a"), SOON).await;
            self.redis.publish(b"chat:a", format!("{down} ").as_bytes()).await;
            self.witness.await_text(&format!("{down} a"), SOON).await;
            self.said += 2;
        }
        let expected: Vec<_> = (0..self.said).map(|n| format!("{n} a")).collect();
        assert_eq!(self.witness.texts, expected);
        self.witness.assert_open();
    }

    pub(crate) async fn succeeds(&mut self) {
        let before = self.webws.heirs().len();
        let (is_done, text) = upgrade(&self.webws).await;
        assert!(is_done, "{text}\n{}", self.webws.log());
        assert_eq!(self.webws.heirs().len(), before + 1);
        self.goes_on().await;
    }

    /// A hand-over at a signal, which has no reply: the log has its result.
    async fn succeeds_at_signal(&mut self) {
        let before = self.webws.heirs().len();
        self.webws.signal(Signal::SIGUSR2);
        let is_done = holds_within(UPGRADE, async || self.webws.heirs().len() > before).await;
        assert!(is_done, "no process has taken over within {UPGRADE:?}:\n{}", self.webws.log());
    }

    /// It is not possible, for that reason, and nobody notices.
    pub(crate) async fn fails(&mut self, why: &str) {
        let before = self.webws.pid();
        let (is_done, text) = upgrade(&self.webws).await;
        assert!(!is_done && text.contains(why), "not {why:?}: {text}\n{}", self.webws.log());
        assert!(text.contains("the old process continues to serve"), "{text}");
        assert_eq!(self.webws.pid(), before);
        self.goes_on().await;
    }
}

/// What `webws upgrade` says, and whether it was done by its exit status.
pub(crate) async fn upgrade(webws: &Webws) -> (bool, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_webws"));
    let output = command.args(["upgrade", "--config", "webws.toml"]).current_dir(webws.dir()).output();
    let output = tokio::time::timeout(2 * UPGRADE, output).await.expect("an answer").unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[tokio::test]
async fn a_websocket_goes_on_in_one_new_process_after_the_other() {
    let mut stage = Stage::start().await;
    stage.goes_on().await;
    for _ in 0..3 {
        stage.succeeds().await;
    }
    // By signal as well, and without anybody who waits for it.
    stage.succeeds_at_signal().await;
    stage.goes_on().await;
    let pids = stage.webws.heirs();
    let is_gone = async |pid: &u32| !PathBuf::from(format!("/proc/{pid}/exe")).exists();
    for pid in &pids[..3] {
        until("the old one is gone", SOON, async || is_gone(pid).await).await;
    }
    assert_eq!(stage.redis.numsub(b"chat:a").await, 1, "only the new one listens");
    let probes = stage.redis.command(&["PUBSUB", "CHANNELS", "webws:probe:*"]).await;
    assert!(!format!("{probes:?}").contains("://"), "nobody is subscribed to a mark any more: {probes:?}");
    stage.webws.term();
    until("the socket's file is gone", SOON, async || !stage.webws.socket().exists()).await;
    assert_eq!(stage.witness.texts.len(), stage.said);
    assert_eq!(stage.webws.warnings(), [0; 0]);
}

#[tokio::test]
async fn half_done_frames_and_closes_are_finished_by_the_new_process() {
    let mut stage = Stage::start_with(|builder| builder.workers(1).endpoint_toml("ping_interval = \"1s\"")).await;
    let target = stage.webws.target();
    // A message of several frames, of which the last half a frame is to come.
    let mut fragments = Witness::join(&target, PATH).await;
    fragments.client.send_frame(TEXT, Fin::More, b"one, ").await;
    fragments.client.send_ping(b"between").await;
    let frame = client_frame(0x80, "two, thr\u{e9}e ".as_bytes());
    let (first, last) = frame.split_at(frame.len() - 4);
    fragments.client.send_raw(first).await;
    // A close handshake that waits for the other half of its frame.
    let mut closing = Witness::join(&target, PATH).await;
    let close = client_frame(0x88, &1000_u16.to_be_bytes());
    closing.client.send_raw(&close[..3]).await;
    // A reader who has read nothing of a lot.
    let slow = Client::connect(&target, "/webws?channel=%22slow%22").await;
    let large = "x".repeat(100_000);
    for n in 0..8 {
        stage.redis.publish(b"chat:slow", format!("{n} {large}").as_bytes()).await;
    }
    stage.succeeds().await;
    fragments.client.send_raw(last).await;
    fragments.await_text("one, two, thr\u{e9}e a", SOON).await;
    closing.client.send_raw(&close[3..]).await;
    while closing.closed.is_none() {
        assert!(closing.take(SOON).await, "no close frame");
    }
    assert_eq!(closing.closed, Some(1005), "as the Lua handler answers");
    let mut slow = Witness::new(slow);
    slow.await_texts(8, SOON).await;
    for (n, text) in slow.texts.iter().enumerate() {
        assert!(*text == format!("{n} {large}slow"), "{n}: {} bytes", text.len());
    }
    slow.assert_open();
}

#[tokio::test]
async fn a_new_process_that_cannot_take_over_is_given_up_and_the_next_one_takes_over() {
    let mut stage = Stage::start().await;
    let binary = stage.webws.binary();
    let kept = binary.with_extension("kept");
    std::fs::rename(&binary, &kept).unwrap();
    stage.fails("cannot be started").await;
    std::fs::write(&binary, "no program").unwrap();
    stage.fails("cannot be started").await;
    let script = |text: String| {
        std::fs::write(&binary, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("exit 7".to_owned());
    stage.fails("exit status: 7").await;
    script("kill -ABRT $$".to_owned());
    stage.fails("signal: 6").await;
    let kept_name = kept.display().to_string();
    script(format!("ulimit -n 40; exec {kept_name} \"$@\""));
    let mut more = Vec::new();
    for _ in 0..40 {
        more.push(Client::connect(&stage.webws.target(), PATH).await);
    }
    stage.fails("descriptors").await;
    script(format!("ulimit -v 20000; exec {kept_name} \"$@\""));
    stage.fails("the new process").await;
    std::fs::rename(&kept, &binary).unwrap();
    stage.succeeds().await;
    for client in &mut more {
        assert_eq!(client.end(), None);
    }
}

#[tokio::test]
async fn a_silent_new_process_is_waited_for_and_further_requests_are_told_so() {
    let mut stage = Stage::start().await;
    let binary = stage.webws.binary();
    let kept = binary.with_extension("kept");
    std::fs::rename(&binary, &kept).unwrap();
    std::fs::write(&binary, "#!/bin/sh\nexec sleep 600\n").unwrap();
    std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
    let first = upgrade(&stage.webws);
    let others = async {
        until("it has begun", SOON, async || stage.webws.is_handing_over()).await;
        let (is_done, text) = upgrade(&stage.webws).await;
        assert!(!is_done && text.contains("under way already"), "{text}");
    };
    let ((is_done, text), ()) = tokio::join!(first, others);
    assert!(!is_done && text.contains("no message came from it within 20s"), "{text}");
    stage.goes_on().await;
    // And one that is waited for when the service stops: it is given up, and the clients are told.
    until("the first is gone", SOON, async || !stage.webws.is_handing_over()).await;
    stage.webws.signal(Signal::SIGUSR2);
    until("it has begun", SOON, async || stage.webws.is_handing_over()).await;
    stage.webws.term();
    while stage.witness.closed.is_none() {
        assert!(stage.witness.take(SOON).await);
    }
    assert_eq!(stage.witness.closed, Some(1001));
    until("no hand-over begins any more", SOON, async || !stage.webws.socket().exists()).await;
}

#[tokio::test]
async fn a_stop_at_the_last_moment_of_a_hand_over_reaches_whichever_process_serves() {
    // Whenever it comes, whoever serves closes everybody in order. (To a process that has ended already it
    // comes too late; then the other gets one of its own.)
    for pause in [0, 5, 10, 15, 20, 30, 40] {
        let mut stage = Stage::start().await;
        let first = stage.webws.pid();
        stage.webws.signal(Signal::SIGUSR2);
        lasting(Duration::from_millis(pause)).await;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(first.try_into().unwrap()), Signal::SIGTERM).unwrap();
        while stage.witness.closed.is_none() {
            if !stage.witness.take(SOON).await {
                assert_eq!(stage.witness.client.end(), None, "after {pause} ms\n{}", stage.webws.log());
                assert_ne!(stage.webws.pid(), first, "it was swallowed\n{}", stage.webws.log());
                stage.webws.term();
            }
        }
        assert_eq!(stage.witness.closed, Some(1001), "after {pause} ms\n{}", stage.webws.log());
        until("its socket is gone", 2 * SOON, async || !stage.webws.socket().exists()).await;
    }
}

#[tokio::test]
async fn upgrades_in_quick_succession_reach_whichever_process_serves() {
    let mut stage = Stage::start().await;
    for n in 1..=10 {
        let (is_done, text) = upgrade(&stage.webws).await;
        assert!(is_done, "{n}: {text}");
    }
    assert_eq!(stage.webws.heirs().len(), 10);
    stage.goes_on().await;
}

#[tokio::test]
async fn a_new_configuration_is_used_and_a_wrong_one_changes_nothing() {
    let mut stage = Stage::start().await;
    let file = stage.webws.dir().join("webws.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("nonsense = 1\n{good}")).unwrap();
    let control = stage.webws.dir().join("control.sock").display().to_string();
    let upgrade_at = async || {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_webws"));
        command.args(["upgrade", "--control", &control]).output().await.unwrap()
    };
    let refused = upgrade_at().await;
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("nonsense"));
    stage.goes_on().await;
    // One that a start would refuse, and one for which a directory is missing.
    std::fs::write(&file, format!("socket_group = \"no such group\"\n{good}")).unwrap();
    stage.fails("there is no group 'no such group'").await;
    std::fs::write(&file, good.replacen("unix:", "unix:/nowhere/x.sock\", \"unix:", 1)).unwrap();
    stage.fails("create the directory first").await;
    // A broker that is away: the old one serves on.
    let dead = format!("redis://127.0.0.1:{}", crate::support::free_port());
    std::fs::write(&file, good.replace(&stage.redis.url(), &dead)).unwrap();
    stage.fails("links to redis://").await;
    // Fewer workers, another endpoint; and a place where it listens no more.
    let tcp = good.lines().next().unwrap().rsplit('"').nth(1).unwrap().to_owned();
    let fewer = format!("socket_mode = \"0600\"\n{good}")
        .replace("workers = 2", "workers = 1")
        .replace(&format!(", \"{tcp}\""), "");
    std::fs::write(&file, format!("{fewer}\n[[endpoint]]\n[[endpoint]]\npath = \"/other\"\nwire = \"plain\"\n"))
        .unwrap();
    stage.succeeds().await;
    // The new process owns the socket's file once the old one has ended.
    let has_mode = async || std::fs::metadata(stage.webws.socket()).unwrap().permissions().mode() & 0o777 == 0o600;
    until("the socket has its new mode", SOON, has_mode).await;
    let mut other = Witness::join(&stage.webws.target(), "/other?channel=%22a%22").await;
    stage.redis.publish(b"chat:a", b"to both ").await;
    other.await_text("to both ", SOON).await;
    stage.witness.await_text("to both a", SOON).await;
    let is_closed = async || crate::support::client::Socket::connect(&stage.webws.tcp_target()).await.is_err();
    until("nobody listens there any more", SOON, is_closed).await;
    // A path that is not served any more: its clients are told, the others stay.
    std::fs::write(&file, &fewer).unwrap();
    let (is_done, text) = upgrade(&stage.webws).await;
    assert!(is_done, "{text}");
    while other.closed.is_none() {
        assert!(other.take(SOON).await);
    }
    assert_eq!(other.closed, Some(1001));
    stage.witness.ping(b"still there", SOON).await;
    // Without a control socket: the one before does not stay behind.
    std::fs::write(&file, fewer.replace("control = \"control.sock\"\n", "")).unwrap();
    stage.succeeds_at_signal().await;
    let control = stage.webws.dir().join("control.sock");
    until("the control socket's file is gone", SOON, async || !control.exists()).await;
    stage.witness.ping(b"still there", SOON).await;
}

#[tokio::test]
async fn messages_that_wait_for_redis_are_published_by_the_new_process() {
    let mut stage = Stage::start_with(|builder| builder.workers(1)).await;
    stage.redis.command(&["CLIENT", "PAUSE", "700", "WRITE"]).await;
    for n in 0..20 {
        stage.witness.client.send_text(&format!("{n} ")).await;
    }
    let (is_done, text) = upgrade(&stage.webws).await;
    assert!(is_done, "{text}");
    stage.witness.await_texts(20, SOON).await;
    let expected: Vec<_> = (0..20).map(|n| format!("{n} a")).collect();
    assert_eq!(stage.witness.texts, expected);
}

#[tokio::test]
async fn without_redis_sessions_and_messages_are_handed_over_too() {
    let webws = Webws::builder().broker("memory").workers(2).exchangeable().start().await;
    let (mut one, mut other) = (Witness::join(&webws.target(), PATH).await, Witness::join(&webws.target(), PATH).await);
    for n in 0..3 {
        let (is_done, text) = upgrade(&webws).await;
        assert!(is_done, "{text}");
        one.client.send_text(&format!("{n} ")).await;
        for witness in [&mut one, &mut other] {
            witness.await_text(&format!("{n} a"), SOON).await;
            assert_eq!(witness.texts.len(), n + 1);
        }
    }
}
