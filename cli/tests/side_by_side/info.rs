//! `info`: every kind of image, and names of every kind.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt};

use crate::{images::each_kind, pair::Pair};

#[test]
fn every_kind_of_image_in_both_forms() {
    let Some(mut pair) = Pair::new() else { return };
    for name in each_kind(&pair) {
        pair.same(&["info", name]);
        pair.same(&["info", "--output=json", name]);
        pair.same(&["info", "-U", "-f", "raw", name]);
    }
    pair.finish();
}

#[test]
fn backing_chains() {
    let Some(mut pair) = Pair::new() else { return };
    each_kind(&pair);
    for name in [
        "raw.img",
        "v3.qcow2",
        "top.qcow2",
        "top2.qcow2",
        "over-raw.qcow2",
        "luks.qcow2",
        "lost.qcow2",
        "file.qcow2",
        "sub/relative.qcow2",
        "sub/absolute.qcow2",
        "dirty-corrupt.qcow2",
    ] {
        pair.same(&["info", "--backing-chain", name]);
        pair.same(&["info", "--backing-chain", "--output=json", name]);
    }
    pair.finish();
}

#[test]
fn names_and_formats() {
    let Some(mut pair) = Pair::new() else { return };
    each_kind(&pair);
    for line in [
        "info missing",
        "info -f raw missing",
        "info -f foo missing",
        "info no/such/directory",
        "info raw.img/x",
        "info sub",
        "info -f qcow2 sub",
        "info -f raw sub",
        "info -f qcow2 raw.img",
        "info -f qcow2 empty.img",
        "info -f raw v3.qcow2",
        "info -f file v3.qcow2",
        "info -f file --output=json v3.qcow2",
        "info -f host_device v3.qcow2",
        "info name:with",
        "info a:b/c",
        "info ./name:with",
        "info x/name:with",
        "info :a",
        "info FILE:x",
        "info file:missing",
        "info file:top.qcow2",
        "info file:./sub/relative.qcow2",
        "info file:",
        "info ./top.qcow2",
        "info sub/../top.qcow2",
        "info -- v3.qcow2",
        "info v3.qcow2 -U --output json",
        "info --output=json --output=human v3.qcow2",
    ] {
        pair.same_line(line);
    }
    pair.same(&["info", ""]);
    pair.finish();
}

#[test]
fn json_names_and_image_options() {
    let Some(mut pair) = Pair::new() else { return };
    each_kind(&pair);
    for name in [
        "json:{}",
        "json:[]",
        "json:{",
        "json:",
        "json:{} x",
        r#"json:{"driver":"qcow2"}"#,
        r#"json:{"driver":"blubb"}"#,
        r#"json:{"driver":"file"}"#,
        r#"json:{"driver":"file","filename":"v3.qcow2"}"#,
        r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"v3.qcow2"}}"#,
        r#"json:{"driver":"qcow2","file.filename":"v3.qcow2"}"#,
        r#"json:{"file":{"driver":"file","filename":"v3.qcow2"}}"#,
        r#"json:{"driver":"raw","file":{"driver":"file","filename":"v3.qcow2"}}"#,
        r#"json:{"driver":"qcow2","file":{"filename":"v3.qcow2","foo":1}}"#,
        r#"json:{"driver":"qcow2","foo":"bar","file":{"filename":"v3.qcow2"}}"#,
        r#"json:{"driver":"qcow2","file":"v3.qcow2"}"#,
        r#"json:{"driver":"qcow2","file":null}"#,
        r#"json:{"driver":"qcow2","backing":null,"file.filename":"top.qcow2"}"#,
        r#"json:{"driver":"qcow2","backing":"","file.filename":"top.qcow2"}"#,
    ] {
        pair.same(&["info", name]);
    }
    for list in [
        "driver=qcow2,file.driver=file,file.filename=v3.qcow2",
        "driver=qcow2,file.filename=v3.qcow2",
        "file.filename=v3.qcow2",
        "filename=v3.qcow2",
        "driver=file,filename=v3.qcow2",
        "driver=raw,file.filename=v3.qcow2",
        "driver=qcow2",
        "driver=foo",
        "driver=",
        "foo=bar,driver=qcow2,file.filename=v3.qcow2",
        "file.foo=bar,driver=qcow2,file.filename=v3.qcow2",
        "v3.qcow2",
        ",driver=qcow2,file.filename=v3.qcow2",
        "driver=qcow2,file.filename=v3.qcow2,",
        "driver=qcow2,file=v3.qcow2",
        "driver=qcow2,file.filename=file:v3.qcow2",
        "driver=qcow2,file.filename=a,,b.qcow2",
        "driver=raw,file.driver=host_device,file.filename=v3.qcow2",
        "driver=raw,file.driver=file,file.filename=/dev/null",
        "driver=qcow2,lazy-refcounts,file.filename=v3.qcow2",
        "driver=qcow2,nolazy-refcounts,file.filename=v3.qcow2",
        "driver=qcow2,read-only=x,file.filename=v3.qcow2",
        "driver=qcow2,cache-size=1M,file.filename=v3.qcow2",
        "driver=qcow2,cache-size=foo,file.filename=v3.qcow2",
        "driver=qcow2,file.locking=off,file.filename=v3.qcow2",
        "driver=qcow2,backing.driver=qcow2,file.filename=top.qcow2",
        "driver=qcow2,data-file.filename=d1.raw,file.filename=df1.qcow2",
        "driver=qcow2,force-share=on,file.filename=v3.qcow2",
    ] {
        pair.same(&["info", "--image-opts", list]);
    }
    pair.same(&[
        "info",
        "-U",
        "--image-opts",
        "driver=qcow2,force-share=off,file.filename=v3.qcow2",
    ]);
    pair.finish();
}

#[test]
fn file_names_of_every_kind_in_json() {
    let Some(mut pair) = Pair::new() else { return };
    let mut names: Vec<Vec<u8>> = (1..=255_u8)
        .filter(|c| *c != b'/')
        .map(|c| vec![c])
        .collect();
    for text in [
        "é",
        "€",
        "\u{2028}",
        "\u{feff}",
        "😀",
        "\u{10ffff}",
        "\u{fffe}",
        "\u{fdd0}",
    ] {
        names.push(text.into());
    }
    for bytes in [
        &b"\xed\xa0\x80"[..],
        b"\xc1\x81",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
        b"\xe2\x82x",
        b"\xf8\x88\x80\x80\x80",
        b"\x80\x80\xc3",
        b"\xc3\xc3\xa9",
        b"\xf0\x9f\x98",
        b"\xfc\x80\x80\x80\x80\x80",
        b"\xf0\x80\x80\x80",
        b"\xe0\x80\x80",
    ] {
        names.push(bytes.to_vec());
    }
    // Each run costs far more than a name: many go into one.
    for names in names.chunks(24) {
        let name = [b"./a".to_vec(), names.join(&b'z'), b"y".to_vec()].concat();
        let name = OsStr::from_bytes(&name);
        fs::write(pair.work().join(name), b"").unwrap();
        pair.same(&[OsStr::new("info"), OsStr::new("--output=json"), name]);
    }
    pair.finish();
}
