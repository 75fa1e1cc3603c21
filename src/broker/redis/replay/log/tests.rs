//! Tests of the decoder of a replication log. May not enter: sockets.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::broker::redis::read_buffer::READ_BYTES;

/// A publication, or why there is none more.
type Outcome = Result<(Vec<u8>, Vec<u8>, u64), Malformed>;

/// What a log says when it arrives in `pieces`.
fn decode<'a>(decoder: &mut Decoder, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Outcome> {
    let mut found = Vec::new();
    for mut piece in pieces {
        while !piece.is_empty() {
            let room = decoder.room();
            let len = room.len().min(piece.len());
            let (now, later) = piece.split_at(len);
            room[..len].copy_from_slice(now);
            decoder.filled(len);
            piece = later;
            loop {
                match decoder.next() {
                    Ok(Some(parts)) => {
                        let Publication { channel, payload, offset } = decoder.publication(&parts);
                        found.push(Ok((channel.to_vec(), payload.to_vec(), offset)));
                    }
                    Ok(None) => break,
                    Err(malformed) => {
                        found.push(Err(malformed));
                        return found;
                    }
                }
            }
        }
    }
    found
}

fn command(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Arguments of a command, as they occur in a log.
fn arguments() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let text = || vec(any::<u8>(), 0..40);
    let named = |name: &'static str| move |rest: Vec<Vec<u8>>| [vec![name.as_bytes().to_vec()], rest].concat();
    prop_oneof![
        vec(text(), 2).prop_map(named("PUBLISH")),
        vec(text(), 2).prop_map(named("spublish")),
        vec(text(), 2).prop_map(named("Publish")),
        vec(text(), 2).prop_map(named("SETRANG")),
        vec(text(), 3).prop_map(named("PUBLISH")),
        vec(text(), 2).prop_map(named("SET")),
        (0_usize..300_000).prop_map(|len| vec![b"SET".to_vec(), b"x".to_vec(), vec![b'*'; len]]),
        (0_usize..300_000).prop_map(|len| vec![b"PUBLISH".to_vec(), b"x".to_vec(), vec![b'\r'; len]]),
        vec(vec(any::<u8>(), 0..9), 0..5),
        Just(vec![b"MULTI".to_vec()]),
        Just(vec![b"EXEC".to_vec()]),
        Just(vec![b"PING".to_vec()]),
        Just(vec![b"SELECT".to_vec(), b"11".to_vec()]),
        Just(vec![b"REPLCONF".to_vec(), b"GETACK".to_vec(), b"*".to_vec()]),
    ]
}

fn is_publication(arguments: &[Vec<u8>]) -> bool {
    let name = arguments.first().map(|name| name.to_ascii_lowercase()).unwrap_or_default();
    arguments.len() == 3 && (name == b"publish" || name == b"spublish")
}

proptest! {
    #[test]
    fn a_log_says_the_same_however_it_is_cut(
        commands in vec(arguments(), 0..20),
        cuts in vec(any::<prop::sample::Index>(), 0..40),
        start in 0_u64..u64::from(u32::MAX),
    ) {
        let (mut log, mut expected) = (Vec::new(), Vec::new());
        for arguments in &commands {
            log.extend(command(&arguments.iter().map(Vec::as_slice).collect::<Vec<_>>()));
            if is_publication(arguments) {
                expected.push(Ok((arguments[1].clone(), arguments[2].clone(), start + log.len() as u64)));
            }
        }
        let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(log.len() + 1)).chain([0, log.len()]).collect();
        ends.sort_unstable();
        let mut decoder = Decoder::new(start);
        let found = decode(&mut decoder, ends.windows(2).map(|ends| &log[ends[0]..ends[1]]));
        prop_assert_eq!(found, expected);
        prop_assert_eq!(decoder.offset(), start + log.len() as u64);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in vec(prop_oneof![any::<u8>(), Just(b'*'), Just(b'$'), Just(b'\r'),
        Just(b'\n'), Just(b'3'), Just(b'9')], 0..200), cut in any::<prop::sample::Index>()) {
        let (first, second) = bytes.split_at(cut.index(bytes.len() + 1));
        let mut decoder = Decoder::new(0);
        decode(&mut decoder, [first, second]);
        prop_assert!(decoder.offset() <= bytes.len() as u64);
        let mut log = command(&[b"PUBLISH", b"a", b"b"]);
        let at = cut.index(log.len());
        log.splice(at..at, bytes);
        decode(&mut Decoder::new(u64::from(u32::MAX)), [&log[..]]);
        let mut answered = Decoder::new(0);
        let len = answered.room().len().min(log.len());
        answered.room()[..len].copy_from_slice(&log[..len]);
        answered.filled(len);
        drop(answered.answer());
    }
}

