//! The bill of materials: the dependencies that `cargo auditable` has put into the program, in CycloneDX. It is made from the program that
//! is shipped, so it names what was linked and nothing that was not.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cmd::{command, output};
use crate::{paths, setup};

const TOOL: &str = "auditable2cdx";
const TOOL_VERSION: &str = "0.1.0";

/// Writes the bill of a program's materials, and returns how many components it names.
pub fn write(program: &Path, file: &Path) -> Result<usize> {
    setup::ensure_tool(TOOL, TOOL_VERSION, "it writes the bill of materials; takes a minute, once")?;
    let bill = output(command(paths::tool(TOOL)).arg(program))?;
    let components = components(&bill)?;
    fs::write(file, &bill).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(components)
}

/// Checks a bill, and returns how many components it names.
fn components(bill: &str) -> Result<usize> {
    let bill: Value = serde_json::from_str(bill).context("the bill of materials is not JSON")?;
    ensure!(bill["bomFormat"] == "CycloneDX", "the bill of materials is not in CycloneDX");
    let components = bill["components"].as_array().context("the bill of materials names no components")?;
    for component in components {
        let purl = component["purl"].as_str().unwrap_or_default();
        ensure!(purl.starts_with("pkg:cargo/"), "a component has no package URL, which scanners need: {component}");
    }
    ensure!(!components.is_empty(), "the bill of materials names no components");
    Ok(components.len())
}
