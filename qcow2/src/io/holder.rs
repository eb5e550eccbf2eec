//! Who holds a lock: through `/proc`, because the kernel's answer to a lock test
//! gives no process for locks of an open file description.

use std::{
    fs::{self, File, Metadata},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::Path,
};

/// Longest command name that is printed; the kernel's own limit is 15 bytes.
const NAME_LIMIT: usize = 64;

/// The process that has a lock on `byte` of `file` through another opening of it, as
/// `pid 1234 (name)`. `None` if that can't be told, as for other users' processes.
pub(super) fn of(file: &File, byte: u64) -> Option<String> {
    let wanted = file.metadata().ok()?;
    let processes = fs::read_dir("/proc").ok()?;
    let ids = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| holds(*pid, &wanted, byte, file));
    let pid = { ids }.next()?;
    // It may have ended since.
    let name = fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name: String = String::from_utf8_lossy(&name)
        .trim_end()
        .chars()
        .take(NAME_LIMIT)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    Some(format!("pid {pid} ({name})"))
}

/// Whether one of the process's descriptors leads to the file and has the lock.
fn holds(pid: u32, wanted: &Metadata, byte: u64, own: &File) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors.filter_map(Result::ok).any(|entry| {
        let name = entry.file_name();
        let is_own = pid == std::process::id() && name.to_str() == Some(&own_number(own));
        !is_own
            && fs::metadata(entry.path()).is_ok_and(|m| same_file(&m, wanted))
            && fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(&name))
                .is_ok_and(|info| info.lines().any(|line| locks(line, byte)))
    })
}

fn own_number(file: &File) -> String {
    file.as_raw_fd().to_string()
}

fn same_file(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Whether a line such as `lock: 1: OFDLCK ADVISORY  READ -1 fe:00:1235 100 101`
/// covers `byte`. The last field can be `EOF`.
fn locks(line: &str, byte: u64) -> bool {
    let Some(lock) = line.strip_prefix("lock:") else {
        return false;
    };
    let mut fields = lock.split_ascii_whitespace().rev();
    let (Some(last), Some(first)) = (fields.next(), fields.next()) else {
        return false;
    };
    let last = if last == "EOF" {
        Ok(u64::MAX)
    } else {
        last.parse()
    };
    // `flock` locks cover no bytes.
    !lock.contains("FLOCK")
        && matches!((first.parse(), last), (Ok(a), Ok(b)) if (a..=b).contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_fdinfo() {
        let line = "lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:10012352 100 101";
        assert!(locks(line, 100) && locks(line, 101));
        assert!(!locks(line, 99) && !locks(line, 102));
        assert!(locks(
            "lock:\t2: POSIX  ADVISORY  WRITE 77 fe:00:1 0 EOF",
            201
        ));
        assert!(!locks(
            "lock:\t2: FLOCK  ADVISORY  WRITE 77 fe:00:1 0 EOF",
            201
        ));
        for other in ["pos:\t0", "lock:", "lock:\t1: x y", "lock: 1 2 3 -5 9"] {
            assert!(!locks(other, 100), "{other}");
        }
    }
}
