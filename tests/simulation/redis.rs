//! A model of Redis: servers that run one command at a time, and what each client of theirs is told.
//!
//! Pub/Sub in one total order, CLIENT INFO, HELLO and ROLE, PING, refusals by name, roles that change, INFO and PSYNC.
//! `replication.rs` has the log. May not enter: how bytes travel (`stream.rs`), webws.

use std::collections::{BTreeMap, BTreeSet};

use super::replication::ReplicationLog;
use super::resp::{bulk, parse, push, role_answer};
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
    /// Whether the servers that came after do not have it: an asynchronous failover loses it.
    pub(crate) is_lost: bool,
    /// Where, how often that server was restarted before, and the offset of its last byte in the log there.
    server: usize,
    restarts: usize,
    offset: u64,
}

/// What the ACL user of webws may not do, besides the channels of [`DENIED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Acl {
    #[default]
    All,
    /// Read the log.
    NoLog,
    /// Ask where the log is.
    NoInfo,
    /// Publish and subscribe milestones.
    NoMilestones,
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
    /// Whether it follows the log.
    follows: bool,
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
    pub(crate) log: ReplicationLog,
    restarts: usize,
    clients: BTreeMap<StreamId, Client>,
}

/// All servers, and what they executed.
#[derive(Debug, Default)]
pub(crate) struct Redis {
    pub(crate) servers: Vec<Server>,
    pub(crate) executed: Vec<Executed>,
    /// Clients that were told that their server is a replica.
    pub(crate) told: BTreeSet<StreamId>,
    pub(crate) acl: Acl,
    /// Whether each command is printed.
    pub(crate) is_told: bool,
    /// Subscriptions that were lost so that no count can tell, channel, and from and to when: made again between a count
    /// and the command behind it, or gone with their link before the next count.
    pub(crate) untold: Vec<(Vec<u8>, u64, u64)>,
}

impl Redis {
    pub(crate) fn add(&mut self, role: Role, log: ReplicationLog) -> usize {
        let clients = BTreeMap::new();
        self.servers.push(Server { role, is_up: true, is_loading: false, log, restarts: 0, clients });
        self.servers.len() - 1
    }

    /// A replica of `old` is promoted, which has all but the last `behind` commands. Returns the new server.
    pub(crate) fn promote(&mut self, old: usize, behind: usize, rng: &mut fastrand::Rng) -> usize {
        let Server { log, restarts, .. } = &self.servers[old];
        let log = log.promoted(behind, rng);
        for executed in &mut self.executed {
            executed.is_lost |=
                executed.server == old && executed.restarts == *restarts && executed.offset > log.offset;
        }
        self.add(Role::Master, log)
    }

    /// Executes a command of another client, one that only the log has.
    pub(crate) fn append(&mut self, server: usize, command: &[&[u8]], sent: &mut Vec<(StreamId, Vec<u8>)>) {
        let bytes = self.servers[server].log.append(command);
        self.feed(server, &bytes, sent);
    }

    /// Begins a transaction or a script, or ends it.
    pub(crate) fn transact(&mut self, server: usize, begins: bool, sent: &mut Vec<(StreamId, Vec<u8>)>) {
        let bytes = self.servers[server].log.transact(begins);
        self.feed(server, &bytes, sent);
    }

    /// Those that follow the log get what was appended.
    fn feed(&mut self, server: usize, bytes: &[u8], sent: &mut Vec<(StreamId, Vec<u8>)>) {
        if !bytes.is_empty() {
            let followers = self.servers[server].clients.iter().filter(|(_, client)| client.follows);
            sent.extend(followers.map(|(stream, _)| (*stream, bytes.to_vec())));
        }
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
        self.servers[server].restarts += 1;
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

    /// What a server answers that refuses a command.
    fn refusal(&self, server: usize, name: &str, arguments: &[Vec<u8>]) -> Option<&'static [u8]> {
        if !matches!(name, "SUBSCRIBE" | "PUBLISH") {
            return None;
        }
        let is_denied = |argument: &Vec<u8>| {
            argument.starts_with(DENIED) || self.acl == Acl::NoMilestones && argument == b"webws:milestone"
        };
        if arguments.iter().any(is_denied) {
            return Some(b"-NOPERM No permissions to access a channel used as argument\r\n");
        }
        self.servers[server].is_loading.then_some(b"-LOADING Redis is loading the dataset in memory\r\n")
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
        if let Some(refusal) = self.refusal(server, &name, arguments) {
            return sent.push((from, refusal.to_vec()));
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
            "INFO" | "REPLCONF" | "PSYNC" => self.replicate(server, from, &name, arguments, sent),
            other => panic!("the model does not know {other}"),
        }
    }

    /// What is asked of the log.
    fn replicate(
        &mut self,
        server: usize,
        from: StreamId,
        name: &str,
        arguments: &[Vec<u8>],
        sent: &mut Vec<(StreamId, Vec<u8>)>,
    ) {
        let is_denied = match self.acl {
            Acl::NoInfo => name == "INFO",
            Acl::NoLog => name == "PSYNC",
            Acl::All | Acl::NoMilestones => false,
        };
        let Server { role, log, clients, .. } = &mut self.servers[server];
        let text = |at: usize| String::from_utf8_lossy(&arguments[at]).into_owned();
        let answer = match name {
            _ if is_denied => {
                format!("-NOPERM this user has no permissions to run the '{name}' command\r\n").into_bytes()
            }
            "INFO" if arguments[0] == b"cluster" => bulk(b"# Cluster\r\ncluster_enabled:0\r\n"),
            "INFO" => bulk(log.info(if *role == Role::Master { "master" } else { "slave" }).as_bytes()),
            "REPLCONF" => b"+OK\r\n".to_vec(),
            _ => match log.continued(&text(0), text(1).parse().expect("an offset")) {
                Some(kept) => {
                    if let Some(client) = clients.get_mut(&from) {
                        client.follows = true;
                    }
                    [b"+CONTINUE\r\n", &*kept].concat()
                }
                None => b"+FULLRESYNC 0000000000000000000000000000000000000000 0\r\n".to_vec(),
            },
        };
        sent.push((from, answer));
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
        let at = now;
        let (channel, payload) = (channel.to_vec(), payload.to_vec());
        self.append(server, &[b"PUBLISH", &channel, &payload], sent);
        let Server { log, restarts, .. } = &self.servers[server];
        let (offset, restarts) = (log.offset, *restarts);
        // The last one is the master that remains.
        let is_lost = server + 1 < self.servers.len();
        self.executed.push(Executed {
            order,
            at,
            channel: channel.clone(),
            payload: payload.clone(),
            by,
            role,
            is_at_the_only_master,
            is_lost,
            server,
            restarts,
            offset,
        });
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
