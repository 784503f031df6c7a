//! Container images made of files of this machine, without a registry.
//!
//! An image is a tar file of a few files of Debian packages with the libraries that they load, or of the test server
//! alone. Tar files are kept beside the build, under a name that changes with their contents.

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};

use crate::{process::run, tools};

/// The images of the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Image {
    /// The test server, alone.
    Named,
    /// The same, as user 1000.
    NamedAsUser,
    /// The same, with labels that make its containers backends of `web`.
    NamedWithLabels,
    /// `busybox` and its `httpd`.
    Busybox,
    /// Debian's Python with its standard library.
    Python,
    /// Debian's nginx.
    Nginx,
    /// Node.js.
    Node,
    /// Debian's Caddy, a server in Go.
    Caddy,
}

impl Image {
    /// Its name in an engine.
    pub fn name(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::NamedAsUser => "named-as-user",
            Self::NamedWithLabels => "named-with-labels",
            Self::Busybox => "busybox",
            Self::Python => "python",
            Self::Nginx => "nginx",
            Self::Node => "node",
            Self::Caddy => "caddy",
        }
    }

    /// Changes of its configuration, in the words of a Dockerfile.
    pub fn changes(self) -> &'static [&'static str] {
        match self {
            Self::NamedAsUser => &["USER 1000"],
            Self::NamedWithLabels => &[
                "LABEL pod-steer.service=web",
                "LABEL pod-steer.ports=80:9090",
                "LABEL pod-steer.version=v1",
                "LABEL pod-steer.weight=65535",
            ],
            _ => &[],
        }
    }

    /// The tar file, created if it does not exist.
    pub fn tar(self) -> Result<PathBuf> {
        // One at a time: tests of this process need the same images at the same time.
        static MAKING: Mutex<()> = Mutex::new(());
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let sources = self.programs()?;
        let cache = tools::build_dir()?.join("images");
        let tar = cache.join(format!("{}-{:016x}.tar", self.name(), fingerprint(&sources)?));
        if tar.is_file() {
            return Ok(tar);
        }
        fs::create_dir_all(&cache)?;
        // Under a name of this process's own, then renamed: other test processes may do the same now.
        let staging = cache.join(format!("{}-{}", self.name(), std::process::id()));
        let made = self.build(&sources, &staging, &tar).with_context(|| format!("making image {}", self.name()));
        let _ = fs::remove_dir_all(&staging);
        made.map(|()| tar)
    }

    /// The programs in it, as (path here, path in the image).
    fn programs(self) -> Result<Vec<(PathBuf, &'static str)>> {
        let installed = |name: &str| tools::find(name).with_context(|| format!("{name} is not installed"));
        let busybox = || Ok::<_, anyhow::Error>((installed("busybox")?, "bin/busybox"));
        Ok(match self {
            Self::Named | Self::NamedAsUser | Self::NamedWithLabels => vec![(tools::named_server()?, "named-server")],
            Self::Busybox => vec![busybox()?],
            Self::Python => vec![(installed("python3")?.canonicalize()?, "usr/bin/python3"), busybox()?],
            Self::Nginx => vec![(installed("nginx")?, "usr/sbin/nginx"), busybox()?],
            Self::Node => vec![(installed("node")?.canonicalize()?, "usr/bin/node"), busybox()?],
            Self::Caddy => vec![(installed("caddy")?, "usr/bin/caddy"), busybox()?],
        })
    }

    fn build(self, programs: &[(PathBuf, &str)], staging: &Path, tar: &Path) -> Result<()> {
        let root = staging.join("root");
        for dir in ["bin", "etc", "tmp", "www", "var/log/nginx", "var/lib/nginx"] {
            fs::create_dir_all(root.join(dir))?;
        }
        for (source, target) in programs {
            copy(source, &root.join(target))?;
            for library in libraries(source)? {
                copy(&library, &root.join(library.strip_prefix("/")?))?;
            }
        }
        if root.join("bin/busybox").exists() {
            symlink("busybox", root.join("bin/sh"))?;
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")?;
        fs::write(root.join("etc/group"), "root:x:0:\n")?;
        match self {
            Self::Python => python_library(&programs[0].0, &root)?,
            Self::Node => node_modules(&root)?,
            _ => {}
        }
        let unfinished = staging.join("image.tar");
        run(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&unfinished).arg("."))?;
        fs::rename(&unfinished, tar)?;
        Ok(())
    }
}

fn fingerprint(sources: &[(PathBuf, &str)]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for (path, target) in sources {
        let meta = fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
        (path, target, meta.len(), meta.mtime(), meta.mtime_nsec()).hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// The shared libraries that a program loads, its loader included; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = crate::process::output(Command::new("ldd").arg(program))?;
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    // `libc.so.6 => /lib/libc.so.6 (0x...)` and `/lib64/ld-linux-x86-64.so.2 (0x...)`
    let paths = listing.lines().flat_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// Modules that are part of Node.js's own program, and that Debian has as files of other packages.
fn node_modules(root: &Path) -> Result<()> {
    for module in ["acorn", "acorn-walk", "cjs-module-lexer", "undici"] {
        let source = Path::new("/usr/share/nodejs").join(module);
        if source.exists() {
            let target = root.join(source.strip_prefix("/")?);
            fs::create_dir_all(&target)?;
            run(Command::new("cp").arg("-aL").arg(source.join(".")).arg(&target))?;
        }
    }
    Ok(())
}

/// The standard library without modules that no server imports.
fn python_library(python: &Path, root: &Path) -> Result<()> {
    let print = "import sysconfig; print(sysconfig.get_path('stdlib'))";
    let stdlib = PathBuf::from(run(Command::new(python).args(["-I", "-c", print]))?.trim());
    let parent = stdlib.parent().context("a library without a directory")?;
    let target = root.join(parent.strip_prefix("/")?);
    fs::create_dir_all(&target)?;
    let name = stdlib.file_name().context("a library without a name")?;
    let excluded = ["test", "idlelib", "tkinter", "lib2to3", "ensurepip", "dist-packages", "pydoc_data", "config-*"];
    let mut pack = Command::new("cp");
    pack.arg("-aL").arg(&stdlib).arg(&target);
    run(&mut pack)?;
    for pattern in excluded {
        let find = ["-maxdepth", "1", "-name", pattern, "-exec", "rm", "-rf", "{}", "+"];
        run(Command::new("find").arg(target.join(name)).args(find))?;
    }
    Ok(())
}

/// Copies a file with its mode, making the directories on the way.
fn copy(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target.parent().context("a file in no directory")?)?;
    fs::copy(source, target).with_context(|| format!("copying {}", source.display())).map(drop)
}
