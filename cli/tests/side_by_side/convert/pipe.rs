//! To a pipe.

use std::process::Command;

use super::{MIB, assert_same, content, raw};
use crate::pair::Pair;

#[test]
fn a_pipe_gets_the_same_disk() {
    let Some(pair) = Pair::new() else { return };
    let bytes = content(3 * MIB + 512);
    raw(&pair, "a", &bytes);
    pair.make(&["convert", "-f", "raw", "-O", "qcow2", "a", "a.qcow2"]);
    let run = |line: &str| {
        Command::new(env!("CARGO_BIN_EXE_qimg"))
            .current_dir(pair.work())
            .args(line.split_whitespace())
            .output()
            .unwrap()
    };
    for options in [
        "cluster_size=512",
        "extended_l2=on",
        "refcount_bits=1,compat=v3",
    ] {
        let output = run(&format!("convert -p -O qcow2 -o {options} a.qcow2 -"));
        assert_eq!(output.status.code(), Some(0));
        raw(&pair, "t", &output.stdout);
        assert_same(&pair, "a", "t", options);
    }
    assert!(run("convert a.qcow2 -").stdout == bytes);
    for refused in [
        "-c -O qcow2",
        "-O qcow2 -B a -F raw",
        "-O qcow2 -o data_file=d",
    ] {
        let output = run(&format!("convert {refused} a.qcow2 -"));
        assert_eq!(output.status.code(), Some(1), "{refused}");
        assert!(output.stdout.is_empty());
    }
    assert!(!pair.work().join("-").exists());
}
