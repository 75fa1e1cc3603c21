//! The cases of `golden.json` as types. An unknown field or step is an error, never ignored.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

use serde::Deserialize;

use super::scenario::Scenario;
use crate::support::frame::hex;

pub(super) static GOLDEN: LazyLock<Golden> =
    LazyLock::new(|| serde_json::from_str(include_str!("golden.json")).expect("golden.json"));

#[derive(Debug, Deserialize)]
pub(super) struct Golden {
    pub(super) cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Case {
    pub(super) id: String,
    title: String,
    pub(super) verdict: Verdict,
    #[serde(rename = "drive")]
    pub(super) kind: Kind,
    pub(super) expect: Expect,
    pub(super) original: Original,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {} ({:?})", self.id, self.title, self.verdict)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Keep,
    Fix,
    Free,
}

/// How a case is driven.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Kind {
    Scenario(Scenario),
    Plain {
        request: Data,
        channel: Option<Data>,
        #[serde(default)]
        steps: Vec<Step>,
        /// The steps contain the waiting.
        #[serde(default)]
        no_quiet: bool,
    },
}

#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Step {
    Send {
        data: Data,
    },
    Sleep {
        s: f64,
    },
    Publish {
        data: Data,
        raw_channel: Option<String>,
    },
    AwaitSubscribed {},
    AwaitFrames {
        n: usize,
        #[serde(default, rename = "conn")]
        _conn: OnlyA,
    },
    ClientFin {},
    ClientRst {},
    ClientClose {},
}

/// The cases know no other connection than A.
#[derive(Debug, Default, Deserialize)]
pub(super) enum OnlyA {
    #[default]
    A,
}

#[derive(Debug, Deserialize)]
pub(super) struct Expect {
    #[serde(default)]
    pub(super) any_of: Vec<Outcome>,
    #[serde(default)]
    pub(super) proxy_any_of: Vec<Outcome>,
}

/// One acceptable outcome; a field that is absent is not judged.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Outcome {
    /// `None` in the list: TCP ended without any reply.
    pub(super) status: Option<Vec<Option<u16>>>,
    pub(super) not_status: Vec<u16>,
    pub(super) status_line: Option<String>,
    pub(super) headers_exact: Option<BTreeMap<String, String>>,
    pub(super) headers_include: BTreeMap<String, String>,
    pub(super) frames: Option<Vec<Data>>,
    pub(super) frames_prefix: Vec<Data>,
    pub(super) frames_by_opcode: Option<BTreeMap<u8, Vec<Data>>>,
    /// Time since the connect and tolerance, in seconds.
    pub(super) frame_times: Vec<(f64, f64)>,
    pub(super) close: Option<Close>,
    pub(super) end: Option<ExpectedEnd>,
    pub(super) end_within_s: Option<f64>,
    pub(super) published: Option<Vec<Data>>,
    pub(super) subscribed: bool,
    pub(super) numsub_zero_within_s: Option<f64>,
    pub(super) subscription_ends: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Close {
    pub(super) code: Vec<u16>,
    #[serde(default)]
    pub(super) after: Vec<Data>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExpectedEnd {
    Open,
    Fin,
    Any,
}

/// What the Lua handler did; what it did not do is absent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Original {
    pub(super) status_line: Option<String>,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) frames: Vec<RecordedFrame>,
    pub(super) end: Option<String>,
    pub(super) end_at: Option<f64>,
    pub(super) published: Vec<Data>,
    pub(super) subscribed_before_end: usize,
    pub(super) subscription_gone_after_client_end: Option<bool>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RecordedFrame {
    pub(super) t: f64,
    pub(super) bytes: Data,
}

/// A byte string: hex, or a list of hex and repeated hex.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Encoded")]
pub(super) struct Data(pub(super) Vec<u8>);

impl std::ops::Deref for Data {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", hex(self))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Encoded {
    Whole(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Part {
    Once(String),
    Repeated { rep: String, n: usize },
}

impl TryFrom<Encoded> for Data {
    type Error = String;

    fn try_from(encoded: Encoded) -> Result<Data, String> {
        let parts = match encoded {
            Encoded::Whole(hex) => vec![Part::Once(hex)],
            Encoded::Parts(parts) => parts,
        };
        let decoded: Result<Vec<_>, _> = parts
            .iter()
            .map(|part| match part {
                Part::Once(hex) => decode(hex),
                Part::Repeated { rep, n } => Ok(decode(rep)?.repeat(*n)),
            })
            .collect();
        Ok(Data(decoded?.concat()))
    }
}

fn decode(hex: &str) -> Result<Vec<u8>, String> {
    let pairs = hex.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap_or_default());
    pairs.map(|pair| u8::from_str_radix(pair, 16).map_err(|e| format!("{pair:?} in {hex:?}: {e}"))).collect()
}
