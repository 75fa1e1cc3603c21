//! Clients that come back: a first client of each channel shows a position, publications follow, and then many clients
//! show that position at once. Each must get exactly what followed, in order, and then one live publication.
//!
//! `order` is from the arguments, `scout` the first client, `bystanders` the clients of other channels; the clients that
//! come back are those of `client`. May not enter: frames.

mod bystanders;
pub(crate) mod order;
mod report;
mod scout;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use crate::book::Book;
use crate::client::Client;
use crate::clock::{Micros, to_micros};
use crate::conductor::{GLANCE, SPARE_DESCRIPTORS, collect, raise_descriptors, spawn};
use crate::publisher::Producer;
use crate::report::Moments;
use crate::run::{Phase, Resume, Run};
use crate::usage::{Usage, Watch};

use bystanders::Bystanders;
use order::Order;
use report::Report;
use scout::Scout;

/// How long to wait without any progress. Chosen: no server pauses for so long.
const PATIENCE: Micros = 10_000_000;

/// Duplicates would come late.
const SILENCE: Micros = 100_000;

/// Carries out a recovery.
///
/// # Errors
/// Why it failed, as a sentence.
pub(crate) fn conduct(order: Order) -> Result<(Report, Arc<Run>), String> {
    let Order { plan, bystanders, missed, argument, settle } = order;
    let sockets = plan.sockets() + bystanders.as_ref().map_or(0, |plan| plan.sockets());
    raise_descriptors(u64::from(sockets) + u64::from(plan.channels) + SPARE_DESCRIPTORS)?;
    let run = Arc::new(Run::new(plan).map_err(|error| format!("eventfd: {error}"))?);
    let mut producer = Producer::connect(&run.plan)?;
    say(&run, "publishing what is missed");
    let watches: Vec<Watch> = run.plan.watch.iter().cloned().chain([Watch::itself()]).collect();
    let usage = || watches.iter().map(Watch::usage).collect::<Vec<Usage>>();
    let (tokens, kept) = miss(&run, &mut producer, missed, &usage)?;
    drop(run.resume.set(Resume { tokens, argument, missed }));
    let bystanders = bystanders.map(Bystanders::start).transpose()?;
    if bystanders.is_some() {
        say(&run, "the bystanders are alone");
        wait(&run, run.clock.micros() + to_micros(settle), || false)?;
    }
    say(&run, "all come back");
    let clients = (0..run.plan.threads as usize).map(|thread| Client::new(Arc::clone(&run), thread));
    let clients = clients.collect::<Result<Vec<_>, _>>()?;
    let before = usage();
    let begin = run.clock.micros();
    run.begin.store(begin, Ordering::Release);
    bystanders.as_ref().inspect(|bystanders| bystanders.begin());
    let threads = spawn(clients)?;
    let clients = run.plan.connections;
    progress(&run, || run.whole.load(Ordering::Acquire) + run.failed.load(Ordering::Acquire) >= clients)?;
    let after = usage();
    bystanders.as_ref().inspect(|bystanders| bystanders.end());
    let end = run.clock.micros();
    run.end.store(end, Ordering::Release);
    let book = live(&run, &mut producer, missed, threads)?;
    let moments = Moments {
        watches,
        begun: before.clone(),
        before,
        connected: after.clone(),
        drained: after.clone(),
        ended: after,
        opened: run.opened.load(Ordering::Acquire),
        connecting: run.last_opened.load(Ordering::Acquire).saturating_sub(begin),
        begin,
        end,
    };
    let noticed = bystanders.map(Bystanders::finish).transpose()?;
    let kept = moments.watches.iter().map(|watch| watch.name.clone()).zip(kept);
    let kept = kept.take(run.plan.watch.len()).collect();
    Ok((Report::new(&run, &book, &moments, kept, noticed), run))
}

/// Publishes a publication on every channel, and `missed` behind it. Returns the positions in between, and by how many
/// bytes each process has grown per publication.
fn miss(
    run: &Run,
    producer: &mut Producer,
    missed: u32,
    usage: &impl Fn() -> Vec<Usage>,
) -> Result<(Vec<String>, Vec<f64>), String> {
    let scouts = (0..run.plan.channels).map(|channel| Scout::ask(&run.plan, channel));
    let mut scouts = scouts.collect::<Result<Vec<_>, _>>()?;
    scouts.iter_mut().try_for_each(Scout::open)?;
    producer.publish(run, 1)?;
    let tokens = scouts.iter_mut().map(|scout| scout.position(run.tag, 0)).collect::<Result<_, _>>()?;
    let before = usage();
    for sequence in 1..=missed {
        producer.publish(run, 1)?;
        // With the last one, the server has all of them.
        scouts.iter_mut().try_for_each(|scout| scout.position(run.tag, sequence).map(drop))?;
    }
    let publications = f64::from(missed) * f64::from(run.plan.channels);
    let growth = |(after, before): (Usage, Usage)| {
        (after.resident_kb as f64 - before.resident_kb as f64) * 1024.0 / publications
    };
    Ok((tokens, usage().into_iter().zip(before).map(growth).collect()))
}

/// Publishes once more to all that came back, and closes the books.
fn live(
    run: &Run,
    producer: &mut Producer,
    missed: u32,
    threads: Vec<thread::JoinHandle<Book>>,
) -> Result<Book, String> {
    producer.publish(run, 1)?;
    let owed = u64::from(run.plan.connections) * u64::from(missed + 1);
    progress(run, || run.landed.load(Ordering::Acquire) >= owed)?;
    wait(run, run.clock.micros() + SILENCE, || false)?;
    run.enter(Phase::Stop);
    collect(threads)
}

/// Waits until a condition holds, or nothing happens for a long time.
fn progress(run: &Run, is_so: impl Fn() -> bool) -> Result<(), String> {
    let mut seen = (0, 0);
    let mut since = run.clock.micros();
    while !is_so() {
        wait(run, run.clock.micros() + 50_000, &is_so)?;
        let now = (run.opened.load(Ordering::Acquire), run.deliveries.load(Ordering::Acquire));
        if now != seen {
            (seen, since) = (now, run.clock.micros());
        } else if run.clock.micros() - since > PATIENCE {
            break;
        }
    }
    Ok(())
}

/// Waits until a condition holds, or until a time.
fn wait(run: &Run, until: Micros, is_so: impl Fn() -> bool) -> Result<(), String> {
    while !is_so() && run.clock.micros() < until {
        if let Some(reason) = run.fatal() {
            run.enter(Phase::Stop);
            return Err(reason);
        }
        thread::park_timeout(GLANCE);
    }
    Ok(())
}

fn say(run: &Run, what: &str) {
    if !run.plan.quiet {
        // A progress line without a reader is no reason to stop.
        drop(std::io::Write::write_fmt(&mut std::io::stderr().lock(), format_args!("{what}\n")));
    }
}
