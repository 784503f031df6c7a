//! Files in YAML, as JSON values, which tests read already.

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value};
use yaml_rust2::{Yaml, YamlLoader};

/// Reads a file of one document.
pub fn read(text: &str) -> Result<Value> {
    let documents = YamlLoader::load_from_str(text).context("not YAML")?;
    match &documents[..] {
        [document] => value(document),
        others => bail!("{} documents instead of one", others.len()),
    }
}

fn value(yaml: &Yaml) -> Result<Value> {
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Boolean(is) => Value::Bool(*is),
        Yaml::Integer(number) => Value::from(*number),
        Yaml::String(text) => Value::String(text.clone()),
        Yaml::Array(items) => Value::Array(items.iter().map(value).collect::<Result<_>>()?),
        Yaml::Hash(entries) => {
            let entry = |(key, one): (&Yaml, &Yaml)| {
                Ok((key.as_str().context("a key that is not text")?.to_owned(), value(one)?))
            };
            Value::Object(entries.iter().map(entry).collect::<Result<Map<_, _>>>()?)
        }
        other => bail!("no test reads {other:?}"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_file_is_read() -> Result<()> {
        let text = "on: [a, 2]\nrun: |\n  one\n  two\nempty:\nnested: { proxy: false, port: '80:80' }\n";
        let nested = json!({ "proxy": false, "port": "80:80" });
        assert_eq!(read(text)?, json!({ "on": ["a", 2], "run": "one\ntwo\n", "empty": null, "nested": nested }));
        assert!(read("a: [").is_err() && read("a: 1\n---\nb: 2\n").is_err() && read("1: a\n").is_err());
        Ok(())
    }
}
