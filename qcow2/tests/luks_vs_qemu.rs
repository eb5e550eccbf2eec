//! Encrypted images: what qemu-io wrote is read, and what we write qemu-img reads.
#![cfg(feature = "encryption")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic in a test's helper is its message"
)]

mod support;

use qcow2::{
    BackingPolicy, DataFilePolicy, Error, Image, OpenOptions, crypt::Secret, disk::Disk,
    image::GuestWriter, io::LockMode,
};
use support::{
    Qemu,
    disk::{
        Random, assert_same_bytes, assert_same_map, our_map, read_all, scribble_with, their_map,
    },
};

const SECRET: &str = "--object secret,id=s,data=letmein";

fn spec(name: &str) -> String {
    format!("{SECRET} --image-opts driver=qcow2,encrypt.key-secret=s,file.filename={name}")
}

fn create(qemu: &Qemu, name: &str, options: &str, size: u64) {
    let options = match options.contains("encrypt.format=") {
        true => options.to_owned(),
        false => format!("encrypt.format=luks,encrypt.iter-time=10,{options}"),
    };
    let options = options.trim_end_matches(',');
    qemu.img(&format!(
        "create -q -f qcow2 {SECRET} -o encrypt.key-secret=s,{options} {name} {size}"
    ));
}

fn options() -> OpenOptions {
    OpenOptions::new()
        .lock(LockMode::None)
        .backing(BackingPolicy::Follow)
        .data_file(DataFilePolicy::Follow)
}

fn open(qemu: &Qemu, name: &str) -> Image {
    options()
        .secret(Secret::new("letmein"))
        .open(qemu.path(name))
        .unwrap()
}

/// qemu-img and we read the same.
fn agree(qemu: &Qemu, name: &str, what: &str, random: &mut Random) {
    let image = open(qemu, name);
    qemu.img(&format!("convert -O raw {} theirs.raw", spec(name)));
    let theirs = qemu.bytes("theirs.raw");
    assert_same_bytes(&read_all(&image, random), &theirs, what);
    assert_same_map(&our_map(&image), &their_map(qemu, &spec(name)), what);
}

/// Random writes by us; then we and qemu-img read them, and qemu-img's check is content.
fn write_and_agree(qemu: &Qemu, name: &str, what: &str, random: &mut Random) {
    let image = options()
        .lock(LockMode::ReadWrite)
        .writable(true)
        .secret(Secret::new("letmein"))
        .open(qemu.path(name))
        .unwrap();
    let mut model = read_all(&image, random);
    let cluster = image.geometry().cluster_size();
    let writer = GuestWriter::new(image).unwrap();
    for _ in 0..30 {
        let align = *random.pick(&[1, 512, cluster]);
        let start = random.below(writer.size()) / align * align;
        let most = *random.pick(&[512, cluster, cluster * 3]);
        let end = writer.size().min(start + 1 + random.below(most));
        let range = usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
        match random.below(4) {
            0 => {
                writer.zero(start..end, random.below(2) == 0).unwrap();
                model[range].fill(0);
            }
            _ => {
                let with = u8::try_from(1 + random.below(255)).unwrap();
                writer.write(start, &vec![with; range.len()]).unwrap();
                model[range].fill(with);
            }
        }
    }
    assert_same_bytes(&read_all(&writer, random), &model, what);
    drop(writer.close().unwrap());
    let image = open(qemu, name);
    assert_same_bytes(&read_all(&image, random), &model, what);
    drop(image);
    agree(qemu, name, what, random);
    qemu.img(&format!("check {}", spec(name)));
}

fn both_ways(qemu: &Qemu, options: &str, size: u64, random: &mut Random) {
    create(qemu, "a", options, size);
    scribble_with(qemu, &spec("a"), size, options, random);
    agree(qemu, "a", options, random);
    write_and_agree(qemu, "a", options, random);
}

