//! `webws check` lists all faults of a configuration at once, each with its place and what to write instead.
//!
//! The cases are in `check.txt`, to be read and added to: variables (`$ NAME=VALUE`), the file, and behind
//! `---` the exit code and what is said.

use crate::support::program::{run, told};

use super::write;

/// The cases, one behind each `### `.
const CASES: &str = include_str!("check.txt");

struct Case {
    name: &'static str,
    environment: Vec<(&'static str, &'static str)>,
    file: String,
    expected: String,
}

fn cases() -> Vec<Case> {
    let case = |text: &'static str| {
        let (name, text) = text.split_once('\n').unwrap();
        let (written, expected) = text.split_once("---\n").unwrap_or_else(|| panic!("{name}: no ---"));
        let (variables, file): (Vec<_>, Vec<_>) = written.lines().partition(|line| line.starts_with("$ "));
        let variable = |line: &'static str| line.trim_start_matches("$ ").split_once('=').unwrap();
        Case {
            name,
            environment: variables.into_iter().map(variable).collect(),
            file: file.join("\n"),
            expected: expected.trim_end().to_owned(),
        }
    };
    CASES.split("### ").skip(1).map(case).collect()
}

/// Whether a text is the expected one, where `[...]` is anything on its line.
fn fits(said: &str, expected: &str) -> bool {
    let line_fits = |(said, expected): (&str, &str)| match expected.split_once("[...]") {
        None => said == expected,
        Some((start, end)) => said.starts_with(start) && said.ends_with(end) && said.len() > start.len() + end.len(),
    };
    said.lines().count() == expected.lines().count() && said.lines().zip(expected.lines()).all(line_fits)
}

#[tokio::test]
async fn every_wrong_configuration_is_answered_with_what_to_write_instead() {
    let cases = cases();
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let mut differences = Vec::new();
    for case in cases {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "webws.toml", &case.file);
        let arguments = ["check", "--config", "webws.toml"];
        let (code, stdout, stderr) = told(&run(dir.path(), &arguments, &case.environment).await);
        let said = format!("exit {}\n{stderr}", code.expect("it ended by itself"));
        if !fits(&said, &case.expected) {
            differences
                .push(format!("### {}\n{}\n--- expected\n{}\n--- said\n{said}", case.name, case.file, case.expected));
        }
        assert!(!said.contains("hunter"), "{}: a password is repeated: {said}", case.name);
        assert_eq!(stdout.is_empty(), code != Some(0), "{}: the settings are printed: {stdout}", case.name);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test]
async fn run_refuses_what_check_refuses_with_the_same_sentences_and_code() {
    let dir = tempfile::tempdir().unwrap();
    for case in cases().into_iter().filter(|case| case.expected.starts_with("exit 78")) {
        write(dir.path(), "webws.toml", &case.file);
        let (code, stdout, stderr) =
            told(&run(dir.path(), &["run", "--config", "webws.toml"], &case.environment).await);
        assert_eq!((code, stdout.as_str()), (Some(78), ""), "{}: {stderr}", case.name);
        for fault in case.expected.lines().skip(1).filter(|line| !line.starts_with("webws: warning: ")) {
            assert!(stderr.lines().any(|line| fits(line, fault)), "{}: {fault} is missing in {stderr}", case.name);
        }
    }
}

#[tokio::test]
async fn what_check_prints_can_be_written_into_a_file_and_a_mask_is_no_password() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "webws.toml", "broker = \"memory\"\nworkers = 3\n");
    let (_, printed, _) = told(&run(dir.path(), &["check", "--config", "webws.toml"], &[]).await);
    write(dir.path(), "again.toml", &printed);
    let (code, again, stderr) = told(&run(dir.path(), &["check", "--config", "again.toml"], &[]).await);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(again.lines().skip(1).collect::<Vec<_>>(), printed.lines().skip(1).collect::<Vec<_>>());

    write(dir.path(), "webws.toml", "broker = \"redis://web:hunter2@localhost\"\n");
    let (code, printed, stderr) = told(&run(dir.path(), &["check", "--config", "webws.toml"], &[]).await);
    assert!(code == Some(0) && !printed.contains("hunter2"), "{printed} {stderr}");
    write(dir.path(), "again.toml", &printed);
    let (code, _, stderr) = told(&run(dir.path(), &["check", "--config", "again.toml"], &[]).await);
    assert!(code == Some(78) && stderr.contains("mask"), "{printed} {stderr}");
}
