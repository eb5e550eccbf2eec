use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::{
    disk::DiskExt,
    image::create::{Backing as Behind, CreateOptions, create},
};

/// An image of `size` bytes on top of `behind`, of which the format is stated or not.
fn make(dir: &TempDir, name: &str, size: u64, behind: Option<(&str, Option<&str>)>) -> PathBuf {
    let path = dir.path().join(name);
    let options = CreateOptions {
        size: Some(size),
        backing: behind.map(|(file, format)| Behind {
            file: file.into(),
            format: format.map(Into::into),
            size: None,
        }),
        ..CreateOptions::default()
    };
    create(&path, &options, false).unwrap();
    path
}

fn follow() -> OpenOptions {
    OpenOptions::new().backing(BackingPolicy::Follow)
}

/// The error and what is behind it.
fn chain_of(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn refusal(result: Result<Image>) -> String {
    chain_of(&result.unwrap_err())
}

/// A byte of the disk, or why there is none.
fn byte(image: &Image, at: u64) -> Result<u8, String> {
    let mut byte = [0xee];
    let read = image.read(at, &mut byte);
    read.map(|()| byte[0]).map_err(|error| chain_of(&error))
}

#[test]
fn a_backing_file_is_opened_only_if_the_caller_says_so() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base"), [7; 600]).unwrap();
    let path = make(&dir, "top", 2048, Some(("base", Some("raw"))));
    let image = OpenOptions::new().open(&path).unwrap();
    let message = byte(&image, 0).unwrap_err();
    assert!(message.ends_with("was not opened"), "{message}");
    let image = OpenOptions::new().backing(BackingPolicy::Ignore);
    assert_eq!(byte(&image.open(&path).unwrap(), 0), Ok(0));
    let image = follow().open(&path).unwrap();
    let bytes = [0, 599, 600, 1023, 1024, 2047].map(|at| byte(&image, at).unwrap());
    assert_eq!(bytes, [7, 7, 0, 0, 0, 0]);
    let name = dir.path().join("base").display().to_string();
    assert_eq!(image.backing().unwrap().name(), name);
    let path = make(
        &dir,
        "again",
        2048,
        Some((&format!("file:{name}"), Some("raw"))),
    );
    let image = follow().open(&path).unwrap();
    assert_eq!(image.backing().unwrap().name(), name);
}

#[test]
fn depth_is_the_place_in_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("0"), [7; 512]).unwrap();
    make(&dir, "1", 1024, Some(("0", Some("raw"))));
    make(&dir, "2", 1536, Some(("1", Some("qcow2"))));
    let path = make(&dir, "3", 2048, Some(("2", Some("qcow2"))));
    let image = follow().open(path).unwrap();
    let depths = image.extents(0..2048).map(|extent| {
        let extent = extent.unwrap();
        (extent.start.get(), extent.depth)
    });
    let depths: Vec<_> = depths.collect();
    assert_eq!(depths, [(0, 3), (512, 2), (1024, 1), (1536, 0)]);
    let disk: &dyn Disk = &image;
    let name = |depth| Path::new(disk.layer(depth)?.name()).file_name();
    assert_eq!(name(3), Some("0".as_ref()));
    assert_eq!(name(4), None);
}

#[test]
fn a_format_that_is_not_stated_is_told_by_the_bytes() {
    let dir = tempfile::tempdir().unwrap();
    make(&dir, "base", 1 << 20, None);
    let stated = make(&dir, "a", 1 << 20, Some(("base", Some("raw"))));
    assert_eq!(byte(&follow().open(stated).unwrap(), 0), Ok(b'Q'));
    let probed = make(&dir, "b", 1 << 20, Some(("base", None)));
    assert_eq!(byte(&follow().open(probed).unwrap(), 0), Ok(0));
    std::fs::write(dir.path().join("other"), b"KDMV1234").unwrap();
    let other = make(&dir, "c", 1 << 20, Some(("other", None)));
    let message = refusal(follow().open(other));
    assert!(message.contains("vmdk format"), "{message}");
    let unknown = make(&dir, "d", 1 << 20, Some(("other", Some("vmdk"))));
    let message = refusal(follow().open(unknown));
    assert!(message.contains("format 'vmdk'"), "{message}");
    std::fs::write(dir.path().join("junk"), [1; 4096]).unwrap();
    let wrong = make(&dir, "e", 1 << 20, Some(("junk", Some("qcow2"))));
    let message = refusal(follow().open(wrong));
    assert!(
        message.ends_with("Image is not in qcow2 format"),
        "{message}"
    );
}

#[test]
fn loops_and_long_chains_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(&dir, "a", 512, Some(("b", Some("qcow2"))));
    symlink(&path, dir.path().join("link")).unwrap();
    make(&dir, "b", 512, Some(("link", Some("qcow2"))));
    let message = refusal(follow().open(&path));
    assert!(
        message.ends_with("link' creates an infinite loop."),
        "{message}"
    );
    for n in 0..=MAX_CHAIN {
        let behind = n.checked_sub(1).map(|n| n.to_string());
        let behind = behind.as_deref().map(|name| (name, Some("qcow2")));
        make(&dir, &n.to_string(), 512, behind);
    }
    let last = |n: usize| dir.path().join(n.to_string());
    assert_eq!(byte(&follow().open(last(MAX_CHAIN - 1)).unwrap(), 0), Ok(0));
    let message = refusal(follow().open(last(MAX_CHAIN)));
    assert!(message.ends_with("longer than 200 images"), "{message}");
}

#[test]
fn names_that_are_no_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "json:{}",
        "nbd://localhost",
        "none",
        "file:",
        "/dev/null",
        ".",
    ] {
        let path = make(&dir, "top", 512, Some((name, Some("raw"))));
        let message = refusal(follow().open(path));
        assert!(
            message.starts_with("Could not open backing file '"),
            "{message}"
        );
        let name = name.trim_start_matches("file:");
        assert!(message.contains(&format!("{name}'")), "{message}");
    }
}

#[test]
fn files_elsewhere_than_allowed_are_refused() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let secret = other.path().join("secret");
    std::fs::write(&secret, [9; 512]).unwrap();
    std::fs::write(dir.path().join("base"), [7; 512]).unwrap();
    symlink(&secret, dir.path().join("link")).unwrap();
    let allowed = |path: &Path| follow().allow_dir(dir.path()).open(path);
    let path = make(&dir, "top", 512, Some(("base", Some("raw"))));
    assert_eq!(byte(&allowed(&path).unwrap(), 0), Ok(7));
    let up = format!("../{}/secret", other.path().file_name().unwrap().display());
    for name in [secret.to_str().unwrap(), "link", &up] {
        let path = make(&dir, "top", 512, Some((name, Some("raw"))));
        assert_eq!(byte(&follow().open(&path).unwrap(), 0), Ok(9));
        let message = refusal(allowed(&path));
        assert!(message.contains("in none of the directories"), "{message}");
        let both = follow().allow_dir(dir.path()).allow_dir(other.path());
        assert_eq!(byte(&both.open(&path).unwrap(), 0), Ok(9));
    }
}
