//! [`AliasMap`]: what nodes and bitmaps are called on the wire, and what they are called
//! here. QEMU's `block-bitmap-mapping`.

use serde::Deserialize;

use crate::{Error, Result};

/// The most bytes of a name or alias on the wire: its length is one byte.
const MAX_WIRE: usize = 255;
/// The most bytes of a bitmap's own name: what a qcow2 image can hold.
const MAX_NAME: usize = 1023;

/// Whether QEMU takes this text as the alias of a node: a letter, then letters, digits,
/// `-`, `.` and `_`; at most 255 bytes.
#[must_use]
pub fn well_formed_node_alias(alias: &str) -> bool {
    alias.len() <= MAX_WIRE
        && alias.starts_with(|c: char| c.is_ascii_alphabetic())
        && alias
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
}

/// Makes any text, such as the stem of a file's name, the alias of a node: what isn't
/// allowed becomes `-`, an `n` is put before what doesn't start with a letter, and what is
/// over 255 bytes is cut off. Different texts may come out the same.
#[must_use]
pub fn make_node_alias(text: &str) -> String {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic());
    let start = if first { "" } else { "n" };
    let rest = text.chars().map(|c| {
        if c.is_ascii_alphanumeric() || "-._".contains(c) {
            c
        } else {
            '-'
        }
    });
    start.chars().chain(rest).take(MAX_WIRE).collect()
}

/// What a bitmap is called on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wire {
    /// Alias of its node.
    pub node: String,
    /// Alias of the bitmap.
    pub bitmap: String,
    /// What the stream is to say of its persistence; `None` leaves it as it is.
    pub persistent: Option<bool>,
}

/// What a bitmap on the wire is called here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Name of its node.
    pub node: String,
    /// Name of the bitmap.
    pub bitmap: String,
    /// Whether it is to be persistent; `None` leaves it to the stream.
    pub persistent: Option<bool>,
}

/// Which alias of an incoming bitmap a map doesn't know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapped {
    /// That of its node.
    Node,
    /// That of the bitmap.
    Bitmap,
}

/// A bitmap's line in an [`AliasMap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapAlias {
    name: String,
    alias: String,
    persistent: Option<bool>,
}

impl BitmapAlias {
    /// The bitmap `name` is `alias` on the wire.
    ///
    /// # Errors
    /// [`Error::Refused`] if the alias is empty or over 255 bytes, or the name is empty or
    /// over 1023, or one of them holds a NUL.
    pub fn new(name: impl Into<String>, alias: impl Into<String>) -> Result<Self> {
        let (name, alias) = (name.into(), alias.into());
        bounded("name of a bitmap", &name, MAX_NAME)?;
        check_bitmap_alias(&alias)?;
        Ok(Self {
            name,
            alias,
            persistent: None,
        })
    }

    /// `transform.persistent`: whether it is persistent on the other side, whatever it is
    /// on this one.
    #[must_use]
    pub const fn persistent(mut self, persistent: bool) -> Self {
        self.persistent = Some(persistent);
        self
    }
}

/// A node's part of an [`AliasMap`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAlias {
    node: String,
    alias: String,
    bitmaps: Vec<BitmapAlias>,
    /// Whether bitmaps that are not listed go under their own names.
    others: bool,
}

impl NodeAlias {
    /// The node `node` is `alias` on the wire; none of its bitmaps is listed yet.
    ///
    /// # Errors
    /// [`Error::Refused`] if the alias is not [well-formed](well_formed_node_alias) or the
    /// name is empty.
    pub fn new(node: impl Into<String>, alias: impl Into<String>) -> Result<Self> {
        let (node, alias) = (node.into(), alias.into());
        if node.is_empty() {
            return Err(Error::Refused("the name of a node is empty".into()));
        }
        check_node_alias(&alias)?;
        Ok(Self {
            node,
            alias,
            bitmaps: Vec::new(),
            others: false,
        })
    }

