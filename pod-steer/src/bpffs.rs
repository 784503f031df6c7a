//! The directory of pins: whether it is on a BPF file system, and whether only root can change its contents.

use std::{
    fmt,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
};

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const MAGIC: u64 = 0xcafe_4a11;
/// Mode of the directory of pins: no other user may enter it.
const PRIVATE: u32 = 0o700;
/// The usual mount point.
const USUAL: &str = "/sys/fs/bpf";

/// Why a directory may not hold the pins. [`fmt::Display`] gives what was found and the remedy.
#[derive(Debug)]
pub enum BpffsError {
    /// It is not an absolute path.
    Relative(PathBuf),
    /// Neither it nor its nearest parent that exists is on a BPF file system.
    NotMounted(PathBuf),
    /// It is a symbolic link, or otherwise not a directory.
    NotADirectory(PathBuf),
    /// It, or a directory on the way to it, belongs to another user.
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It, or a directory on the way to it, is writable by other users.
    Writable {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It cannot be examined.
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BpffsError {
    /// What was found.
    pub fn found(&self) -> String {
        match self {
            Self::Relative(path) => format!("`{}` is not an absolute path", path.display()),
            Self::NotMounted(path) => format!("`{}` is not on a BPF file system", path.display()),
            Self::NotADirectory(path) => format!("`{}` is not a directory", path.display()),
            Self::Foreign { path, uid } => {
                format!("`{}` belongs to user {uid}, who could replace the pins", path.display())
            }
            Self::Writable { path, mode } => {
                format!("`{}` is writable by other users (mode {mode:04o}), who could replace the pins", path.display())
            }
            Self::Io { path, source } => format!("`{}` cannot be examined: {source}", path.display()),
        }
    }

    /// The remedy.
    pub fn remedy(&self) -> String {
        match self {
            Self::Relative(_) | Self::NotADirectory(_) => {
                format!("choose another directory with `--bpffs`, as in {USUAL}/NAME")
            }
            Self::NotMounted(path) => {
                let at = if path.starts_with(USUAL) { Path::new(USUAL) } else { path.parent().unwrap_or(path) };
                format!("mount it: mount -t bpf bpf {}", at.display())
            }
            Self::Foreign { path, .. } => {
                format!(
                    "remove it, give it to root (chown root {}), or choose another directory with `--bpffs`",
                    path.display()
                )
            }
            Self::Writable { path, .. } => {
                format!("run `chmod go-w {}`, or choose another directory with `--bpffs`", path.display())
            }
            Self::Io { .. } => "run this as root".to_owned(),
        }
    }
}

impl fmt::Display for BpffsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.found(), self.remedy())
    }
}

impl std::error::Error for BpffsError {}

/// Checks a directory of pins, which need not exist yet, and returns where its file system is mounted. The rule:
///
/// - it, or its nearest parent that exists, is on a BPF file system, and it is no symbolic link;
/// - it and every directory on the way to it belong to root, or to the user of this process;
/// - no other user may write to them. Above it a sticky bit (mode 1777, the kernel's default for a new mount) is enough: others
///   can make files there, but cannot replace ours.
pub fn check(dir: &Path) -> Result<PathBuf, BpffsError> {
    if !dir.is_absolute() {
        return Err(BpffsError::Relative(dir.to_owned()));
    }
    let mut existing = PathBuf::new();
    for part in dir.components() {
        let path = existing.join(part);
        let io_error = |source| BpffsError::Io { path: path.clone(), source };
        let link = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            looked => looked.map_err(io_error)?,
        };
        let last = path == dir;
        if link.file_type().is_symlink() {
            if last {
                return Err(BpffsError::NotADirectory(path));
            }
            // The owner of a symbolic link can point it elsewhere; its target is checked as well.
            owned_by_us(&path, link.uid())?;
            check_way(&fs::canonicalize(&path).map_err(io_error)?)?;
        }
        let meta = fs::metadata(&path).map_err(io_error)?;
        if !meta.is_dir() {
            return Err(BpffsError::NotADirectory(path));
        }
        owned_by_us(&path, meta.uid())?;
        written_by_us(&path, meta.mode(), !last)?;
        existing = path;
    }
    mount_of(&existing).ok_or_else(|| BpffsError::NotMounted(dir.to_owned()))
}

