//! Promise: rooms import downwards only. Reads the `use` lines (and other `crate::` paths) of `src` and fails on an
//! import that goes up, and on files that import each other in a circle, inside rooms as well.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The floors of the house, from the ground. A room may import from its own floor and from those below.
const FLOORS: [&[&str]; 9] = [
    &["os"],
    &[
        "channel",
        "clock",
        "close",
        "id",
        "log",
        "memory",
        "message",
        "metrics",
        "notice",
        "per_node",
        "placement",
        "position",
        "proxied",
        "throttle",
    ],
    &["config"],
    &["protocol"],
    &["broker"],
    &["worker"],
    &["front", "admin"],
    &["handover"],
    &["server", "service", "signals"],
];

/// The modules of the library and their code without comments and tests, by their paths (`protocol::hub`).
fn modules() -> BTreeMap<String, String> {
    fn visit(dir: &Path, path: &str, found: &mut BTreeMap<String, String>, tests: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap().path();
            let stem = entry.file_stem().unwrap().to_str().unwrap();
            let below = if path.is_empty() { stem.to_owned() } else { format!("{path}::{stem}") };
            if entry.is_dir() {
                visit(&entry, &below, found, tests);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let name = if stem == "mod" { path.to_owned() } else { below };
                let text = fs::read_to_string(&entry).unwrap();
                tests.extend(test_modules(&text).map(|module| format!("{name}::{module}")));
                found.insert(name, code_of(&text));
            }
        }
    }
    let (mut found, mut tests) = (BTreeMap::new(), BTreeSet::new());
    visit(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut found, &mut tests);
    found.retain(|name, _| !tests.contains(name));
    // What the library's promises do not cover: doors for benchmarks, and the programs.
    let programs = ["bin", "cli", "internals", "lib", "logging", "main", "man", "settings"];
    found.retain(|name, _| !programs.contains(&name.split("::").next().unwrap()));
    found
}

/// The files that a module has for its tests only.
fn test_modules(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    let pairs = lines.clone().zip(lines.skip(1));
    pairs
        .filter(|(first, _)| *first == "#[cfg(test)]")
        .filter_map(|(_, item)| item.strip_prefix("mod ")?.strip_suffix(';'))
}

/// A file without comments and without what is compiled for tests only.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code));
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            // An item ends at the brace or the semicolon in the column where it began.
            let column = line.len() - line.trim_start().len();
            for line in lines.by_ref() {
                let is_end = line.ends_with(';') || line.trim_end() == format!("{}}}", " ".repeat(column));
                if is_end && line.len() - line.trim_start().len() == column {
                    break;
                }
            }
            continue;
        }
        code.push_str(line);
        code.push('\n');
    }
    code
}

/// The paths of a `use` tree, each from its first segment.
fn expand(tree: &str, prefix: &str, paths: &mut Vec<String>) {
    let mut depth = 0;
    let mut start = 0;
    let pieces = tree.char_indices().filter_map(|(at, c)| {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let piece = &tree[start..at];
                start = at + 1;
                return Some(piece);
            }
            _ => {}
        }
        None
    });
    let mut pieces: Vec<_> = pieces.collect();
    pieces.push(&tree[start..]);
    for piece in pieces.into_iter().map(str::trim).filter(|piece| !piece.is_empty()) {
        match piece.split_once('{') {
            Some((head, rest)) => {
                expand(rest.trim_end().trim_end_matches('}'), &format!("{prefix}{}", head.trim()), paths)
            }
            None => paths.push(format!("{prefix}{}", piece.split(" as ").next().unwrap().trim())),
        }
    }
}

