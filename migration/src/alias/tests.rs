//! Mappings both ways, and what is refused.

use super::*;

const JSON: &str = r#"[
    {"node-name": "n0", "alias": "drive-0", "bitmaps": [
        {"name": "bm0", "alias": "bitmap alias 0"},
        {"name": "bm1", "alias": "one", "transform": {"persistent": false}},
        {"name": "tmp", "alias": "bm0", "transform": {}}]},
    {"node-name": "nowhere", "alias": "unused", "bitmaps": []}]"#;

fn wire(node: &str, bitmap: &str, persistent: Option<bool>) -> Option<Wire> {
    let (node, bitmap) = (node.into(), bitmap.into());
    Some(Wire {
        node,
        bitmap,
        persistent,
    })
}

fn refusal(json: &str) -> String {
    AliasMap::from_json(json).unwrap_err().to_string()
}

#[test]
fn qemu_s_mapping_both_ways() {
    let map = AliasMap::from_json(JSON).unwrap();
    assert_eq!(
        map.outgoing("n0", "bm0"),
        wire("drive-0", "bitmap alias 0", None)
    );
    assert_eq!(
        map.outgoing("n0", "bm1"),
        wire("drive-0", "one", Some(false))
    );
    assert_eq!(map.outgoing("n0", "tmp"), wire("drive-0", "bm0", None));
    assert_eq!(map.outgoing("n0", "left-out"), None);
    assert_eq!(map.outgoing("n1", "bm0"), None);
    let local = map.incoming("drive-0", "bm0").unwrap();
    assert_eq!((&*local.node, &*local.bitmap), ("n0", "tmp"));
    let local = map.incoming("drive-0", "one").unwrap();
    assert_eq!((&*local.bitmap, local.persistent), ("bm1", Some(false)));
    assert_eq!(map.incoming("n0", "bm0"), Err(Unmapped::Node));
    assert_eq!(map.incoming("drive-0", "bm1"), Err(Unmapped::Bitmap));
    assert_eq!(map.incoming("unused", "x"), Err(Unmapped::Bitmap));
    assert_eq!(map.nodes().count(), 2);
}

#[test]
fn persistence_of_those_without_a_transform() {
    let map = AliasMap::from_json(JSON).unwrap().persistent(true);
    assert_eq!(map.outgoing("n0", "bm1").unwrap().persistent, Some(false));
    assert_eq!(
        map.incoming("drive-0", "bm0").unwrap().persistent,
        Some(true)
    );
    let map = AliasMap::identity().persistent(false);
    assert_eq!(map.outgoing("a", "b"), wire("a", "b", Some(false)));
}

#[test]
fn the_rest_under_their_own_names() {
    let renamed = BitmapAlias::new("a", "b").unwrap();
    let node = NodeAlias::new("#block123", "n").unwrap();
    let node = node.bitmap(renamed).unwrap().others();
    let map = AliasMap::empty().node(node).unwrap();
    assert_eq!(map.outgoing("#block123", "c"), wire("n", "c", None));
    assert_eq!(map.incoming("n", "c").unwrap().bitmap, "c");
    // "b" is the alias of "a": a bitmap that is called so itself can't go as well.
    assert_eq!(map.outgoing("#block123", "a"), wire("n", "b", None));
    assert_eq!(map.outgoing("#block123", "b"), None);
    assert_eq!(map.incoming("n", "a"), Err(Unmapped::Bitmap));
}

#[test]
fn what_could_mean_two_things_is_refused() {
    let node = |name: &str, alias: &str, bitmaps: &str| {
        format!(r#"{{"node-name":"{name}","alias":"{alias}","bitmaps":[{bitmaps}]}}"#)
    };
    let two = |a: String, b: String| refusal(&format!("[{a},{b}]"));
    assert_eq!(
        two(node("a", "x", ""), node("a", "y", "")),
        "node 'a' is mapped twice"
    );
    assert_eq!(
        two(node("a", "x", ""), node("b", "x", "")),
        "two nodes are mapped to the alias 'x'"
    );
    let names = r#"{"name":"p","alias":"q"},{"name":"p","alias":"r"}"#;
    assert_eq!(
        refusal(&format!("[{}]", node("a", "x", names))),
        "bitmap 'p' of node 'a' is mapped twice"
    );
    let aliases = r#"{"name":"p","alias":"q"},{"name":"r","alias":"q"}"#;
    assert_eq!(
        refusal(&format!("[{}]", node("a", "x", aliases))),
        "two bitmaps of node 'a' are mapped to the alias 'q'"
    );
    assert!(refusal(&format!("[{}]", node("", "x", ""))).contains("is empty"));
    assert!(refusal(&format!("[{}]", node("a", "0x", ""))).contains("'0x'"));
    let empty = r#"{"name":"p","alias":""}"#;
    assert_eq!(
        refusal(&format!("[{}]", node("a", "x", empty))),
        "the alias of a bitmap is empty"
    );
    assert!(refusal("{}").starts_with("not a block-bitmap-mapping"));
    assert!(refusal(r#"[{"node-name":"a","alias":"b"}]"#).contains("bitmaps"));
    assert!(refusal(r#"[{"node":"a","alias":"b","bitmaps":[]}]"#).contains("node"));
}

#[test]
fn lengths_at_their_bounds() {
    assert!(BitmapAlias::new("n".repeat(1023), "a".repeat(255)).is_ok());
    assert!(BitmapAlias::new("n".repeat(1024), "a").is_err());
    assert!(BitmapAlias::new("n", "a".repeat(256)).is_err());
    assert!(BitmapAlias::new("n", "a\0").is_err());
    // The length counts bytes.
    assert!(BitmapAlias::new("n", "ä".repeat(128)).is_err());
    assert!(well_formed_node_alias(&"a".repeat(255)));
    assert!(!well_formed_node_alias(&"a".repeat(256)));
}

#[test]
fn any_text_becomes_a_node_s_alias() {
    for (text, alias) in [
        ("disk-0_a.b", "disk-0_a.b"),
        ("", "n"),
        ("7up", "n7up"),
        ("#block1", "n-block1"),
        ("größe a/b", "gr--e-a-b"),
        ("-x", "n-x"),
    ] {
        assert_eq!(make_node_alias(text), alias);
        assert!(well_formed_node_alias(alias));
    }
    assert!(well_formed_node_alias(&make_node_alias(&"9".repeat(300))));
    for alias in ["", "-a", "1a", "a b", "ä", "a\0", "a/"] {
        assert!(!well_formed_node_alias(alias));
    }
}
