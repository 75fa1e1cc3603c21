//! Tests of channels, audiences and batches, with sessions that keep their bytes. May not enter: histories.

use std::time::{Duration, Instant};

use super::flush::{Flushed, MAX_BATCH_BYTES, MAX_PENDING_BYTES};
use super::stage::{Kept, flushed, key};
use super::{Batching, Hub};
use crate::channel::Channel;
use crate::placement::{Moved, Node, Placement};
use crate::protocol::encoding::Encoding;

const LUA: Encoding = Encoding::Lua { name_at: 2 };

fn channel() -> Channel {
    Channel::from_static(b"c:a")
}

#[test]
fn each_encoding_gets_its_own_bytes_and_what_is_ready_together_leaves_together() {
    let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
    hub.join(&channel(), LUA, key(1));
    hub.join(&channel(), Encoding::Plain, key(2));
    hub.join(&channel(), LUA, key(3));
    hub.append(b"c:a", b"1");
    hub.append(b"c:a", b"2");
    hub.append(b"c:other", b"3");
    let lua = b"\x81\x021a\x81\x022a".to_vec();
    assert_eq!(flushed(&mut hub), [(1, lua.clone()), (2, b"\x81\x011\x81\x012".to_vec()), (3, lua)]);
    assert_eq!(flushed(&mut hub), []);
}

#[test]
fn a_subscription_is_requested_once_and_all_waiting_subscribers_are_told_once() {
    let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
    let first = hub.join(&channel(), LUA, key(1));
    let second = hub.join(&channel(), Encoding::Plain, key(2));
    assert!(first.is_first && !second.is_first);
    assert!(!first.is_confirmed && !second.is_confirmed);
    assert_eq!(hub.confirm(Node(1), b"c:a"), None, "it lives elsewhere");
    let told = [(key(1), first.subscriber), (key(2), second.subscriber)];
    assert_eq!(hub.confirm(Node(0), b"c:a"), Some(told.to_vec()));
    assert_eq!(hub.confirm(Node(0), b"c:a"), Some(Vec::new()));
    assert!(hub.join(&channel(), LUA, key(3)).is_confirmed);
    hub.unconfirm_all(Node(0), 0, false);
    let fourth = hub.join(&channel(), LUA, key(4));
    assert!(!fourth.is_confirmed && !fourth.is_first, "a new link asks for all channels by itself");
    assert_eq!(hub.confirm(Node(0), b"c:a"), Some(vec![(key(4), fourth.subscriber)]));
}

#[test]
fn an_unused_channel_lingers_before_it_is_unsubscribed() {
    let mut hub = Hub::new(1_000, Duration::ZERO, Placement::over(1));
    let mut gone = Vec::new();
    let first = hub.join(&channel(), LUA, key(1)).subscriber;
    hub.confirm(Node(0), b"c:a");
    hub.leave(first, 0);
    hub.expire(999, |_, channel| gone.push(channel));
    let again = hub.join(&channel(), LUA, key(2));
    assert!(!again.is_first && again.is_confirmed);
    hub.expire(1_000, |_, channel| gone.push(channel));
    hub.leave(again.subscriber, 1_500);
    hub.expire(2_499, |_, channel| gone.push(channel));
    assert!(gone.is_empty());
    hub.expire(2_500, |_, channel| gone.push(channel));
    assert_eq!(gone, [channel()]);
    assert!(hub.join(&channel(), LUA, key(3)).is_first);
}

#[test]
fn an_unconfirmed_channel_is_kept_until_it_is_confirmed() {
    let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
    let joined = hub.join(&channel(), LUA, key(1));
    hub.leave(joined.subscriber, 0);
    hub.expire(0, |_, _| panic!("an unconfirmed channel is not unsubscribed"));
    let again = hub.join(&channel(), LUA, key(2));
    assert!(!again.is_first, "its SUBSCRIBE is on its way");
    hub.leave(again.subscriber, 1);
    assert!(hub.confirm(Node(0), b"c:a").is_some());
    let mut gone = 0;
    hub.expire(2, |_, _| gone += 1);
    assert_eq!(gone, 1);
    assert!(hub.confirm(Node(0), b"c:a").is_none(), "the hub has forgotten it");
}

#[test]
fn a_refused_channel_is_requested_again_for_the_next_subscriber() {
    let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
    hub.join(&channel(), LUA, key(1));
    assert_eq!(hub.refuse(b"c:a"), [key(1)]);
    let second = hub.join(&channel(), LUA, key(2));
    assert!(second.is_first);
    // The first was told, and is not told again.
    assert_eq!(hub.confirm(Node(0), b"c:a"), Some(vec![(key(2), second.subscriber)]));
    assert_eq!(hub.refuse(b"c:a").len(), 2);
}

