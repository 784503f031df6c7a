//! A workflow of GitHub Actions, whose steps run as its runner runs them. Only what the test gives is there: expressions without a value and
//! keys that are not known here fail.

use std::{collections::BTreeMap, process::Output};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{process::output, remote::Remote, yaml};

/// A step of a job.
#[derive(Clone, Debug)]
pub struct Step {
    name: String,
    variables: BTreeMap<String, String>,
    always: bool,
    run: String,
}

/// Reads the steps of a job.
pub fn steps(text: &str, job: &str) -> Result<Vec<Step>> {
    let workflow = yaml::read(text)?;
    let steps = workflow["jobs"][job]["steps"].as_array().with_context(|| format!("no steps in {job}"))?;
    steps.iter().map(step).collect()
}

fn step(of: &Value) -> Result<Step> {
    let fields = of.as_object().context("a step that is no mapping")?;
    let text = |key: &str| of[key].as_str().map(str::to_owned);
    let name = text("name").context("a step without a name")?;
    let known = ["name", "shell", "env", "run", "if"];
    if let Some(key) = fields.keys().find(|key| !known.contains(&key.as_str())) {
        bail!("{name}: no test knows `{key}`");
    }
    ensure!(text("shell").as_deref() == Some("bash"), "{name}: bash is run without pipefail unless it is named");
    let always = match text("if").as_deref() {
        None => false,
        Some("always()") => true,
        Some(other) => bail!("{name}: no test knows the condition {other}"),
    };
    let variables = of["env"].as_object().into_iter().flatten();
    let variables = variables.map(|(key, value)| Ok((key.clone(), value.as_str().context("no text")?.to_owned())));
    Ok(Step { variables: variables.collect::<Result<_>>()?, always, run: text("run").context("no run")?, name })
}

/// Runs the steps on the runner of a server. After a failure only those with `always()` run. `values` are those of the expressions.
/// Returns the output of each step that ran; the job has succeeded if all have.
pub fn run(remote: &Remote, steps: &[Step], values: &BTreeMap<&str, String>) -> Result<Vec<(String, Output)>> {
    let temp = remote.runner_home().join("temp");
    let mut done: Vec<(String, Output)> = Vec::new();
    for step in steps {
        if !step.always && done.iter().any(|(_, output)| !output.status.success()) {
            continue;
        }
        ensure!(!step.run.contains("${{"), "{}: an expression in a script is open to injection", step.name);
        let script = temp.join("step.sh");
        remote.write(&script, &step.run)?;
        let mut variables = vec![("CI", "true".to_owned()), ("RUNNER_TEMP", temp.display().to_string())];
        for (key, text) in &step.variables {
            variables.push((key, evaluated(text, values)?));
        }
        let variables: Vec<(&str, &str)> = variables.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let mut command = remote.runner("/bin/bash".as_ref(), &variables)?;
        command.args(["--noprofile", "--norc", "-e", "-o", "pipefail"]).arg(&script);
        done.push((step.name.clone(), output(&mut command)?));
    }
    Ok(done)
}

/// The value of a text that is one expression, or has none.
fn evaluated(text: &str, values: &BTreeMap<&str, String>) -> Result<String> {
    let Some(expression) = text.strip_prefix("${{").and_then(|text| text.strip_suffix("}}")) else {
        ensure!(!text.contains("${{"), "no test knows {text}");
        return Ok(text.to_owned());
    };
    values.get(expression.trim()).cloned().with_context(|| format!("no value for {expression}"))
}
