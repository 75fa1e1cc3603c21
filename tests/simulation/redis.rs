//! A model of Redis: servers that run one command at a time, and what each client of theirs is told.
//!
//! Pub/Sub in one total order, CLIENT INFO, HELLO and ROLE, PING, refusals by name, roles that change. May not enter:
//! how bytes travel (`stream.rs`), webws.

use std::collections::{BTreeMap, BTreeSet};

use super::stream::StreamId;

/// What the names of channels start with that no ACL user of ours may subscribe or publish.
pub(crate) const DENIED: &[u8] = b"c:deny";

/// What a server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Master,
    Replica,
}

/// A publication, in the total order of all servers.
#[derive(Debug, Clone)]
pub(crate) struct Executed {
    pub(crate) order: u64,
    pub(crate) at: u64,
    pub(crate) channel: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    /// The link that brought it, if it was no producer's.
    pub(crate) by: Option<StreamId>,
    /// The role of its server at that time, and whether no other said that it is a master.
    pub(crate) role: Role,
    pub(crate) is_at_the_only_master: bool,
}

/// A client of a server.
#[derive(Debug, Default)]
struct Client {
    /// Bytes of a command that is not whole.
    unread: Vec<u8>,
    subscribed: BTreeSet<Vec<u8>>,
    is_resp2: bool,
    /// Whether the server pushes it nothing, without a reason.
    is_incomplete: bool,
    /// Subscriptions that were lost without a word, since when, and whether Redis has counted them since.
    forgotten: BTreeMap<Vec<u8>, (u64, Counted)>,
    /// Whether its last command was a count.
    has_counted: bool,
}

/// Whether a client may know that a subscription is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    /// It has asked for the count since.
    Since,
    /// The count was the last before.
    Before,
    Neither,
}

/// One server.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) role: Role,
    pub(crate) is_up: bool,
    /// Whether it refuses commands for now, as one that loads its data does.
    pub(crate) is_loading: bool,
    clients: BTreeMap<StreamId, Client>,
}

/// All servers, and what they executed.
#[derive(Debug, Default)]
pub(crate) struct Redis {
    pub(crate) servers: Vec<Server>,
    pub(crate) executed: Vec<Executed>,
    /// Clients that were told that their server is a replica.
    pub(crate) told: BTreeSet<StreamId>,
    /// Whether each command is printed.
    pub(crate) is_told: bool,
    /// Subscriptions that were lost so that no count can tell, channel, and from and to when: made again between a count
    /// and the command behind it, or gone with their link before the next count.
    pub(crate) untold: Vec<(Vec<u8>, u64, u64)>,
}

impl Redis {
    pub(crate) fn add(&mut self, role: Role) -> usize {
        self.servers.push(Server { role, is_up: true, is_loading: false, clients: BTreeMap::new() });
        self.servers.len() - 1
    }

    /// The server that is a master now; the one that was promoted last, when two think so.
    pub(crate) fn master(&self) -> Option<usize> {
        self.servers.iter().rposition(|server| server.role == Role::Master && server.is_up)
    }

    pub(crate) fn connect(&mut self, server: usize, stream: StreamId, is_resp2: bool) {
        self.servers[server].clients.insert(stream, Client { is_resp2, ..Client::default() });
    }

    pub(crate) fn disconnect(&mut self, server: usize, stream: StreamId, now: u64) {
        if let Some(client) = self.servers[server].clients.remove(&stream) {
            self.forget(client, now);
        }
    }

    /// A client is gone. No audit finds now what it had lost.
    fn forget(&mut self, client: Client, now: u64) {
        self.untold.extend(client.forgotten.into_iter().map(|(channel, (since, _))| (channel, since, now)));
    }

    /// The server ends. Returns the clients that it had.
    pub(crate) fn stop(&mut self, server: usize, now: u64) -> Vec<StreamId> {
        self.servers[server].is_up = false;
        let clients = std::mem::take(&mut self.servers[server].clients);
        let gone = clients.into_iter().map(|(stream, client)| {
            self.forget(client, now);
            stream
        });
        gone.collect()
    }

    /// Makes a subscriber deaf. False when it is none.
    pub(crate) fn deafen(&mut self, server: usize, stream: StreamId) -> bool {
        let client = self.servers[server].clients.get_mut(&stream).filter(|client| !client.subscribed.is_empty());
        client.map(|client| client.is_incomplete = true).is_some()
    }

    /// Loses one subscription of a subscriber, without telling it. Returns its channel.
    pub(crate) fn lose_one(&mut self, server: usize, stream: StreamId, nth: usize, now: u64) -> Option<Vec<u8>> {
        let client = self.servers[server].clients.get_mut(&stream)?;
        let of_sessions = client.subscribed.iter().filter(|channel| channel.starts_with(b"c:"));
        let lost = of_sessions.cycle().nth(nth)?.clone();
        client.subscribed.remove(&lost);
        let counted = if client.has_counted { Counted::Before } else { Counted::Neither };
        client.forgotten.insert(lost.clone(), (now, counted));
        Some(lost)
    }

    /// A client's bytes arrive. Returns what is to be sent to which client, in order.
    pub(crate) fn receive(
        &mut self,
        server: usize,
        from: StreamId,
        bytes: &[u8],
        now: u64,
    ) -> Vec<(StreamId, Vec<u8>)> {
        let mut sent = Vec::new();
        let Some(client) = self.servers[server].clients.get_mut(&from) else { return sent };
        client.unread.extend_from_slice(bytes);
        while let Some((command, len)) =
            self.servers[server].clients.get(&from).and_then(|client| parse(&client.unread))
        {
            if let Some(client) = self.servers[server].clients.get_mut(&from) {
                client.unread.drain(..len);
            }
            self.execute(server, from, &command, now, &mut sent);
        }
        sent
    }