    /// Lists a bitmap.
    ///
    /// # Errors
    /// [`Error::Refused`] if the name or the alias is listed already.
    pub fn bitmap(mut self, bitmap: BitmapAlias) -> Result<Self> {
        let node = &self.node;
        if self.bitmaps.iter().any(|b| b.name == bitmap.name) {
            let name = &bitmap.name;
            return Err(Error::Refused(format!(
                "bitmap '{name}' of node '{node}' is mapped twice"
            )));
        }
        if self.bitmaps.iter().any(|b| b.alias == bitmap.alias) {
            let alias = &bitmap.alias;
            return Err(Error::Refused(format!(
                "two bitmaps of node '{node}' are mapped to the alias '{alias}'"
            )));
        }
        self.bitmaps.push(bitmap);
        Ok(self)
    }

    /// Bitmaps that are not listed go under their own names. (QEMU has no such thing: it
    /// leaves them out.)
    #[must_use]
    pub const fn others(mut self) -> Self {
        self.others = true;
        self
    }
}

/// What nodes and bitmaps are called on the wire. What has no alias isn't sent, and is
/// unknown where it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasMap {
    /// `None` for the identity.
    nodes: Option<Vec<NodeAlias>>,
    persistent: Option<bool>,
}

impl Default for AliasMap {
    fn default() -> Self {
        Self::identity()
    }
}

/// `BitmapMigrationNodeAlias` of QEMU's QAPI.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct JsonNode {
    node_name: String,
    alias: String,
    bitmaps: Vec<JsonBitmap>,
}

/// `BitmapMigrationBitmapAlias`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonBitmap {
    name: String,
    alias: String,
    transform: Option<JsonTransform>,
}

/// `BitmapMigrationBitmapAliasTransform`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonTransform {
    persistent: Option<bool>,
}

impl AliasMap {
    /// Everything goes under its own name.
    #[must_use]
    pub const fn identity() -> Self {
        Self {
            nodes: None,
            persistent: None,
        }
    }

