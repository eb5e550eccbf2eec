//! `-l`: which internal snapshot is meant.

use qcow2::format::Snapshot;

use super::split;
use crate::{error::Failure, progname};

/// What `-l` names: an ID or a name, or `snapshot.id=ID,snapshot.name=NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SnapshotParam {
    /// The ID or, if none has that, the name.
    IdOrName(String),
    /// What is given must be so.
    Both {
        /// The ID.
        id: Option<String>,
        /// The name.
        name: Option<String>,
    },
}

impl SnapshotParam {
    /// Reads the value of `-l`.
    ///
    /// # Errors
    /// Another key than the two.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        if !text.starts_with("snapshot.") {
            return Ok(Self::IdOrName(text.into()));
        }
        let (mut id, mut name) = (None, None);
        for pair in split(text) {
            let (name_given, value) = match (pair.name, pair.value) {
                (name, Some(value)) => (name, value),
                (name, None) => flag(name),
            };
            match name_given.as_str() {
                "snapshot.id" => id = Some(value),
                "snapshot.name" => name = Some(value),
                other => {
                    progname::error(format_args!("Invalid parameter '{other}'"));
                    let text = format!("Failed in parsing snapshot param '{text}'");
                    return Err(text.into());
                }
            }
        }
        Ok(Self::Both { id, name })
    }

    /// The first of `snapshots` that is meant.
    pub(crate) fn find(&self, snapshots: Vec<Snapshot>) -> Option<Snapshot> {
        let place = match self {
            Self::IdOrName(text) => {
                let has_id = |snapshot: &Snapshot| snapshot.id == text.as_bytes();
                let has_name = |snapshot: &Snapshot| snapshot.name == text.as_bytes();
                let with_id = snapshots.iter().position(has_id);
                with_id.or_else(|| snapshots.iter().position(has_name))
            }
            Self::Both { id, name } => {
                let is = |asked: &Option<String>, has: &[u8]| match asked {
                    None => true,
                    Some(text) => text.as_bytes() == has,
                };
                let meant = |s: &Snapshot| is(id, &s.id) && is(name, &s.name);
                snapshots.iter().position(meant)
            }
        };
        place.and_then(|place| snapshots.into_iter().nth(place))
    }
}

/// A word without a value.
fn flag(word: String) -> (String, String) {
    let (name, value) = match word.strip_prefix("no") {
        Some(name) => (name.to_owned(), "off"),
        None => (word.clone(), "on"),
    };
    progname::warning(format_args!(
        "short-form boolean option '{word}' deprecated\nPlease use {name}={value} instead"
    ));
    (name, value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let id_or_name = SnapshotParam::parse("snap,shot").unwrap();
        assert_eq!(id_or_name, SnapshotParam::IdOrName("snap,shot".into()));
        let both = SnapshotParam::parse("snapshot.name=a,,b,snapshot.id=1").unwrap();
        let (id, name) = (Some("1".into()), Some("a,b".into()));
        assert_eq!(both, SnapshotParam::Both { id, name });
        assert!(SnapshotParam::parse("snapshot.foo=1").is_err());
    }
}