    /// Prints a command, where it is asked for.
    fn say(&self, command: &[Vec<u8>], from: StreamId, now: u64) {
        if self.is_told {
            let line: Vec<_> = command.iter().map(|part| String::from_utf8_lossy(part)).collect();
            eprintln!("{now} {from:?}: {}", line.join(" "));
        }
    }

    fn execute(
        &mut self,
        server: usize,
        from: StreamId,
        command: &[Vec<u8>],
        now: u64,
        sent: &mut Vec<(StreamId, Vec<u8>)>,
    ) {
        let name = String::from_utf8_lossy(&command[0]).to_uppercase();
        self.say(command, from, now);
        let arguments = &command[1..];
        let is_denied = arguments.iter().any(|argument| argument.starts_with(DENIED));
        if matches!(&*name, "SUBSCRIBE" | "PUBLISH") && is_denied {
            return sent.push((from, b"-NOPERM No permissions to access a channel used as argument\r\n".to_vec()));
        }
        if matches!(&*name, "SUBSCRIBE" | "PUBLISH") && self.servers[server].is_loading {
            return sent.push((from, b"-LOADING Redis is loading the dataset in memory\r\n".to_vec()));
        }
        if name == "PUBLISH" {
            let receivers = self.publish(server, Some(from), &arguments[0], &arguments[1], now, sent);
            return sent.push((from, format!(":{receivers}\r\n").into_bytes()));
        }
        let role = self.servers[server].role;
        let Some(client) = self.servers[server].clients.get_mut(&from) else { return };
        client.has_counted = name == "CLIENT";
        if client.has_counted {
            client.forgotten.values_mut().for_each(|(_, counted)| *counted = Counted::Since);
        }
        match &*name {
            "SUBSCRIBE" | "UNSUBSCRIBE" => {
                let made_again = arguments.iter().filter_map(|channel| client.forgotten.remove_entry(channel));
                let untold = made_again.filter(|(_, (_, counted))| *counted == Counted::Before);
                self.untold.extend(untold.map(|(channel, (since, _))| (channel, since, now)));
                client.forgotten.values_mut().for_each(|(_, counted)| {
                    if *counted == Counted::Before {
                        *counted = Counted::Neither;
                    }
                });
                let kind = name.to_lowercase();
                // In the order of their names, so that a run does not depend on the order of a hash table. One that is
                // named twice is answered for twice.
                let mut channels: Vec<_> = arguments.iter().collect();
                channels.sort_unstable();
                for channel in channels {
                    if kind == "subscribe" {
                        client.subscribed.insert(channel.clone());
                    } else {
                        client.subscribed.remove(channel);
                    }
                    let count = client.subscribed.len();
                    sent.push((from, push(client.is_resp2, &kind, channel, &format!(":{count}\r\n"))));
                }
            }
            "CLIENT" => {
                let sub = client.subscribed.len();
                let info = format!("id=7 name= db=0 sub={sub} psub=0 ssub=0 multi=-1\n");
                sent.push((from, bulk(info.as_bytes())));
            }
            "HELLO" | "ROLE" => {
                if role == Role::Replica {
                    self.told.insert(from);
                }
                sent.push((from, role_answer(&name, client.is_resp2, role)));
            }
            "PING" if client.is_resp2 && !client.subscribed.is_empty() => {
                sent.push((from, b"*2\r\n$4\r\npong\r\n$0\r\n\r\n".to_vec()));
            }
            "PING" => sent.push((from, b"+PONG\r\n".to_vec())),
            other => panic!("the model does not know {other}"),
        }
    }

    /// Publishes: as a client's command, or as a producer's. Returns how many subscribers it has.
    pub(crate) fn publish(
        &mut self,
        server: usize,
        by: Option<StreamId>,
        channel: &[u8],
        payload: &[u8],
        now: u64,
        sent: &mut Vec<(StreamId, Vec<u8>)>,
    ) -> usize {
        let role = self.servers[server].role;
        let masters = self.servers.iter().filter(|server| server.is_up && server.role == Role::Master).count();
        let is_at_the_only_master = masters == 1 && role == Role::Master;
        let order = self.executed.len() as u64;
        let (channel, payload) = (channel.to_vec(), payload.to_vec());
        let (at, to, of) = (now, channel.clone(), payload.clone());
        self.executed.push(Executed { order, at, channel: to, payload: of, by, role, is_at_the_only_master });
        let mut receivers = 0;
        for (stream, client) in &self.servers[server].clients {
            if !client.is_incomplete && client.subscribed.contains(&channel) {
                receivers += 1;
                sent.push((
                    *stream,
                    push(client.is_resp2, "message", &channel, &String::from_utf8_lossy(&bulk(&payload))),
                ));
            }
        }
        // A deaf subscriber is counted: the server does not know.
        receivers
            + self.servers[server]
                .clients
                .values()
                .filter(|c| c.is_incomplete && c.subscribed.contains(&channel))
                .count()
    }
}

fn bulk(bytes: &[u8]) -> Vec<u8> {
    [format!("${}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn push(is_resp2: bool, kind: &str, channel: &[u8], third: &str) -> Vec<u8> {
    let first = if is_resp2 { "*3\r\n" } else { ">3\r\n" };
    [first.as_bytes(), &bulk(kind.as_bytes()), &bulk(channel), third.as_bytes()].concat()
}

fn role_answer(question: &str, is_resp2: bool, role: Role) -> Vec<u8> {
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
fn parse(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
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
