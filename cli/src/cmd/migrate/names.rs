//! What nodes and bitmaps are called in the images and in the stream.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::Read,
    path::Path,
};

use migration::{AliasMap, BitmapAlias, NodeAlias, make_node_alias};

use super::request::{Names, Operand, Pick};
use crate::{
    error::{Failure, os_text},
    output::escape_control,
};

/// Bytes of a `--map` that are read: far more than QEMU takes in one command.
const MAX_MAP: u64 = 16 << 20;

/// The images with the names of their nodes, and what goes by which name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// In the order of the command line.
    pub(super) images: Vec<NamedImage>,
    /// Names and aliases.
    pub(super) map: AliasMap,
    /// Whether the command line says which bitmaps: what it doesn't name is left out on
    /// purpose.
    pub(super) selective: bool,
    /// The bitmaps that it names one by one: node and name.
    pub(super) picked: Vec<(String, String)>,
    /// Whether it says what the nodes are called in the stream.
    pub(super) aliased: bool,
}

/// An image and its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedImage {
    /// The name of its node.
    pub(super) node: String,
    /// The file.
    pub(super) file: OsString,
}

impl Names {
    /// Reads the map, if there is one, and gives each image its node.
    ///
    /// # Errors
    /// Names that could mean two things or that no stream can carry.
    pub(super) fn plan(&self) -> Result<Plan, Failure> {
        let map = match &self.map {
            Some(file) => Some(read_map(file)?),
            None => None,
        };
        let images = self.images(map.as_ref())?;
        let (mut map, picked) = match map {
            Some(map) => (map, Vec::new()),
            None => self.own_map(&images)?,
        };
        if let Some(persistent) = self.persistent {
            map = map.persistent(persistent);
        }
        Ok(Plan {
            images,
            map,
            selective: self.map.is_some() || !self.bitmaps.is_empty(),
            picked,
            aliased: self.map.is_some() || !self.aliases.is_empty(),
        })
    }

    fn images(&self, map: Option<&AliasMap>) -> Result<Vec<NamedImage>, Failure> {
        // A map of one node and one image: it is that node.
        let mapped = map.and_then(|map| {
            let mut nodes = map.nodes().map(|(node, _)| node);
            let only = nodes.next().filter(|_| self.images.len() == 1)?;
            nodes.next().is_none().then_some(only)
        });
        let mut images: Vec<NamedImage> = Vec::new();
        for Operand { node, file } in &self.images {
            let node = match (node, mapped) {
                (Some(node), _) => node.clone(),
                (None, Some(node)) => node.into(),
                (None, None) => stem(file),
            };
            if let Some(other) = images.iter().find(|other| other.node == node) {
                return Err(format!(
                    "'{}' and '{}' would both be the node '{node}': name them NODE=FILE",
                    other.file.to_string_lossy(),
                    file.to_string_lossy()
                )
                .into());
            }
            let file = file.clone();
            images.push(NamedImage { node, file });
        }
        Ok(images)
    }

    /// The map that `--node-alias` and `--bitmap` amount to, and the bitmaps that are named.
    fn own_map(&self, images: &[NamedImage]) -> Result<(AliasMap, Vec<(String, String)>), Failure> {
        let mut picked = Vec::new();
        for Pick { name, other } in &self.bitmaps {
            let (node, name) = node_and_name(name, images)?;
            let alias = other.clone().unwrap_or_else(|| name.clone());
            picked.push((node, name, alias));
        }
        let mut map = AliasMap::empty();
        let refused = |e: migration::Error| Failure::Message(e.to_string());
        for image in images {
            let alias = self.node_alias(&image.node)?;
            let mut node = NodeAlias::new(&image.node, alias).map_err(refused)?;
            for (_, name, alias) in picked.iter().filter(|(node, ..)| *node == image.node) {
                let bitmap = BitmapAlias::new(name, alias).map_err(|e| {
                    Failure::Message(format!("bitmap '{}': {e}", escape_control(name)))
                })?;
                node = node.bitmap(bitmap).map_err(refused)?;
            }
            if picked.is_empty() {
                node = node.others();
            }
            map = map.node(node).map_err(refused)?;
        }
        for (node, _) in &self.aliases {
            if let Some(node) = node
                && !images.iter().any(|image| image.node == *node)
            {
                return Err(format!("--node-alias: no image is the node '{node}'").into());
            }
        }
        let picked = picked.into_iter().map(|(node, name, _)| (node, name));
        Ok((map, picked.collect()))
    }

    fn node_alias<'a>(&'a self, node: &'a str) -> Result<&'a str, Failure> {
        let one = self.images.len() == 1;
        let mut alias = None;
        for (named, text) in &self.aliases {
            match named {
                Some(named) if named != node => continue,
                None if !one => {
                    return Err(Failure::Hinted(
                        "with several images --node-alias expects NODE=ALIAS".into(),
                    ));
                }
                _ => {}
            }
            if alias.replace(text.as_str()).is_some() {
                return Err(format!("--node-alias is given twice for the node '{node}'").into());
            }
        }
        Ok(alias.unwrap_or(node))
    }
}

