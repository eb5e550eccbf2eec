//! `check`: every kind of image, and damage of every kind.

use crate::{images::each_kind, pair::Pair};

#[test]
fn every_kind_of_image_in_both_forms() {
    let Some(mut pair) = Pair::new() else { return };
    for name in each_kind(&pair) {
        // qemu-img opens what an image is based on, needs keys, and won't open an image
        // whose data file it can't find: the check itself needs none of these.
        if [
            "lost.qcow2",
            "nbd.qcow2",
            "luks.qcow2",
            "aes.qcow2",
            "v2-aes.qcow2",
            "df-aes.qcow2",
        ]
        .contains(&name)
        {
            continue;
        }
        pair.same(&["check", name]);
        pair.same(&["check", "--output=json", name]);
        pair.same(&["check", "-q", name]);
        pair.same(&["check", "-U", "-T", "none", "-f", "qcow2", name]);
    }
    pair.finish();
}
