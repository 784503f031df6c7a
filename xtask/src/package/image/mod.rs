//! The container image: the static program and nothing else. It is written without a container engine, as an OCI layout (`layout`), with a
//! list of the program's dependencies beside it (`sbom`); `trial` starts it in a real engine.

mod compose;
mod layout;
mod left;
mod sbom;
mod trial;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use self::layout::{Commit, Image, PROGRAM};
use super::{dir, program};
use crate::cmd::{command, output};
use crate::say;

/// The image is smaller than this.
const BYTES_MAX: usize = 10_000_000;

/// What was built.
pub struct Built {
    image: Image,
    /// The archive, which `docker load` takes.
    archive: PathBuf,
}

/// Builds the layout, its archive and the list of dependencies, and prints the digest.
pub fn build() -> Result<Built> {
    let program = program::build()?;
    let image = assemble(&program)?;
    ensure!(image == assemble(&program)?, "two images of one program differ");
    ensure!(image.contents()? == [PROGRAM], "the image has more than the program");
    let bytes = image.bytes();
    if bytes >= BYTES_MAX {
        bail!("the image has {} bytes; the limit is {}", bytes, BYTES_MAX);
    }
    let (layout, archive) = (dir()?.join("image"), dir()?.join("image.tar"));
    let _ = fs::remove_dir_all(&layout);
    for (name, contents) in image.files() {
        let file = layout.join(name);
        fs::create_dir_all(file.parent().context("a file in no directory")?)?;
        fs::write(&file, contents).with_context(|| format!("cannot write {}", file.display()))?;
    }
    fs::write(&archive, image.archive()?).with_context(|| format!("cannot write {}", archive.display()))?;
    say::note(&format!(
        "{}: {} bytes, with one file, {}; load it with `docker load -i FILE`",
        program::shown(&archive),
        say::thousands(bytes as u64),
        image.digest()
    ));
    let components = sbom::write(&program, &dir()?.join("pod-steer.cdx.json"))?;
    say::note(&format!("pod-steer.cdx.json beside it: {components} components, by CycloneDX"));
    Ok(Built { image, archive })
}

/// Tries it in a real engine.
pub fn try_it(built: &Built) -> Result<()> {
    trial::run(built)
}

fn assemble(program: &PathBuf) -> Result<Image> {
    let contents = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    Image::with(&contents, &commit()?)
}

fn commit() -> Result<Commit> {
    let git = |args: &[&str]| output(command("git").args(args)).context("images are made in a repository");
    let shown = git(&["log", "-1", "--format=%H %cI"])?;
    let (id, time) = shown.trim().split_once(' ').context("git names no commit")?;
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
    Ok(Commit { id: format!("{id}{}", if is_clean { "" } else { "-dirty" }), time: time.to_owned() })
}