#[test]
fn a_large_value_is_not_held() {
    let mut decoder = Decoder::new(0);
    let mut found = decode(&mut decoder, [&b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$524288000\r\n"[..]]);
    let piece = vec![b'*'; 1 << 20];
    for _ in 0..500 {
        found.extend(decode(&mut decoder, [&piece[..]]));
        assert!(decoder.buffer.size() <= READ_BYTES);
    }
    found.extend(decode(&mut decoder, [&b"\r\n"[..], &command(&[b"PUBLISH", b"a", b"b"])]));
    assert_eq!(found, [Ok((b"a".to_vec(), b"b".to_vec(), 32 + 524_288_000 + 2 + 31))]);
}

#[test]
fn a_length_that_is_only_claimed_takes_no_memory() {
    let mut decoder = Decoder::new(0);
    let claims = b"*3\r\n$7\r\nPUBLISH\r\n$99999999999999999\r\nabc";
    assert_eq!(decode(&mut decoder, [&claims[..]]), []);
    assert_eq!(decoder.buffer.size(), READ_BYTES);
}

#[test]
fn a_buffer_that_a_large_publication_needed_is_given_back() {
    let mut decoder = Decoder::new(0);
    let payload = vec![b'p'; 1 << 20];
    let log = [command(&[b"PUBLISH", b"a", &payload]), command(&[b"PING"])].concat();
    assert_eq!(decode(&mut decoder, [&log[..]]).len(), 1);
    assert!(decoder.buffer.size() > READ_BYTES);
    decoder.room();
    assert_eq!(decoder.buffer.size(), READ_BYTES);
}

#[test]
fn what_is_no_log_is_malformed_at_its_offset() {
    let good = command(&[b"PUBLISH", b"a", b"b"]);
    for bad in [
        &b"+OK\r\n"[..],
        b"\n",
        b"PING\r\n",
        b"*\r\n",
        b"*-1\r\n",
        b"*1\n",
        b"*1\r*",
        b"*1\r\n*1\r\n",
        b"*2\r\n$x\r\n",
        b"*1\r\n$1234567890123456789\r\n",
        b"*3\r\n$7\r\nPUBLISHab",
        b"*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n:1\r\n",
        b"*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$1\r\nbbb",
    ] {
        let mut decoder = Decoder::new(100);
        let found = decode(&mut decoder, [&good[..], bad]);
        assert_eq!(found.len(), 2, "{}", bad.escape_ascii());
        assert_eq!(found[1], Err(Malformed), "{}", bad.escape_ascii());
        let behind = decoder.offset() - 100 - good.len() as u64;
        assert!(behind < bad.len() as u64, "{}", bad.escape_ascii());
    }
}

#[test]
fn the_answer_precedes_the_log_and_has_no_offset() {
    let all = [&b"\n\n+CONTINUE 02b538e5c34cd82e52b386fb9baafcd9fcb6091e\r\n"[..], &command(&[b"PUBLISH", b"a", b"b"])];
    let all = all.concat();
    let mut decoder = Decoder::new(7);
    let mut answer = None;
    for byte in &all {
        decoder.room()[0] = *byte;
        decoder.filled(1);
        if answer.is_none() {
            answer = decoder.answer().unwrap();
        }
    }
    assert_eq!(answer, Some(Answer::Continue));
    let found = decoder.next().unwrap().unwrap();
    assert_eq!(decoder.publication(&found), Publication { channel: b"a", payload: b"b", offset: 38 });
    for (line, answer) in [
        ("+CONTINUE\r\n", Ok(Some(Answer::Continue))),
        ("\n+FULLRESYNC 02b538e5c34cd82e52b386fb9baafcd9fcb6091e 0\r\n$175\r\nREDIS", Ok(Some(Answer::FullResync))),
        ("-NOPERM no\r\n", Ok(Some(Answer::Refused("NOPERM no".to_owned())))),
        ("\n\n", Ok(None)),
        ("+CONT", Ok(None)),
        ("+OK\r\n", Err(Malformed)),
        ("HTTP/1.1 400\r\n", Err(Malformed)),
        (&"-".repeat(MAX_ANSWER_BYTES), Err(Malformed)),
    ] {
        let mut decoder = Decoder::new(0);
        decoder.room()[..line.len()].copy_from_slice(line.as_bytes());
        decoder.filled(line.len());
        assert_eq!(decoder.answer(), answer, "{line:?}");
        assert_eq!(decoder.offset(), 0);
    }
}