    /// A map without a node: nothing goes.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            nodes: Some(Vec::new()),
            persistent: None,
        }
    }

    /// From the JSON that QEMU takes as `block-bitmap-mapping`:
    /// `[{"node-name": …, "alias": …, "bitmaps": [{"name": …, "alias": …,
    /// "transform": {"persistent": true}}]}]`, where `transform` may be missing.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is no such JSON, and as [`node`](Self::node),
    /// [`NodeAlias::new`], [`NodeAlias::bitmap`] and [`BitmapAlias::new`].
    pub fn from_json(json: &str) -> Result<Self> {
        let nodes: Vec<JsonNode> = serde_json::from_str(json)
            .map_err(|e| Error::Refused(format!("not a block-bitmap-mapping: {e}")))?;
        let mut map = Self::empty();
        for json in nodes {
            let mut node = NodeAlias::new(json.node_name, json.alias)?;
            for json in json.bitmaps {
                let mut bitmap = BitmapAlias::new(json.name, json.alias)?;
                bitmap.persistent = json.transform.and_then(|t| t.persistent);
                node = node.bitmap(bitmap)?;
            }
            map = map.node(node)?;
        }
        Ok(map)
    }

    /// Adds a node. To the identity it adds the first one: only what is listed goes then.
    ///
    /// # Errors
    /// [`Error::Refused`] if the map has the node or the alias already.
    pub fn node(mut self, node: NodeAlias) -> Result<Self> {
        let nodes = self.nodes.get_or_insert_default();
        if nodes.iter().any(|n| n.node == node.node) {
            let name = &node.node;
            return Err(Error::Refused(format!("node '{name}' is mapped twice")));
        }
        if nodes.iter().any(|n| n.alias == node.alias) {
            let alias = &node.alias;
            return Err(Error::Refused(format!(
                "two nodes are mapped to the alias '{alias}'"
            )));
        }
        nodes.push(node);
        Ok(self)
    }

    /// The persistence of all bitmaps that have no transform of their own.
    #[must_use]
    pub const fn persistent(mut self, persistent: bool) -> Self {
        self.persistent = Some(persistent);
        self
    }

    /// What a bitmap of ours is called on the wire; `None` if it isn't to be sent. The
    /// names that [`identity`](Self::identity) gives are not checked.
    #[must_use]
    pub fn outgoing(&self, node: &str, bitmap: &str) -> Option<Wire> {
        let own = |node: &str| Wire {
            node: node.into(),
            bitmap: bitmap.into(),
            persistent: self.persistent,
        };
        let Some(nodes) = &self.nodes else {
            return Some(own(node));
        };
        let node = nodes.iter().find(|n| n.node == node)?;
        if let Some(b) = node.bitmaps.iter().find(|b| b.name == bitmap) {
            return Some(Wire {
                node: node.alias.clone(),
                bitmap: b.alias.clone(),
                persistent: b.persistent.or(self.persistent),
            });
        }
        // An alias that is taken by another one can't be its own name as well.
        let free = node.bitmaps.iter().all(|b| b.alias != bitmap);
        (node.others && free).then(|| own(&node.alias))
    }

    /// What a bitmap on the wire is called here.
    ///
    /// # Errors
    /// [`Unmapped`] says which of the two aliases is unknown.
    pub fn incoming(&self, node_alias: &str, bitmap_alias: &str) -> Result<Local, Unmapped> {
        self.find(|n| n.alias == node_alias, node_alias, bitmap_alias)
    }

    /// The same for a node whose name here is known, whatever its alias is.
    pub(crate) fn incoming_to(&self, node: &str, bitmap_alias: &str) -> Result<Local, Unmapped> {
        self.find(|n| n.node == node, node, bitmap_alias)
    }

    fn find(
        &self,
        is_node: impl Fn(&NodeAlias) -> bool,
        node: &str,
        bitmap_alias: &str,
    ) -> Result<Local, Unmapped> {
        let own = |node: &str| Local {
            node: node.into(),
            bitmap: bitmap_alias.into(),
            persistent: self.persistent,
        };
        let Some(nodes) = &self.nodes else {
            return Ok(own(node));
        };
        let node = nodes.iter().find(|n| is_node(n)).ok_or(Unmapped::Node)?;
        if let Some(b) = node.bitmaps.iter().find(|b| b.alias == bitmap_alias) {
            return Ok(Local {
                node: node.node.clone(),
                bitmap: b.name.clone(),
                persistent: b.persistent.or(self.persistent),
            });
        }
        let free = node.bitmaps.iter().all(|b| b.name != bitmap_alias);
        if node.others && free {
            Ok(own(&node.node))
        } else {
            Err(Unmapped::Bitmap)
        }
    }

    /// The nodes that are listed: name and alias. None for the identity.
    pub fn nodes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.nodes
            .iter()
            .flatten()
            .map(|n| (n.node.as_str(), n.alias.as_str()))
    }
}

/// Refuses what can't be a node's alias.
pub(crate) fn check_node_alias(alias: &str) -> Result<()> {
    if well_formed_node_alias(alias) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "'{}' can't be the alias of a node: allowed is a letter, then letters, digits, \
         '-', '.' and '_', 255 bytes at most",
        alias.escape_debug()
    )))
}

/// Refuses what can't be a bitmap's alias.
pub(crate) fn check_bitmap_alias(alias: &str) -> Result<()> {
    bounded("alias of a bitmap", alias, MAX_WIRE)
}

fn bounded(what: &str, text: &str, most: usize) -> Result<()> {
    let found = match text.len() {
        0 => "is empty".to_owned(),
        n if n > most => format!("has {n} bytes, allowed are {most}"),
        _ if text.contains('\0') => "holds a NUL".to_owned(),
        _ => return Ok(()),
    };
    Err(Error::Refused(format!("the {what} {found}")))
}

#[cfg(test)]
mod tests;
