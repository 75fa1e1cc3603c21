//! `webws-bench`: a load generator for WebSocket endpoints with channels, and the floor that servers are compared with.
//! Behind the feature `bench`; not part of the sidecar.
//!
//! `args` reads the command line and `plan` checks it; `conductor` leads a run, `recover` one of clients that come
//! back; `client` carries the connections and `publisher` publishes; `book`, `ledger` and `flight` keep account;
//! `report`, `table` and `plot` show it. `floor` is the other half. May not enter: measurements.

mod address;
mod args;
mod batch;
mod book;
mod client;
mod clock;
mod conductor;
mod flight;
mod floor;
mod frame;
mod ledger;
mod link;
mod payload;
mod plan;
mod plot;
mod poller;
mod publisher;
mod recover;
mod report;
mod resp;
mod run;
mod table;
mod template;
mod usage;

use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use args::{Cli, Command, LoadArgs, RecoverArgs};
use plan::Plan;
use recover::order::Order;
use table::Table;

/// sysexits.h: the command was used wrongly.
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let asked_for = !error.use_stderr();
            // Help goes to stdout, which may be closed already.
            drop(error.print());
            return if asked_for { ExitCode::SUCCESS } else { ExitCode::from(EX_USAGE) };
        }
    };
    let done = match cli.command {
        Command::Load(args) => load(*args),
        Command::Recover(args) => recover(*args),
        Command::Floor(args) => floor::serve(&args).map(|()| ExitCode::SUCCESS).map_err(|fault| (1, vec![fault])),
    };
    done.unwrap_or_else(|(code, faults)| {
        let mut stderr = io::stderr().lock();
        for fault in faults {
            // The reader of stderr may be gone.
            drop(writeln!(stderr, "webws-bench: {fault}"));
        }
        ExitCode::from(code)
    })
}

fn load(args: LoadArgs) -> Result<ExitCode, (u8, Vec<String>)> {
    let plan = Plan::try_new(args).map_err(|faults| (EX_USAGE, faults))?;
    let (report, run) = conductor::conduct(plan).map_err(fault)?;
    show(&report, &Table(&report), run.plan.json.as_deref())?;
    if let Some(path) = &run.plan.plot {
        std::fs::write(path, plot::draw(&report))
            .map_err(|error| fault(format!("--plot {}: {error}", path.display())))?;
    }
    Ok(judged(&report.complaints, run.plan.allow_loss))
}

fn recover(args: RecoverArgs) -> Result<ExitCode, (u8, Vec<String>)> {
    let order = Order::try_new(args).map_err(|faults| (EX_USAGE, faults))?;
    let (report, run) = recover::conduct(order).map_err(fault)?;
    show(&report, &report, run.plan.json.as_deref())?;
    Ok(judged(&report.load.complaints, run.plan.allow_loss))
}

fn fault(fault: String) -> (u8, Vec<String>) {
    (1, vec![fault])
}

fn judged(complaints: &[String], allow_loss: bool) -> ExitCode {
    ExitCode::from(u8::from(!complaints.is_empty() && !allow_loss))
}

/// Prints a report as a table, and writes it as JSON if that is wanted; with `-` only as JSON.
fn show(report: &impl Serialize, table: &impl Display, json: Option<&Path>) -> Result<(), (u8, Vec<String>)> {
    let on_stdout = json == Some(Path::new("-"));
    if !on_stdout {
        print(&table.to_string()).map_err(fault)?;
    }
    let Some(path) = json else { return Ok(()) };
    let text = serde_json::to_string_pretty(report).map_err(|error| fault(format!("--json: {error}")))? + "\n";
    if on_stdout {
        return print(&text).map_err(fault);
    }
    std::fs::write(path, text).map_err(|error| fault(format!("--json {}: {error}", path.display())))
}

fn print(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("stdout: {error}")),
        _ => Ok(()),
    }
}
