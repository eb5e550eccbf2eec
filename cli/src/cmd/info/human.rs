//! `info` for people: the text of qemu-img.

use std::io::{self, Write};

use chrono::{DateTime, Local};

use super::{
    facts::{Facts, Snapshot},
    json,
};
use crate::{
    output::{Escaped, Text},
    size::Human,
};

/// An image.
pub(super) fn image(out: &mut impl Write, facts: &Facts) -> io::Result<()> {
    let Facts {
        virtual_size,
        actual_size,
        ..
    } = facts;
    // The name that the user typed is printed as it is.
    out.write_all(b"image: ")?;
    out.write_all(&facts.filename)?;
    writeln!(out, "\nfile format: {}", facts.format)?;
    writeln!(
        out,
        "virtual size: {} ({virtual_size} bytes)",
        Human(*virtual_size)
    )?;
    writeln!(out, "disk size: {}", Human(*actual_size))?;
    if facts.encrypted {
        writeln!(out, "encrypted: yes")?;
    }
    if let Some(bytes) = facts.cluster_size {
        writeln!(out, "cluster_size: {bytes}")?;
    }
    if facts.dirty {
        writeln!(out, "cleanly shut down: no")?;
    }
    if let Some(backing) = &facts.backing {
        write!(out, "backing file: {}", Escaped(&backing.name))?;
        if backing.full != backing.name {
            write!(out, " (actual path: {})", Escaped(&backing.full))?;
        }
        writeln!(out)?;
        if let Some(format) = &backing.format {
            writeln!(out, "backing file format: {}", Escaped(format))?;
        }
    }
    if !facts.snapshots.is_empty() {
        writeln!(out, "Snapshot list:")?;
        snapshots(out, &facts.snapshots)?;
    }
    if let Some(qcow2) = &facts.qcow2 {
        writeln!(out, "Format specific information:")?;
        json::specific(&mut Text::new(&mut *out, 1), qcow2)?;
    }
    if let Some(file) = &facts.file {
        writeln!(out, "Child node '/file':")?;
        out.write_all(b"    filename: ")?;
        out.write_all(&file.filename)?;
        writeln!(out, "\n    protocol type: {}", file.protocol)?;
        writeln!(
            out,
            "    file length: {} ({} bytes)",
            Human(file.length),
            file.length
        )?;
        writeln!(out, "    disk size: {}", Human(file.actual_size))?;
    }
    Ok(())
}

fn snapshots(out: &mut impl Write, snapshots: &[Snapshot]) -> io::Result<()> {
    const COLUMNS: [&str; 6] = ["ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"];
    let [id, tag, size, date, clock, icount] = COLUMNS;
    writeln!(
        out,
        "{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {icount:>10}"
    )?;
    for one in snapshots {
        let id = Escaped(&one.id).to_string();
        let tag = Escaped(&one.name).to_string();
        let (id, tag) = (Columns(&id, 7), Columns(&tag, 16));
        let size = Human(one.vm_state_size).to_string();
        let date = date_text(one.date.0);
        let clock = clock_text(one.vm_clock_nsec);
        let icount = match one.icount {
            Some(icount) => icount.cast_signed().to_string(),
            None => "--".into(),
        };
        writeln!(
            out,
            "{id} {tag} {size:>8} {date:>19} {clock:>15} {icount:>10}"
        )?;
    }
    Ok(())
}

/// A text padded to a width in bytes, as C's `%-16s` pads.
struct Columns<'a>(&'a str, usize);

impl std::fmt::Display for Columns<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fill = self.1.saturating_sub(self.0.len());
        write!(f, "{}{:fill$}", self.0, "")
    }
}

/// Seconds since 1970 in local time.
fn date_text(seconds: u32) -> String {
    let date = DateTime::from_timestamp(seconds.into(), 0).unwrap_or_default();
    date.with_timezone(&Local)
        .format("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// `hours:minutes:seconds.milliseconds`.
fn clock_text(nanoseconds: u64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let milliseconds = nanoseconds / 1_000_000 % 1000;
    format!(
        "{hours:04}:{minutes:02}:{:02}.{milliseconds:03}",
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        assert_eq!(clock_text(0), "0000:00:00.000");
        assert_eq!(clock_text(1_999_999), "0000:00:00.001");
        assert_eq!(clock_text(u64::MAX), "5124095:34:33.709");
    }

    #[test]
    fn the_snapshot_table_is_qemu_imgs() {
        let one = |id: &str, name: &str, vm_state_size, icount| Snapshot {
            id: id.into(),
            name: name.into(),
            vm_state_size,
            date: (0, 0),
            vm_clock_nsec: 0,
            icount,
        };
        let mut text = Vec::new();
        let list = [
            one("1", "s1", 0, Some(0)),
            one(
                "22",
                "second one with a very long name here",
                12_345_678,
                None,
            ),
            one("3", "é\x1b", 0, Some(u64::MAX - 1)),
        ];
        snapshots(&mut text, &list).unwrap();
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let date = date_text(0);
        let head =
            "ID      TAG               VM_SIZE                DATE        VM_CLOCK     ICOUNT";
        assert_eq!(lines[0], head);
        assert_eq!(
            lines[1],
            format!("1       s1                    0 B {date}  0000:00:00.000          0")
        );
        let long = "22      second one with a very long name here 11.8 MiB";
        assert_eq!(
            lines[2],
            format!("{long} {date}  0000:00:00.000         --")
        );
        assert_eq!(
            lines[3],
            format!("3       é\\x1b                0 B {date}  0000:00:00.000         -2")
        );
    }
}
