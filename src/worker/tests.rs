//! Tests of sessions on a core, without a thread. May not enter: the loop.

use super::core::Core;
use super::opening::{Hello, Opening};
use super::reactor::{self, Reactor, Ready};
use crate::channel::Channel;
use crate::close::CloseReason;
use crate::config::Config;
use crate::id::SessionKey;
use crate::message::Origin;
use crate::metrics::Shard;
use crate::placement::Node;
use crate::placement::Placement;
use crate::protocol::encoding::Encoding;
use crate::protocol::endpoint::Endpoint;
use crate::protocol::session::Grant;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

/// A session on `chat:a` of a core, and its client.
fn open(core: &mut Core, endpoint: &Rc<Endpoint>) -> (SessionKey, UnixStream) {
    let channel = Channel::from_static(b"chat:a");
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let hello = Hello { socket: ours.into(), head: Bytes::from_static(b"101"), read_ahead: Vec::new() };
    let opening = Opening {
        grant: Grant::of(endpoint.clone(), channel.clone(), Encoding::Plain),
        deadline: Instant::now(),
        hello,
        refuse: Box::new(|_, refusal| panic!("{refusal}")),
    };
    let key = core.admit(Box::new(opening), 1_000, 0);
    core.begin(key, 0);
    // All but the first find the channel confirmed.
    core.on_subscribed(Node(0), &channel, 0);
    assert_eq!(core.take_upgrades(), [key]);
    core.open(key, 0);
    (key, theirs)
}

fn core_with(limits: crate::Limits) -> (Reactor, Core, Rc<Endpoint>) {
    let (reactor, registrar) = reactor::new().unwrap();
    let core =
        Core::new(&Config { limits, ..Config::default() }, Placement::over(1), registrar, Arc::new(Shard::new()));
    (reactor, core, Rc::new(Endpoint::new(crate::EndpointConfig::default())))
}

#[tokio::test]
async fn when_too_much_waits_to_be_published_no_session_is_read_and_later_all_are() {
    let limits = crate::Limits { max_unpublished_bytes: 100_000, ..crate::Limits::default() };
    let (_reactor, mut core, endpoint) = core_with(limits);
    let mut clients: Vec<_> = (0..20).map(|_| open(&mut core, &endpoint)).collect();
    let frame = [&[0x81, 0x80 | 126, 0xea, 0x60, 0, 0, 0, 0][..], &[b'x'; 60_000]].concat();
    for (_, client) in &mut clients {
        client.write_all(&frame).unwrap();
    }
    // Twice: the reactor reports a session that is not read when more bytes come; the list has it once.
    let keys = clients.iter().chain(&clients).map(|(key, _)| *key);
    for key in keys {
        core.read_again(key);
    }
    let mut published = 0;
    while core.has_again() {
        for key in core.take_again() {
            core.on_ready(Ready::again(key), 0);
        }
        assert!(core.outbox.waiting() <= 2, "{} texts wait", core.outbox.waiting());
        for text in core.outbox.take(Node(0), usize::MAX) {
            published += 1;
            let bytes = text.cost();
            let Origin::Session(key) = text.origin else { panic!("only sessions publish here") };
            core.on_published(key, bytes, 0);
        }
        core.release_held();
    }
    assert_eq!(published, 20);
}

#[tokio::test]
async fn a_panic_in_one_session_closes_it_and_no_other() {
    let (_reactor, mut core, endpoint) = core_with(crate::Limits::default());
    let ((faulty, mut its), (_, mut others)) = (open(&mut core, &endpoint), open(&mut core, &endpoint));
    core.guarded(faulty, 0, |_| panic!("on purpose"));
    core.hub.append(b"chat:a", b"x");
    core.flush(0);
    let read = |socket: &mut UnixStream| {
        let mut bytes = Vec::new();
        let end = socket.read_to_end(&mut bytes);
        (bytes, end.map_err(|error| error.kind()).is_ok())
    };
    assert_eq!(read(&mut its), (b"101".to_vec(), true));
    assert_eq!(read(&mut others), (b"101\x81\x01x".to_vec(), false));
}

#[tokio::test]
async fn behind_a_message_whose_outcome_is_unknown_none_of_its_client_is_published_even_when_a_close_is_under_way() {
    let (_reactor, mut core, endpoint) = core_with(crate::Limits::default());
    let (key, mut client) = open(&mut core, &endpoint);
    let mut send = |core: &mut Core, payload: u8| {
        client.write_all(&[0x81, 0x81, 0, 0, 0, 0, payload]).unwrap();
        core.read_again(key);
        core.take_again().into_iter().for_each(|key| core.on_ready(Ready::again(key), 0));
    };
    send(&mut core, b'1');
    assert_eq!(core.outbox.take(Node(0), usize::MAX).len(), 1);
    send(&mut core, b'2');
    assert_eq!(core.outbox.waiting(), 1);
    core.close(key, CloseReason::Gap, 0);
    assert_eq!(core.outbox.waiting(), 1, "a close for another reason keeps them");
    core.outbox.answered();
    core.on_not_published(key, 0);
    assert_eq!(core.outbox.waiting(), 0, "the first may still be published, and the second would be before it");
}