#[test]
fn an_audience_that_has_not_caught_up_collects_and_one_that_has_does_not_wait() {
    let mut hub = Hub::new(0, Duration::from_secs(60), Placement::over(1));
    for n in 0..100 {
        hub.join(&channel(), Encoding::Plain, key(n));
    }
    let flush = |hub: &mut Hub, payload: &[u8], behind_from| {
        hub.append(b"c:a", payload);
        let mut kept = Kept { behind_from, ..Kept::default() };
        (hub.flush(&mut kept), kept.batches.pop().map(|(_, batch)| batch))
    };
    let (all, none) = (Some(0), None);
    assert_eq!(
        flush(&mut hub, b"0", all),
        (Flushed { frames: 100, dropped: 0, not_utf8: 0, next: None }, Some(b"\x81\x010".to_vec()))
    );
    // An audience does not wait for its last quarter alone.
    assert_eq!(flush(&mut hub, b"1", Some(75)).0.frames, 100);
    let (held, batch) = flush(&mut hub, b"2", Some(25));
    assert!(held.frames == 0 && batch.is_none() && held.next.is_some_and(|next| next > Instant::now()));
    assert!(hub.has_batches());
    assert_eq!(flush(&mut hub, b"3", none).1, Some(b"\x81\x012\x81\x013".to_vec()));
    // A full batch leaves although the audience is behind.
    assert_eq!(flush(&mut hub, b"4", all).1, None);
    assert_eq!(flush(&mut hub, &[b'x'; MAX_BATCH_BYTES], all).0.frames, 200);
    hub.stop_pacing();
    assert_eq!(flush(&mut hub, b"5", all).0.frames, 100);
    assert_eq!(hub.pending, 0);
}

#[test]
fn many_channels_with_a_little_each_are_flushed_when_it_is_much_together() {
    let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
    let payload = vec![b'x'; 10_000];
    let count = u32::try_from(MAX_PENDING_BYTES / payload.len()).unwrap() + 1;
    let names: Vec<_> = (0..count).map(|n| Channel::from(format!("c:{n}"))).collect();
    for (name, n) in names.iter().zip(0..) {
        hub.join(name, Encoding::Plain, key(n));
    }
    let batching: Vec<_> = names.iter().map(|name| hub.append(name, &payload)).collect();
    let first_full = batching.iter().position(|batching| *batching == Batching::Full);
    assert_eq!(first_full, Some(names.len() - 1));
    assert_eq!((flushed(&mut hub).len(), hub.pending), (names.len(), 0));
}

#[test]
fn members_that_get_another_index_can_still_leave() {
    let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
    let ids: Vec<_> = (0..5).map(|n| hub.join(&channel(), LUA, key(n)).subscriber).collect();
    for left in [0, 3, 4, 1] {
        hub.leave(ids[left], 0);
    }
    hub.append(b"c:a", b"x");
    assert_eq!(flushed(&mut hub).iter().map(|(session, _)| *session).collect::<Vec<_>>(), [2]);
}

#[test]
fn sessions_that_missed_publications_are_known_until_the_gap_is_reported() {
    let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
    hub.join(&channel(), LUA, key(1));
    hub.join(&Channel::from_static(b"c:b"), LUA, key(2));
    hub.confirm(Node(0), b"c:a");
    hub.unconfirm_all(Node(0), 7, false);
    assert_eq!(hub.unconfirmed(Node(0)).len(), 2);
    hub.confirm(Node(0), b"c:a");
    assert!(hub.unconfirm(Node(0), b"c:a", 9), "it was there again");
    assert_eq!(hub.take_missed(Node(0)), (1, vec![(key(1), 9)]));
    assert_eq!(hub.take_missed(Node(0)), (0, vec![]));
}

