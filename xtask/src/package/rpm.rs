//! The RPM, by cargo-generate-rpm. `pod-steer/Cargo.toml` says what is in it; `packaging/rpm` has the scripts.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{commit_time, dir, files, program};
use crate::cmd::{command, output, run};
use crate::paths::{self, which};
use crate::{say, setup};

const TOOL: &str = "cargo-generate-rpm";
const TOOL_VERSION: &str = "0.21.1";

/// Builds the package, checks it, and returns its path.
pub fn build() -> Result<PathBuf> {
    program::build()?;
    files::write()?;
    let package = make("rpm", "1")?;
    if which("rpm").is_some() {
        inspect(&package)?;
    } else {
        say::note("there is no rpm: the package is not checked by it (`apt-get install rpm`)");
    }
    say::note(&format!("{}: install it with `dnf install ./FILE`", program::shown(&package)));
    Ok(package)
}

/// The same files as the package of a next version, to upgrade to.
pub fn next() -> Result<PathBuf> {
    make("rpm-next", "2")
}

/// Packs the files into a directory of this name.
fn make(name: &str, release: &str) -> Result<PathBuf> {
    setup::ensure_tool(TOOL, TOOL_VERSION, "it makes the RPM; takes some minutes, once")?;
    let out = dir()?.join(name);
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let (time, release) = (commit_time()?, format!("release = \"{release}\""));
    let arguments = ["--package", "pod-steer", "--source-date", time.as_str(), "--set-metadata", &release, "--output"];
    run(command(paths::tool(TOOL)).args(arguments).arg(&out).env_remove("CARGO_TARGET_DIR"))?;
    let made = fs::read_dir(&out)?.filter_map(|entry| Some(entry.ok()?.path()));
    let made: Vec<PathBuf> = made.filter(|file| file.extension().is_some_and(|ext| ext == "rpm")).collect();
    match made.as_slice() {
        [package] => Ok(package.clone()),
        _ => bail!("{TOOL} made {made:?} and not one package"),
    }
}

/// Has rpm read it, and install it into an empty root and remove it again. Its scripts need a system, so they are only parsed.
fn inspect(package: &Path) -> Result<()> {
    print!("{}", output(command("rpm").args(["-qp", "--info"]).arg(package))?);
    let listed = output(command("rpm").args(["-qpl"]).arg(package))?;
    print!("{listed}");
    let signatures = output(command("rpm").args(["-K"]).arg(package))?;
    ensure!(signatures.trim().ends_with("digests OK"), "{signatures}");
    for tag in ["POSTIN", "PREUN", "POSTUN"] {
        let script = output(command("rpm").args(["-qp", "--queryformat", &format!("%{{{tag}}}")]).arg(package))?;
        run(command("sh").args(["-n", "-c", &script]))
            .with_context(|| format!("the script {tag} is no shell script"))?;
    }
    let root = dir()?.join("rpm-root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root).with_context(|| format!("cannot make {}", root.display()))?;
    let rpm = |args: &[&str]| {
        let mut rpm = command("rpm");
        // A database of its own, whatever the machine's settings are.
        rpm.arg("--root").arg(&root).args(["--dbpath", "/rpm"]).args(args);
        rpm
    };
    // Verifying compares owners, which only root can set.
    run(rpm(&["--install", "--nodeps", "--noscripts"]).arg(package))?;
    let differs = output(&mut rpm(&["--verify", "--nodeps", "--noscripts", "pod-steer"]))?;
    ensure!(differs.is_empty(), "files are not as packed:\n{differs}");
    let missing: Vec<&str> = listed.lines().filter(|file| !root.join(file.trim_start_matches('/')).exists()).collect();
    ensure!(missing.is_empty(), "rpm has not installed {missing:?}");
    run(&mut rpm(&["--erase", "--noscripts", "pod-steer"]))?;
    let left: Vec<&str> = listed.lines().filter(|file| root.join(file.trim_start_matches('/')).exists()).collect();
    ensure!(left.is_empty(), "rpm has not removed {left:?}");
    fs::remove_dir_all(&root)?;
    say::note(&format!("rpm has checked, installed and removed {} files", listed.lines().count()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::cmd::cargo;

    #[test]
    fn it_has_the_files_of_the_debian_package() {
        let described = output(cargo().args(["metadata", "--no-deps", "--offline", "--format-version", "1"])).unwrap();
        let described: Value = serde_json::from_str(&described).unwrap();
        let packages = described["packages"].as_array().unwrap();
        let metadata = &packages.iter().find(|package| package["name"] == "pod-steer").unwrap()["metadata"];
        let sources = |kind: &str, source: fn(&Value) -> &Value| -> BTreeSet<String> {
            let assets = metadata[kind]["assets"].as_array().unwrap();
            assets.iter().map(|asset| source(asset).as_str().unwrap().trim_start_matches("../").to_owned()).collect()
        };
        let (deb, rpm) = (sources("deb", |asset| &asset[0]), sources("generate-rpm", |asset| &asset["source"]));
        let only_here: Vec<_> = rpm.difference(&deb).map(String::as_str).collect();
        // Debian has licences of its own, and cargo-deb takes the unit from its directory.
        let unit = "target/package/files/units/pod-steer.service";
        assert_eq!(only_here, ["LICENSE-APACHE", "LICENSE-MIT", unit]);
        let only_there: Vec<_> = deb.difference(&rpm).map(String::as_str).collect();
        assert_eq!(only_there, ["packaging/debian/lintian-overrides"]);
    }
}
