//! Mistakes in the words of the command line.

use crate::pair::Pair;

#[test]
fn words_before_the_command() {
    let Some(mut pair) = Pair::new() else { return };
    for line in [
        "",
        "no-such-command",
        "--no-such-option",
        "-x",
        "-T",
        "--trace",
        "--version=1",
        "--help=x info",
        "--",
        "-- no-such-command",
        "no-such-command --help",
        "--v=1",
        "--t",
        "-xV",
    ] {
        pair.same_line(line);
    }
    pair.finish();
}

#[test]
fn options_of_each_command() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    for command in ["info", "check", "create", "bitmap"] {
        for words in [
            "",
            "--no-such-option",
            "--no-such-option=1",
            "-x",
            "-f",
            "--image-opts=1 a",
            "--object",
            "--object foo --no-such-option",
            "--object secret a.qcow2",
            "a b c d",
            "-f foo a.qcow2",
            "-f qcow2 --image-opts a.qcow2",
            "--image-opts -f qcow2 a.qcow2 b",
            "--image-opts a.qcow2",
            "-- -x",
            "-",
        ] {
            if command == "create" && words.contains("--image-opts") {
                continue;
            }
            pair.same_line(&format!("{command} {words}"));
        }
    }
    pair.finish();
}

#[test]
fn abbreviated_options() {
    let Some(mut pair) = Pair::new() else { return };
    for line in [
        "info --o=json x",
        "info --f x",
        "info --force=1 x",
        "info --ba",
        "info --i",
        "check --o x",
        "check --f x",
        "check --r x",
        "check --c x",
        "check --q=1",
        "create --o x",
        "create --b x",
        "create --backing- x",
        "create --f x",
        "bitmap --s x",
        "bitmap --source x",
        "bitmap --m x --a --r --c --e --d",
        "bitmap --g 1k",
    ] {
        pair.same_line(line);
    }
    pair.finish();
}

#[test]
fn values_are_checked_in_the_order_of_the_words() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    for line in [
        "info --output=x --no-such-option a",
        "info --no-such-option --output=x a",
        "info --output=x --object foo a",
        "info --object foo --output=x a",
        "check --output=x a.qcow2",
        "check -r x a.qcow2",
        "check -T x a.qcow2",
        "check -T x -r y a.qcow2",
        "check -r y -T x a.qcow2",
        "check -T x a b",
        "check -T x -f qcow2 --image-opts a.qcow2",
        "check -T x missing",
        "check a b -f qcow2 --image-opts",
        "info a b -f qcow2 --image-opts",
        "bitmap -g foo",
        "bitmap -g -1 --add",
        "bitmap -g 8E --add a.qcow2 b",
    ] {
        pair.same_line(line);
    }
    pair.finish();
}

#[test]
fn combinations_of_bitmap_actions() {
    let Some(mut pair) = Pair::new() else { return };
    for line in [
        "bitmap",
        "bitmap a b",
        "bitmap --add",
        "bitmap --add a",
        "bitmap --add a b c",
        "bitmap -g 1k",
        "bitmap -g 1k --remove",
        "bitmap -g 1k --remove a b",
        "bitmap -b x",
        "bitmap -b x --add",
        "bitmap -F x",
        "bitmap -F x --add",
        "bitmap -F x -b y --add a b",
        "bitmap -F x --merge y a b",
        "bitmap --remove -g 1k -b x a b",
        "bitmap --remove -F y -g 1k a b",
        "bitmap --image-opts -f x",
        "bitmap --image-opts -f x --add a",
        "bitmap --image-opts -f x --add a b",
        "bitmap --image-opts -f x --remove -g 1k a b",
        "bitmap --merge",
        "bitmap -U --add a b",
        "bitmap -q --add a b",
    ] {
        // `-U` is ours, for reading.
        if !line.contains("-U") {
            pair.same_line(line);
        }
    }
    pair.finish();
}

#[test]
fn secrets() {
    let Some(mut pair) = Pair::new() else { return };
    pair.make(&["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    for definition in [
        "",
        "foo",
        "secret",
        "qom-type=secret",
        "secret,id=x",
        "secret,data=x",
        "secret,id=1x,data=y",
        "secret,id=x y,data=y",
        "secret,id=x,data=y",
        "secret,id=x,file=/no/such/file",
        "secret,id=x,file=a.qcow2",
        "secret,id=x,data=y,file=z",
        "secret,id=x,data=y,foo=z",
        "secret,id=x,data=y,format=foo",
        "secret,id=x,data=y,format=raw",
        "secret,id=x,data=y,keyid=z",
        "secret,id=x,data",
        "secret,id,data=x",
        "secret,id=x,data=a,,b",
        r#"{"qom-type":"secret","id":"x","data":"y"}"#,
        r#"{"qom-type":"secret","id":"x"}"#,
        "{",
    ] {
        pair.same(&["info", "--object", definition, "a.qcow2"]);
    }
    let twice = "secret,id=x,data=y";
    pair.same(&["info", "--object", twice, "--object", twice, "a.qcow2"]);
    pair.finish();
}
