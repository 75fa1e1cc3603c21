//! Promise: the code in the README works as it stands there. Every fenced block is run, parsed or compiled;
//! what cannot be is listed here with the reason.
//!
//! The table of settings is judged in `cli::readme`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use webws::{ChannelRule, Config, EndpointConfig, WireName};

use crate::support::browser::Browser;
use crate::support::program::{Program, listen_in};
use crate::support::redis::Redis;
use crate::support::{START, free_port, until};

const README: &str = include_str!("../README.md");

/// Blocks of plain text, by a part of them, and why nothing can run them.
const TEXT: [(&str, &str); 3] = [
    ("milestone M1", "a picture of positions"),
    ("browsers ── TLS ── nginx", "a picture of the parts"),
    ("user webws on ", "a line of an ACL file: the_acl_user_is_taken_by_redis"),
];

/// A fenced block: its language and its lines.
#[derive(Debug)]
struct Block {
    language: &'static str,
    text: &'static str,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut rest = README;
    while let Some((_, fenced)) = rest.split_once("\n```") {
        let (language, fenced) = fenced.split_once('\n').unwrap();
        let (text, after) = fenced.split_once("```").unwrap_or_else(|| panic!("a block has no end: {fenced}"));
        blocks.push(Block { language, text });
        rest = after;
    }
    blocks
}

/// The blocks of that language that contain `part`.
fn with(language: &str, part: &str) -> Vec<&'static str> {
    let found = blocks().into_iter().filter(|block| block.language == language && block.text.contains(part));
    found.map(|block| block.text).collect()
}

/// The one block of that language that contains `part`.
pub(crate) fn block(language: &str, part: &str) -> &'static str {
    match with(language, part)[..] {
        [text] => text,
        ref other => panic!("{} {language} blocks contain {part:?}", other.len()),
    }
}

/// Runs a program in `dir` to its end, successfully.
pub(crate) fn run(dir: &Path, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().copied()).current_dir(dir).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command
        .output()
        .unwrap_or_else(|e| panic!("cannot start {program}: {e}; get it with: apt-get install {program}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{program} {arguments:?}: {status}\n{stdout}{stderr}");
    stdout.into_owned()
}

#[test]
fn every_block_is_run_parsed_or_excused() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = blocks();
    assert!(blocks.len() > 10, "{blocks:?}");
    for Block { language, text } in blocks {
        match language {
            // Commands: those that a test can run have a test of their own.
            "sh" => drop(run(dir.path(), "bash", &["-n", "-c", text], &[])),
            "toml" => {
                let config = Config::read("README.md", text, []).unwrap_or_else(|e| panic!("{e}\n{text}"));
                config.validate().unwrap_or_else(|e| panic!("{e}\n{text}"));
            }
            "js" | "python" | "rust" => {}
            "nginx" => {
                assert!(
                    ["auth_request_set", "set $webws_cookie"].iter().any(|run| text.contains(run)),
                    "no test runs:\n{text}"
                )
            }
            "text" => assert!(TEXT.iter().any(|(part, _)| text.contains(part)), "unknown text:\n{text}"),
            _ => {
                panic!(
                    "a block has to name its language (sh, toml, nginx, js, python, rust or text):\n```{language}\n{text}"
                )
            }
        }
    }
}

/// `webws dev` in `dir`, and the address of its page.
async fn dev(dir: &Path) -> (Program, String) {
    let address = format!("127.0.0.1:{}", free_port());
    let listen = format!("tcp:{address}");
    let program = Program::start(dir, &["dev", "--listen", &listen, "--listen", &listen_in(dir)], &[]).await;
    (program, address)
}

/// What the README's command line publishes, on another port and with another message.
fn publish(dir: &Path, address: &str, message: &str) {
    let text = block("sh", "curl -X POST").replace("127.0.0.1:8080", address).replace("message=hello", message);
    assert_eq!(run(dir, "bash", &["-ec", &text], &[]).trim(), "published on chat:zhang");
}

#[tokio::test]
async fn the_javascript_runs_in_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let (_program, address) = dev(dir.path()).await;
    let browser = Browser::start().await;
    browser.client().goto(&format!("http://{address}/")).await.unwrap();
    let blocks = with("js", "");
    assert_eq!(blocks.len(), 3, "{blocks:?}");
    let first = blocks[0].replace("wss://example.com", &format!("ws://{address}"));
    let prelude = "window.seen = []; console.log = (said) => window.seen.push(said); \
                   window.onerror = (error) => window.seen.push('error: ' + error);";
    browser.execute(&format!("{prelude}\n{first}\nwindow.ws = ws;")).await;
    let seen = async || browser.execute("return window.seen").await;
    until("its own message comes back", START, async || seen().await == serde_json::json!(["hizhang"])).await;
    publish(dir.path(), &address, "message=hello");
    until("a message comes", START, async || seen().await == serde_json::json!(["hizhang", "hellozhang"])).await;

    browser.execute(&format!("window.seen = []; const ws = window.ws;\n{}", blocks[1])).await;
    publish(dir.path(), &address, "message=%7B%22a%22:1%7D");
    until("JSON comes", START, async || seen().await == serde_json::json!([{ "a": 1 }])).await;

    let script = format!("window.seen = []; window.ws.close(); const channel = '%22zhang%22';\n{}", blocks[2]);
    browser.execute(&format!("{script}\nwindow.events = events;")).await;
    until("the stream is open", START, async || browser.execute("return window.events.readyState").await == 1).await;
    publish(dir.path(), &address, "message=hello");
    until("an event comes", START, async || seen().await == serde_json::json!(["hello"])).await;

    let stream = block("sh", "channel=\"zhang\"'").replace("https://example.com", &format!("http://{address}"));
    let timed = format!("timeout 10 {stream}").replace("\n", " ") + "| grep -m1 '^data'";
    let told = std::thread::scope(|scope| {
        let reader = scope.spawn(|| run(dir.path(), "bash", &["-c", &timed], &[]));
        while !reader.is_finished() {
            publish(dir.path(), &address, "message=hello");
        }
        reader.join().unwrap()
    });
    assert_eq!(told, "data: hello\n");

    let kept = block("sh", "last_event_id=-1").replace("https://example.com", &format!("http://{address}"));
    let command = format!("timeout 10 {} | grep -m1 '^data'", kept.trim());
    assert_eq!(run(dir.path(), "bash", &["-c", &command], &[]), "data: hi\n", "the oldest");
}

