//! The bytes of commands and answers, as the model of Redis reads and writes them. May not enter: what they mean.

use super::redis::Role;

pub(crate) fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

pub(crate) fn push(is_resp2: bool, kind: &str, channel: &[u8], third: &str) -> Vec<u8> {
    let first = if is_resp2 { "*3\r\n" } else { ">3\r\n" };
    [first.as_bytes(), &bulk(kind.as_bytes()), &bulk(channel), third.as_bytes()].concat()
}

pub(crate) fn role_answer(question: &str, is_resp2: bool, role: Role) -> Vec<u8> {
    let name = match role {
        Role::Master => "master",
        Role::Replica if question == "ROLE" => "slave",
        Role::Replica => "replica",
    };
    if question == "ROLE" {
        return [b"*1\r\n".as_slice(), &bulk(name.as_bytes())].concat();
    }
    let first = if is_resp2 { "*4\r\n" } else { "%2\r\n" };
    let fields = ["role", name, "mode", "standalone"];
    [first.as_bytes().to_vec()]
        .into_iter()
        .chain(fields.map(|field| bulk(field.as_bytes())))
        .collect::<Vec<_>>()
        .concat()
}

/// The command that `bytes` start with, and its length; `None` while it is not whole.
pub(crate) fn parse(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut at = 0;
    let count = number(bytes, &mut at, b'*')?;
    let mut command = Vec::new();
    for _ in 0..count {
        let len = number(bytes, &mut at, b'$')?;
        command.push(bytes.get(at..at + len)?.to_vec());
        bytes.get(at + len..at + len + 2)?;
        at += len + 2;
    }
    Some((command, at))
}

/// The number behind `kind` in a line that starts at `at`, which moves behind the line.
fn number(bytes: &[u8], at: &mut usize, kind: u8) -> Option<usize> {
    let rest = bytes.get(*at..)?;
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    assert_eq!(rest[0], kind, "a command is an array of bulk strings");
    *at += end + 2;
    Some(std::str::from_utf8(&rest[1..end]).expect("digits").parse().expect("digits"))
}