/// The modules that `module` imports from.
fn imports(module: &str, code: &str, all: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut paths = Vec::new();
    let mut statements = code.split("use ");
    let mut before = statements.next().unwrap_or_default();
    for statement in statements {
        // A word that ends in "use " is none.
        if before.ends_with(|c: char| c.is_whitespace() || c == '(' || c == ')') || before.is_empty() {
            let tree = statement.split(';').next().unwrap();
            expand(tree, "", &mut paths);
        }
        before = statement;
    }
    for piece in code.split("crate::").skip(1) {
        let path: String = piece.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
        paths.push(format!("crate::{path}"));
    }
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let absolute = paths.iter().filter_map(|path| {
        if let Some(path) = path.strip_prefix("crate::") {
            Some(path.to_owned())
        } else if let Some(path) = path.strip_prefix("self::") {
            Some(format!("{module}::{path}"))
        } else if let Some(path) = path.strip_prefix("super::super::") {
            parent.rsplit_once("::").map(|(above, _)| format!("{above}::{path}"))
        } else {
            path.strip_prefix("super::").map(|path| format!("{parent}::{path}"))
        }
    });
    // The longest part of the path that is a module; an item of the crate's root is none.
    let targets = absolute.filter_map(|path| {
        let mut path = path.trim_end_matches(':');
        loop {
            if all.contains_key(path) {
                return Some(path.to_owned());
            }
            path = path.rsplit_once("::")?.0;
        }
    });
    targets.filter(|target| target != module).collect()
}

fn floor_of(module: &str) -> usize {
    let room = module.split("::").next().unwrap();
    FLOORS
        .iter()
        .position(|rooms| rooms.contains(&room))
        .unwrap_or_else(|| panic!("the room {room} has no floor: give it one in this test"))
}

#[test]
fn imports_go_down_and_never_round() {
    let modules = modules();
    assert!(modules.len() > 60, "the sources are not found: {:?}", modules.keys());
    let graph: BTreeMap<_, _> =
        modules.iter().map(|(module, code)| (module.clone(), imports(module, code, &modules))).collect();
    let mut faults = Vec::new();
    for (module, targets) in &graph {
        for target in targets.iter().filter(|target| floor_of(target) > floor_of(module)) {
            faults.push(format!("{module} imports from {target}, which is above"));
        }
    }
    // Two modules are in one circle when each reaches the other.
    let reach = |from: &str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(module) = next.pop() {
            next.extend(graph[&module].iter().filter(|target| seen.insert((*target).clone())).cloned());
        }
        seen
    };
    let reached: BTreeMap<_, _> = graph.keys().map(|module| (module.clone(), reach(module))).collect();
    let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
    for (module, targets) in &reached {
        let mut circle: Vec<_> = targets.iter().filter(|target| reached[*target].contains(module)).cloned().collect();
        if !circle.is_empty() {
            circle.sort();
            circles.insert(circle);
        }
    }
    for circle in circles {
        let within = |module: &String| {
            let targets = graph[module].iter().filter(|target| circle.contains(target)).cloned();
            format!("{module} -> {}", targets.collect::<Vec<_>>().join(", "))
        };
        faults.push(format!("a circle:\n    {}", circle.iter().map(within).collect::<Vec<_>>().join("\n    ")));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// The session, the hub and the outbox run in a simulator: bytes, events and time go in.
#[test]
fn the_protocol_does_no_io() {
    let modules = modules();
    let rooms: Vec<_> = modules.iter().filter(|(module, _)| floor_of(module) == floor_of("protocol")).collect();
    assert!(rooms.len() > 10, "{rooms:?}");
    for (module, code) in rooms {
        for foreign in ["crate::os", "tokio::", "std::os", "std::net", "Instant::now", "rustix", "nix::", "mio::"] {
            assert!(!code.contains(foreign), "{module} uses {foreign}");
        }
    }
}

#[test]
fn paths_are_read_as_the_compiler_reads_them() {
    let mut paths = Vec::new();
    expand("crate::{a, b::{self, C as D}, e::F}", "", &mut paths);
    assert_eq!(paths, ["crate::a", "crate::b::self", "crate::b::C", "crate::e::F"]);
    let code =
        code_of("use crate::a; // use crate::b;\n#[cfg(test)]\nmod tests {\n    use crate::c;\n}\nuse crate::d;\n");
    assert_eq!(code, "use crate::a; \nuse crate::d;\n");
    let all: BTreeMap<_, _> = ["a::b", "a", "a::c"].map(|name| (name.to_owned(), String::new())).into();
    let found = imports("a::b", "use super::c::{X, Y};\nuse super::Z;\nlet x = crate::a::b::f();", &all);
    assert_eq!(found, ["a", "a::c"].map(str::to_owned).into());
}
