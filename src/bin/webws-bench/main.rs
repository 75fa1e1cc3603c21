//! `webws-bench`: a load generator for WebSocket endpoints with channels, and the floor that servers are compared with.
//! Behind the feature `bench`; not part of the sidecar.
//!
//! `args` reads the command line and `plan` checks it; `conductor` leads a run; `client` carries the
//! connections and `publisher` publishes; `book`, `ledger` and `flight` keep account; `report`,
//! `table` and `plot` show it. `floor` is the other half.

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
mod report;
mod resp;
mod run;
mod table;
mod template;
mod usage;

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, LoadArgs};
use plan::Plan;
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
    let fault = |fault: String| (1, vec![fault]);
    let (report, run) = conductor::conduct(plan).map_err(fault)?;
    let plan = &run.plan;
    let on_stdout = plan.json.as_deref() == Some(Path::new("-"));
    if !on_stdout {
        print(&Table(&report).to_string()).map_err(fault)?;
    }
    if let Some(path) = &plan.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| fault(format!("--json: {error}")))? + "\n";
        if on_stdout {
            print(&text).map_err(fault)?;
        } else {
            std::fs::write(path, text).map_err(|error| fault(format!("--json {}: {error}", path.display())))?;
        }
    }
    if let Some(path) = &plan.plot {
        std::fs::write(path, plot::draw(&report))
            .map_err(|error| fault(format!("--plot {}: {error}", path.display())))?;
    }
    Ok(ExitCode::from(u8::from(!report.complaints.is_empty() && !plan.allow_loss)))
}

fn print(text: &str) -> Result<(), String> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(format!("stdout: {error}")),
        _ => Ok(()),
    }
}
