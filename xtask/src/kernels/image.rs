//! The guest's file system: an initial RAM disk in the kernel's own format (`newc` of cpio), made of static programs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;
/// `/dev/console`: character device 5, 1.
const CONSOLE: (u32, u32) = (5, 1);

/// Directories of the guest, parents first. The init program runs commands at the top of the repository: next to `xtask`.
const DIRECTORIES: [&str; 8] = ["bin", "dev", "modules", "proc", "run", "sys", "tmp", "xtask"];

/// Writes an image with these programs and other files, each a file here and its path there.
pub fn write(image: &Path, files: &[(&Path, &str)]) -> Result<()> {
    let mut archive = Vec::new();
    for name in DIRECTORIES {
        append(&mut archive, name, DIRECTORY, (0, 0), &[]);
    }
    append(&mut archive, "dev/console", DEVICE, CONSOLE, &[]);
    for (file, name) in files {
        let contents = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        append(&mut archive, name, PROGRAM, (0, 0), &contents);
    }
    append(&mut archive, "TRAILER!!!", 0, (0, 0), &[]);
    fs::write(image, archive).with_context(|| format!("cannot write {}", image.display()))
}

/// One entry: thirteen numbers of eight hexadecimal digits, the name, the contents, each part padded to four bytes.
fn append(archive: &mut Vec<u8>, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
    let inode = archive.len() as u32;
    let (size, name_size) = (contents.len() as u32, name.len() as u32 + 1);
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
    archive.extend_from_slice(b"070701");
    for field in fields {
        archive.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    pad(archive);
    archive.extend_from_slice(contents);
    pad(archive);
}

fn pad(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_padded_and_says_its_size() {
        let mut archive = Vec::new();
        append(&mut archive, "bin/x", PROGRAM, (0, 0), b"12345");
        // 110 bytes of header, 6 of name; 5 of contents padded to 8.
        assert_eq!(archive.len(), 110 + 6 + 8);
        assert_eq!(&archive[6 + 8 * 6..6 + 8 * 7], b"00000005");
        assert_eq!(&archive[116..], b"12345\0\0\0");
    }
}