#[test]
fn every_cipher() {
    let Some(qemu) = Qemu::find() else { return };
    let mut random = Random(1);
    for options in [
        "",
        "encrypt.hash-alg=sha1,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,\
         encrypt.ivgen-alg=essiv",
        "encrypt.hash-alg=sha512,encrypt.cipher-alg=serpent-192",
        "encrypt.hash-alg=ripemd160,encrypt.cipher-alg=twofish-256,encrypt.cipher-mode=ctr",
        "encrypt.format=aes",
    ] {
        both_ways(&qemu, options, 1 << 20, &mut random);
    }
}

#[test]
fn every_layout() {
    let Some(qemu) = Qemu::find() else { return };
    let mut random = Random(2);
    let file = qemu.path("data").display().to_string();
    for options in [
        "compat=0.10,cluster_size=512",
        "extended_l2=on,cluster_size=2M,preallocation=metadata",
        &format!("data_file={file},data_file_raw=on"),
        "encrypt.format=aes,extended_l2=on,cluster_size=32k",
        "encrypt.format=aes,cluster_size=4096",
        &format!("encrypt.format=aes,data_file={file}"),
    ] {
        let size = (1 << 20) + random.below(1000) * 512;
        both_ways(&qemu, options, size, &mut random);
    }
}

#[test]
fn a_chain_with_secrets_of_its_own() {
    let Some(qemu) = Qemu::find() else { return };
    let mut random = Random(3);
    create(&qemu, "base", "", 1 << 20);
    scribble_with(&qemu, &spec("base"), 1 << 20, "", &mut random);
    let other = "--object secret,id=t,data=other";
    let luks = "encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=t";
    qemu.img(&format!(
        "create -q -f qcow2 {other} -o {luks} -b base -F qcow2 top 1500k"
    ));
    let spec = format!(
        "{SECRET} {other} --image-opts driver=qcow2,encrypt.key-secret=t,file.filename=top,\
         backing.encrypt.key-secret=s"
    );
    scribble_with(&qemu, &spec, 1500 << 10, "data_file", &mut random);
    let image = options()
        .secret(Secret::new("other"))
        .backing_secret(1, Secret::new("letmein"))
        .open(qemu.path("top"))
        .unwrap();
    qemu.img(&format!("convert -O raw {spec} theirs.raw"));
    let ours = read_all(&image, &mut random);
    assert_same_bytes(&ours, &qemu.bytes("theirs.raw"), "chain");
    assert_same_map(&our_map(&image), &their_map(&qemu, &spec), "chain");
    let wrong = options()
        .secret(Secret::new("other"))
        .backing_secret(1, Secret::new("other"))
        .open(qemu.path("top"));
    let Err(Error::Backing { source, .. }) = wrong else {
        panic!("{wrong:?}");
    };
    assert!(matches!(*source, Error::InvalidPassword), "{source}");
}

#[test]
fn without_the_secret_nothing_is_read() {
    let Some(qemu) = Qemu::find() else { return };
    create(&qemu, "a", "", 1 << 20);
    let args = spec("a");
    qemu.io_with(&args, &["write -P 1 0 64k", "write -c -P 2 64k 64k"]);
    let wrong = options()
        .secret(Secret::new("letmeout"))
        .open(qemu.path("a"));
    assert!(matches!(wrong, Err(Error::InvalidPassword)), "{wrong:?}");
    let image = options().open(qemu.path("a")).unwrap();
    for at in [0, 64 << 10] {
        let error = image.read(at, &mut [0; 512]).unwrap_err();
        assert!(format!("{error:?}").contains("is encrypted"), "{error:?}");
    }
    image.read(128 << 10, &mut [0; 512]).unwrap();
    let writable = options().lock(LockMode::ReadWrite).writable(true);
    let image = writable.open(qemu.path("a")).unwrap();
    let error = GuestWriter::new(image).unwrap_err();
    assert!(error.to_string().ends_with("is encrypted"), "{error}");
}
