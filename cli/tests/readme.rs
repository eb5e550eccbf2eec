//! What README.md shows is what the command prints.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests: a panic is the message"
)]

use std::{fs, path::Path, process::Command};

#[test]
fn the_recorded_example_is_what_is_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let (_, block) = readme.split_once("```console\n").expect("an example");
    let (block, _) = block.split_once("```").expect("its end");
    let mut shown = 0;
    for example in block.split_terminator("$ qimg ").skip(1) {
        let (command, expected) = example.split_once('\n').unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_qimg"))
            .args(command.split_whitespace())
            .current_dir(root)
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            expected,
            "{command}"
        );
        shown += 1;
    }
    assert_eq!(shown, 2);
}