#[test]
fn the_python_function_says_what_the_table_of_servers_says() {
    let dir = tempfile::tempdir().unwrap();
    let function = block("python", "def server_of");
    let heading = "| channel | of 2 | of 3 | of 5 | of 10 |\n|---|---|---|---|---|\n";
    let table = README.split_once(heading).expect("the table of servers").1;
    let rows: Vec<&str> = table.lines().take_while(|line| line.starts_with("| `")).collect();
    assert!(rows.len() >= 4, "{rows:?}");
    for row in rows {
        let channel = row.split('`').nth(1).unwrap();
        let call = format!("{function}\nprint([server_of('{channel}'.encode(), n) for n in (2, 3, 5, 10)])");
        let told = run(dir.path(), "python3", &["-c", &call], &[("PYTHONUTF8", "1")]);
        let expected = format!("| `{channel}` | {} |", told.trim().trim_matches(['[', ']']).replace(", ", " | "));
        assert_eq!(row, expected);
    }
}

#[test]
fn the_commands_that_install_keep_an_existing_configuration() {
    let root = tempfile::tempdir().unwrap();
    let at = root.path().display();
    let programs = root.path().join("programs");
    std::fs::create_dir(&programs).unwrap();
    // What they would do to this machine, and who may do it, is not of interest here.
    for program in ["cargo", "systemctl"] {
        std::fs::write(programs.join(program), "#!/bin/sh\n").unwrap();
        run(root.path(), "chmod", &["755", &programs.join(program).display().to_string()], &[]);
    }
    for directory in ["etc/systemd/system", "usr/bin", "source/target/release"] {
        std::fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    std::fs::write(root.path().join("source/target/release/webws"), "").unwrap();
    std::os::unix::fs::symlink(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd"),
        root.path().join("source/systemd"),
    )
    .unwrap();
    let text = block("sh", "systemctl enable")
        .replace(" /etc/", &format!(" {at}/etc/"))
        .replace(" /usr/", &format!(" {at}/usr/"));
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let install = || run(&root.path().join("source"), "bash", &["-ec", &text], &[("PATH", &path)]);
    install();
    let config = root.path().join("etc/webws/webws.toml");
    Config::read("webws.toml", &std::fs::read_to_string(&config).unwrap(), []).unwrap();
    assert!(
        root.path().join("etc/systemd/system/webws.service").exists() && root.path().join("usr/bin/webws").exists()
    );
    std::fs::write(&config, "workers = 3\n").unwrap();
    install();
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "workers = 3\n");
}

#[tokio::test]
async fn the_acl_user_is_taken_by_redis() {
    let redis = Redis::start().await;
    let line = block("text", "user webws on ").trim();
    let words: Vec<&str> = line.split(' ').skip(1).collect();
    redis.command(&[&["ACL", "SETUSER"], &words[..]].concat()).await;
}

/// The README's block of Rust, compiled here: its lines stand between the marks.
async fn as_a_library(shutdown_signal: impl Future<Output = ()>) -> Result<(), Box<dyn std::error::Error>> {
    // README
    let mut config = webws::Config::default();
    config.broker = "memory".parse()?;
    let listener = std::os::unix::net::UnixListener::bind("/run/app/ws.sock")?;
    config.endpoints = vec![EndpointConfig::new("/news").with_wire(WireName::Plain).with_channel(ChannelRule::Plain)];
    let server = webws::Server::on(config, vec![listener.into()])?;
    let publisher = server.publisher();
    server.run(shutdown_signal).await?;
    // README
    drop(publisher);
    Ok(())
}

#[test]
fn the_rust_code_is_the_code_that_is_compiled() {
    let _compiled = as_a_library(std::future::pending());
    let own = include_str!("readme.rs").split("    // README\n").nth(1).unwrap();
    let without_remarks = |text: &str| {
        let lines = text.lines().map(|line| line.split("//").next().unwrap().trim().to_owned());
        lines.filter(|line| !line.is_empty()).collect::<Vec<_>>()
    };
    assert_eq!(without_remarks(block("rust", "")), without_remarks(own));
}