/// What `--bitmap` names. With several images the node comes first.
fn node_and_name(text: &str, images: &[NamedImage]) -> Result<(String, String), Failure> {
    if let [only] = images {
        return Ok((only.node.clone(), text.into()));
    }
    let known = |node: &str| images.iter().any(|image| image.node == node);
    match text.split_once('/') {
        Some((node, name)) if known(node) && !name.is_empty() => Ok((node.into(), name.into())),
        _ => {
            let nodes: Vec<&str> = images.iter().map(|image| image.node.as_str()).collect();
            Err(Failure::Hinted(format!(
                "with several images --bitmap expects NODE/NAME or NODE/NAME=ALIAS, not '{text}'; \
                 the nodes are {}",
                nodes.join(", ")
            )))
        }
    }
}

/// What a node is called after its file.
fn stem(file: &OsStr) -> String {
    let stem = Path::new(file).file_stem().unwrap_or(file);
    make_node_alias(&stem.to_string_lossy())
}

fn read_map(name: &OsStr) -> Result<AliasMap, Failure> {
    let shown = name.to_string_lossy();
    let failed = |e: std::io::Error| format!("Could not read '{shown}': {}", os_text(&e));
    let mut json = String::new();
    let file = File::open(name).map_err(failed)?;
    file.take(MAX_MAP)
        .read_to_string(&mut json)
        .map_err(failed)?;
    let map = AliasMap::from_json(&json);
    Ok(map.map_err(|e| format!("'{shown}': {}", escape_control(&e.to_string())))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(images: &[&str]) -> Names {
        Names {
            images: images
                .iter()
                .map(|word| Operand::new(OsStr::new(word)))
                .collect(),
            ..Names::default()
        }
    }

    fn pick(name: &str, other: Option<&str>) -> Pick {
        Pick {
            name: name.into(),
            other: other.map(Into::into),
        }
    }

    fn wire(plan: &Plan, node: &str, bitmap: &str) -> Option<(String, String)> {
        let wire = plan.map.outgoing(node, bitmap)?;
        Some((wire.node, wire.bitmap))
    }

    fn pair(node: &str, bitmap: &str) -> Option<(String, String)> {
        Some((node.into(), bitmap.into()))
    }

    fn refusal(names: &Names) -> String {
        match names.plan() {
            Err(Failure::Message(text) | Failure::Hinted(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nodes_are_called_after_their_files() {
        let plan = names(&["dir/disk 1.qcow2", "n=x", "7.raw"]).plan().unwrap();
        let nodes: Vec<_> = plan
            .images
            .iter()
            .map(|image| image.node.as_str())
            .collect();
        assert_eq!(nodes, ["disk-1", "n", "n7"]);
        assert_eq!(wire(&plan, "n", "b"), pair("n", "b"));
        assert!(!plan.selective && !plan.aliased);
        let said = refusal(&names(&["a/disk.qcow2", "b/disk.qcow2"]));
        assert!(said.contains("NODE=FILE"), "{said}");
    }

    #[test]
    fn aliases_of_nodes() {
        let mut one = names(&["a.qcow2"]);
        one.aliases = vec![(None, "drive0".into())];
        assert_eq!(wire(&one.plan().unwrap(), "a", "b"), pair("drive0", "b"));
        one.aliases.push((Some("a".into()), "drive1".into()));
        assert!(refusal(&one).contains("twice"));
        one.aliases = vec![(Some("z".into()), "drive1".into())];
        assert!(refusal(&one).contains("no image is the node 'z'"));
        let mut two = names(&["a", "b"]);
        two.aliases = vec![(None, "drive0".into())];
        assert!(refusal(&two).contains("NODE=ALIAS"));
        two.aliases = vec![(Some("a".into()), "b".into())];
        assert!(refusal(&two).contains("two nodes"));
        two.aliases = vec![(Some("a".into()), "0".into())];
        assert!(refusal(&two).contains("'0'"));
    }

    #[test]
    fn bitmaps_that_are_named_go_alone() {
        let mut one = names(&["a"]);
        one.bitmaps = vec![pick("x/y", None), pick("z", Some("w"))];
        let plan = one.plan().unwrap();
        assert_eq!(wire(&plan, "a", "x/y"), pair("a", "x/y"));
        assert_eq!(wire(&plan, "a", "z"), pair("a", "w"));
        assert_eq!(wire(&plan, "a", "other"), None);
        assert!(plan.selective);
        let mut two = names(&["a", "b"]);
        two.bitmaps = vec![pick("b/x/y", Some("w"))];
        let plan = two.plan().unwrap();
        assert_eq!(wire(&plan, "b", "x/y"), pair("b", "w"));
        assert_eq!(wire(&plan, "a", "x/y"), None);
        assert_eq!(plan.picked, [("b".to_owned(), "x/y".to_owned())]);
        for text in ["x", "c/x", "a/"] {
            two.bitmaps = vec![pick(text, None)];
            assert!(refusal(&two).contains("the nodes are a, b"), "{text}");
        }
        one.bitmaps = vec![pick("z", Some(&"w".repeat(256)))];
        assert!(refusal(&one).contains("256 bytes"));
    }

    #[test]
    fn a_map_of_one_node_names_the_one_image() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("map.json");
        let json = r#"[{"node-name":"n0","alias":"d","bitmaps":[{"name":"b","alias":"c"}]}]"#;
        std::fs::write(&file, json).unwrap();
        let mut one = names(&["a"]);
        one.map = Some(file.clone().into());
        let plan = one.plan().unwrap();
        assert_eq!(plan.images[0].node, "n0");
        assert_eq!(wire(&plan, "n0", "b"), pair("d", "c"));
        std::fs::write(&file, "[").unwrap();
        assert!(refusal(&one).contains("not a block-bitmap-mapping"));
    }
}