#[test]
fn channels_follow_their_placement() {
    use crate::placement::{Owners, SLOTS};
    let placement = Placement::in_cluster(vec!["c:".to_owned()]);
    let mut hub = Hub::new(0, Duration::ZERO, placement.clone());
    let joined = hub.join(&channel(), LUA, key(1));
    assert!(joined.is_first && joined.node.is_none());
    let all_at = |node| Owners { slots: vec![node; SLOTS.into()], homes: Vec::new(), nodes: 2, live: 1 };
    let moved = |from, to, was_heard| Moved { channel: channel(), from, to, was_heard };
    let (zero, one) = (Some(Node(0)), Some(Node(1)));
    placement.set_owners(all_at(zero));
    assert_eq!(hub.follow_placement(0), [moved(None, zero, false)]);
    assert!(hub.confirm(Node(0), b"c:a").is_some());
    assert!(hub.follow_placement(0).is_empty());
    placement.set_owners(all_at(one));
    assert_eq!(hub.follow_placement(0), [moved(zero, one, true)]);
    assert_eq!([Node(0), Node(1)].map(|node| hub.confirmed(node)), [0, 0]);
    assert!(hub.confirm(Node(0), b"c:a").is_none() && hub.confirm(Node(1), b"c:a").is_some());
    assert_eq!(hub.confirmed(Node(1)), 1);
    placement.set_owners(all_at(None));
    assert_eq!((hub.follow_placement(7), hub.confirmed(Node(1))), (vec![moved(one, None, true)], 0));
    assert!(hub.confirm(Node(1), b"c:a").is_none(), "its slot has no owner");
    placement.set_owners(all_at(zero));
    assert_eq!(hub.follow_placement(8), [moved(None, zero, true)]);
    hub.confirm(Node(0), b"c:a");
    assert_eq!(hub.take_missed(Node(0)), (1, vec![(key(1), 7)]), "sessions of before the loss");
}

#[test]
fn a_channel_without_a_node_is_kept_without_subscribers_until_a_node_has_confirmed_it() {
    use crate::placement::{Owners, SLOTS};
    let placement = Placement::in_cluster(Vec::new());
    let mut hub = Hub::new(0, Duration::ZERO, placement.clone());
    let joined = hub.join(&channel(), LUA, key(1));
    hub.leave(joined.subscriber, 0);
    hub.expire(1, |_, _| panic!("no node has the channel"));
    let homes = vec![Some(Node(0)); SLOTS.into()];
    placement.set_owners(Owners { slots: Vec::new(), homes, nodes: 1, live: 1 });
    assert_eq!(hub.follow_placement(0).len(), 1);
    assert!(hub.confirm(Node(0), b"c:a").is_some());
    let mut gone = Vec::new();
    hub.expire(2, |node, channel| gone.push((node, channel)));
    assert_eq!(gone, [(Node(0), channel())]);
}

#[test]
fn a_channel_costs_no_more_memory_than_it_did() {
    let bytes = size_of::<super::entry::ChannelEntry>();
    assert!(bytes <= 232, "{bytes} bytes for each channel");
}

#[test]
fn a_channel_that_is_reserved_is_kept_until_it_is_freed_and_costs_nothing_more() {
    let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
    let mut gone = 0;
    let reserved = hub.reserve(&channel());
    assert!(reserved.is_first && !reserved.is_confirmed);
    hub.confirm(Node(0), b"c:a");
    hub.expire(10, |_, _| gone += 1);
    let joined = hub.join(&channel(), LUA, key(1));
    assert!(!joined.is_first && joined.is_confirmed && gone == 0);
    assert!(hub.channels.iter().all(|(_, entry)| entry.audiences.len() == 1 && !entry.audiences.spilled()));
    hub.free(b"c:a", 10);
    hub.expire(11, |_, _| gone += 1);
    assert_eq!((gone, hub.channels_in_use()), (0, vec![channel()]));
    hub.leave(joined.subscriber, 12);
    hub.expire(13, |_, _| gone += 1);
    assert_eq!(gone, 1);
}

#[test]
fn a_channel_for_which_only_handshakes_wait_is_not_in_use() {
    let mut hub = Hub::new(0, Duration::ZERO, Placement::over(1));
    let first = hub.join(&channel(), LUA, key(1));
    assert!(hub.channels_in_use().is_empty(), "Redis may still refuse it");
    hub.confirm(Node(0), b"c:a");
    assert_eq!(hub.channels_in_use(), [channel()]);
    hub.unconfirm_all(Node(0), 1, false);
    let second = hub.join(&channel(), LUA, key(2));
    assert_eq!(hub.channels_in_use(), [channel()], "one had it before");
    hub.leave(first.subscriber, 0);
    assert!(hub.channels_in_use().is_empty());
    hub.reserve(&channel());
    assert_eq!(hub.channels_in_use(), [channel()]);
    hub.leave(second.subscriber, 0);
    assert_eq!(hub.channels_in_use(), [channel()]);
}