/// Makes the directory of pins, which no other user may enter, and checks it. One that exists already is closed to others. True if it
/// was open to them.
pub fn make(dir: &Path) -> Result<bool, BpffsError> {
    let io_error = |source| BpffsError::Io { path: dir.to_owned(), source };
    check(dir)?;
    // `check` has examined all directories that exist. New ones are private.
    DirBuilder::new().recursive(true).mode(PRIVATE).create(dir).map_err(io_error)?;
    // Another user may have made it just now.
    check(dir)?;
    // From here the directory is ours, and its parent does not let others replace it.
    let was_open = fs::metadata(dir).map_err(io_error)?.mode() & 0o777 != PRIVATE;
    if was_open {
        fs::set_permissions(dir, Permissions::from_mode(PRIVATE)).map_err(io_error)?;
    }
    Ok(was_open)
}

/// The directories on the way to a path without symbolic links, and the last one.
fn check_way(path: &Path) -> Result<(), BpffsError> {
    for dir in path.ancestors() {
        let meta = fs::metadata(dir).map_err(|source| BpffsError::Io { path: dir.to_owned(), source })?;
        owned_by_us(dir, meta.uid())?;
        written_by_us(dir, meta.mode(), true)?;
    }
    Ok(())
}

fn owned_by_us(path: &Path, uid: u32) -> Result<(), BpffsError> {
    let trusted = uid == 0 || uid == rustix::process::geteuid().as_raw();
    if trusted { Ok(()) } else { Err(BpffsError::Foreign { path: path.to_owned(), uid }) }
}

fn written_by_us(path: &Path, mode: u32, sticky_is_enough: bool) -> Result<(), BpffsError> {
    const OTHERS: u32 = 0o022;
    const STICKY: u32 = 0o1000;
    let safe = mode & OTHERS == 0 || (sticky_is_enough && mode & STICKY != 0);
    if safe { Ok(()) } else { Err(BpffsError::Writable { path: path.to_owned(), mode: mode & 0o7777 }) }
}

/// Whether a path is on a BPF file system.
pub fn is_on_one(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type as u64 == MAGIC)
}

/// The topmost directory above a path on the same BPF file system.
fn mount_of(path: &Path) -> Option<PathBuf> {
    let path = if path.components().any(|part| part == Component::ParentDir) {
        fs::canonicalize(path).ok()?
    } else {
        path.to_owned()
    };
    let device = fs::metadata(&path).ok()?.dev();
    let same = |path: &&Path| is_on_one(path) && fs::metadata(path).is_ok_and(|meta| meta.dev() == device);
    path.ancestors().take_while(same).last().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_whose_pins_others_could_replace_is_refused() {
        let dir = std::env::temp_dir().join(format!("pod-steer-bpffs-{}", std::process::id()));
        fs::create_dir_all(dir.join("pins")).unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let pins = dir.join("pins");
        set(&dir, 0o777);
        assert!(matches!(check(&pins), Err(BpffsError::Writable { path, mode: 0o777 }) if path == dir));
        // Sticky is enough above it, and not for itself. What remains is that /tmp is no BPF file system.
        set(&dir, 0o1777);
        assert!(matches!(check(&pins), Err(BpffsError::NotMounted(_))));
        set(&pins, 0o1777);
        assert!(matches!(check(&pins), Err(BpffsError::Writable { path, .. }) if path == pins));
        set(&pins, 0o755);
        std::os::unix::fs::symlink(&pins, dir.join("link")).unwrap();
        assert!(matches!(check(&dir.join("link")), Err(BpffsError::NotADirectory(_))));
        assert!(matches!(check(&dir.join("link/below")), Err(BpffsError::NotMounted(_))));
        assert!(matches!(check(Path::new("pins")), Err(BpffsError::Relative(_))));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_remedy_names_the_place() {
        let remedy = |path: &str| BpffsError::NotMounted(path.into()).to_string();
        assert!(remedy("/sys/fs/bpf/pod-steer").ends_with("mount -t bpf bpf /sys/fs/bpf"));
        assert!(remedy("/run/bpf/pod-steer").ends_with("mount -t bpf bpf /run/bpf"));
    }
}
