//! What is printed, and the exit code.

use std::fs;

use super::{MIB, content, raw};
use crate::pair::Pair;

#[test]
fn words_and_exit_codes() {
    let Some(mut pair) = Pair::new() else { return };
    raw(&pair, "a", &content(MIB + 512));
    raw(&pair, "even", &content(MIB));
    pair.make(&["convert", "-f", "raw", "-O", "qcow2", "a", "a.qcow2"]);
    pair.make(&["snapshot", "-c", "s1", "a.qcow2"]);
    pair.make(&["bitmap", "--add", "a.qcow2", "b0"]);
    for line in [
        "",
        "a",
        "a b c missing",
        "missing x",
        "a /nonexistent/x",
        "a a",
        "-O qcow2 a.qcow2 a.qcow2",
        "a x",
        "-p -q a x",
        "-U a x",
        "-W a x",
        "-m 16 a x",
        "-T none -t none a x",
        "-O foo a x",
        "-f foo a x",
        "-c a x",
        "-c -O raw a x",
        "-O qcow2 -c -o preallocation=metadata a x",
        "-o foo=1 -O qcow2 a x",
        "-O qcow2 -o size=1M a x",
        "-O qcow2 -o encryption=on a x",
        "-O qcow2 -o cluster_size=1 a x",
        "-O qcow2 -o preallocation=foo a x",
        "-O raw -o preallocation=metadata a x",
        "-S 1 a x",
        "-S 32M a x",
        "-S foo a x",
        "-S 3M a x",
        "-m 0 a x",
        "-m 17 a x",
        "-m x a x",
        "-r x a x",
        "-B a -O qcow2 a x",
        "-B a -F raw -O qcow2 a x",
        "-B missing -F raw -O qcow2 a x",
        "-B a -F raw a x",
        "-B a -F raw -O qcow2 a a x",
        "-F raw -O qcow2 a x",
        "-O qcow2 -o backing_file=a a x",
        "-O qcow2 -o backing_file=a,backing_fmt=raw a x",
        "-l s2 -O qcow2 a.qcow2 x",
        "-l s1 -O qcow2 a.qcow2 x",
        "-l s1 a a x",
        "-l s1 a x",
        "-l snapshot.id=1 a.qcow2 x",
        "-l snapshot.foo=1 a.qcow2 x",
        "-l s1 a.qcow2 a.qcow2 x",
        "-l snapshot.name=s1 a.qcow2 a.qcow2 x",
        "-l snapshot.name=s2 a.qcow2 a.qcow2 x",
        "-l snapshot.name=s1 a.qcow2 missing x",
        "-t foo a x",
        "-T foo a x",
        "-c -t foo a x",
        "--target-is-zero a x",
        "--skip-broken-bitmaps a x",
        "--bitmaps a x",
        "--bitmaps a.qcow2 x",
        "--bitmaps -O qcow2 a.qcow2 x",
        "--bitmaps -O qcow2 -o compat=v2 a.qcow2 x",
        "--bitmaps -O qcow2 a.qcow2 a.qcow2 x",
        "-C a x",
        "-C -S 4k a x",
        "-C -c -O qcow2 a x",
        "-C --salvage a x",
        "--salvage a x",
        "--image-opts -f raw a x",
        "--image-opts a x",
        "--image-opts driver=qcow2,file.filename=a.qcow2 x",
        "--target-image-opts a x",
        "--object secret a x",
        "-O qcow2 -o help",
        "-O qcow2 -o help a x",
        "-o help",
        "-o help -n a x",
        "-s a x",
        "-p missing x",
        "-p -O foo a x",
        "-p a",
        "-n -o a=b a x",
        "-n missing a",
        "-n a missing",
        "-n a there",
        "-n --target-is-zero a zeros",
        "-n -O qcow2 a there.qcow2",
        "-n -O raw a.qcow2 small",
        "-n --target-image-opts a driver=raw,file.filename=there",
        "-n -O raw --target-image-opts a driver=raw,file.filename=there",
        "-c -n a there",
        "-c -n -O raw a there",
        "-c -n -O qcow2 even there.qcow2",
        "-c -n -O qcow2 -o compression_type=zstd a there.qcow2",
        "-c -n -O qcow2 a missing",
        "-c -n -O qcow2 there there.qcow2",
        "-c -n -O qcow2 -B a -F raw even there.qcow2",
        "-c -n -O qcow2 -B a even there.qcow2",
        "-n -O qcow2 -B a even there.qcow2",
        "-c -n --target-image-opts a driver=raw,file.filename=there",
        "-c -n --target-image-opts a driver=raw,file.filename=small",
        "-c -n --target-image-opts even driver=qcow2,file.filename=there.qcow2",
        "-c -n --target-is-zero -O qcow2 even there.qcow2",
        "-c -n -O qcow2 a outside.qcow2",
    ] {
        for name in ["x", "there", "there.qcow2", "zeros"] {
            let _ = fs::remove_file(pair.work().join(name));
        }
        raw(&pair, "there", &vec![1; 2 * MIB]);
        raw(&pair, "zeros", &vec![0; 2 * MIB]);
        raw(&pair, "small", &[0; 1024]);
        pair.make(&["create", "-q", "-f", "qcow2", "there.qcow2", "2M"]);
        pair.make_line("create -q -f qcow2 -o data_file=outside outside.qcow2 2M");
        pair.same_line(&format!("convert {line}"));
    }
    pair.finish();
}
