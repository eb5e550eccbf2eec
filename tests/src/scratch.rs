//! A directory for one test, removed when the test ends.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

/// A directory that goes away with this value.
///
/// It lies in memory (`/dev/shm`) where that exists, because QEMU syncs often;
/// `QIMG_SCRATCH=DIR` names another place.
#[derive(Debug)]
pub struct Scratch {
    dir: TempDir,
}

impl Scratch {
    /// A new empty directory.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "making a directory is no default"
    )]
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("qimg-test-")
            .tempdir_in(Self::parent())
            .unwrap();
        Self { dir }
    }

    fn parent() -> PathBuf {
        if let Some(dir) = std::env::var_os("QIMG_SCRATCH") {
            return dir.into();
        }
        let memory = Path::new("/dev/shm");
        match tempfile::tempfile_in(memory) {
            Ok(_) => memory.to_owned(),
            Err(_) => std::env::temp_dir(),
        }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Path of the file `name` in it, whether it exists or not.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Copies `file` into the directory under its own name.
    ///
    /// # Panics
    /// When the file cannot be copied.
    #[must_use]
    pub fn copy(&self, file: &Path) -> PathBuf {
        let to = self.dir.path().join(file.file_name().unwrap());
        fs::copy(file, &to).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_goes_away() {
        let scratch = Scratch::new();
        fs::write(scratch.path("a"), b"x").unwrap();
        let dir = scratch.dir().to_owned();
        assert!(dir.join("a").exists());
        drop(scratch);
        assert!(!dir.exists());
    }
}
